"""Penalties, bans, forced tokens and min-p leave speculation lossless: text with trees is text without them.

Bit for bit, with the two schemes that have one text: on random rows that stand for models, with random trees, and on
tiny random models with whole sessions. What the sampling schemes emit has its own tests beside the processor.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.speculation.logit_processors import LogitProcessor
from runtime.speculation.schemes import AdjustedRows, Place, Row, scheme_for
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.verifier import verify
from tests.runtime.speculation.test_token_tree import random_topology
from tests.support.session_factory import answer, open_tiny, request, save_target_and_drafts

VOCAB_SIZE = 40


def random_params(rng: np.random.Generator, *, vocab_size: int) -> dict[str, object]:
    """Every processor, on and off, at temperatures 0 to 1.5."""
    banned = rng.choice(vocab_size, size=int(rng.integers(0, 9)), replace=False).tolist()
    forced = [token for token in rng.integers(0, vocab_size, size=4).tolist() if token not in banned]
    return {
        "temperature": float(rng.choice([0.0, 0.4, 1.0, 1.5])),
        "top_p": float(rng.choice([1.0, 0.9])),
        "min_p": float(rng.choice([0.0, 0.05, 0.4])),
        "repetition_penalty": float(rng.choice([1.0, 0.7, 1.3, 3.0])),
        "presence_penalty": float(rng.choice([0.0, -0.5, 1.5])),
        "frequency_penalty": float(rng.choice([0.0, -0.3, 0.8])),
        "banned_tokens": tuple(banned),
        "forced_tokens": tuple(forced[: rng.integers(0, 4)]),
        "seed": int(rng.integers(1000)),
        "verification": "coupled",
    }


class RandomRows:
    """What a model would say behind a text: random, the same for the same text."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, text: Sequence[int], *, model: int) -> Row:
        rng = np.random.default_rng([self._seed, len(text), *text[-3:]])
        shared = 3 * rng.standard_normal(VOCAB_SIZE)  # draft and target agree as far as this goes
        return (shared + model * np.random.default_rng([model, *text]).standard_normal(VOCAB_SIZE)).astype(np.float32)


def written(
    params: SamplingParams, rows: RandomRows, topologies: Sequence[TreeTopology], *, num_tokens: int
) -> tuple[list[int], int]:
    """The answer, and how many rounds it took."""
    prompt, rng = [3, 1, 4, 1, 5], np.random.default_rng(0)
    processor = LogitProcessor(params, prompt=prompt, vocab_size=VOCAB_SIZE)
    scheme = AdjustedRows(scheme_for(params), processor)
    text, num_rounds = list(prompt), 0
    while len(text) < len(prompt) + num_tokens:
        topology = topologies[num_rounds % len(topologies)]
        num_rounds += 1
        tree = TokenTree.rooted(topology, root_token_id=text[-1], root_position=len(text) - 1)

        def row(node: int, model: int, tree: TokenTree = tree, text: tuple[int, ...] = tuple(text)) -> Row:
            return rows((*text, *tree.path_token_ids(node)[1:].tolist()), model=model)

        for node in np.flatnonzero(topology.num_children).tolist():
            width = int(topology.num_children[node])
            placed = scheme.place(row(node, 1), width, Place.below(tree, node, params), rng)
            tree.set_children(node, token_ids=placed.token_ids, draft_probs=placed.draft_probs, drawn=placed.drawn)
        emitted = verify(tree, lambda node: row(node, 0), params, rng, scheme=scheme).emitted_token_ids(tree)
        processor.accept(emitted)
        text += emitted
    return text[len(prompt) :][:num_tokens], num_rounds


@pytest.mark.parametrize("seed", range(25))
def test_random_trees_write_the_text_of_plain_decoding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices, rows = random_params(rng, vocab_size=VOCAB_SIZE), RandomRows(seed)
    params = SamplingParams(**choices)  # type: ignore[arg-type]
    expected, _ = written(params, rows, [TreeTopology.single()], num_tokens=30)
    trees = [random_topology(rng, int(rng.integers(2, 20))) for _ in range(4)]
    found, num_rounds = written(params, rows, trees, num_tokens=30)
    assert found == expected
    assert num_rounds < 30, "something of the trees was accepted"
    assert found[: len(params.forced_tokens)] == list(params.forced_tokens)
    assert not set(found) & set(params.banned_tokens)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_target_and_drafts(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> Iterator[list[OpenSession]]:
    """Plain, and two drafts with different trees."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(open_tiny(folders["target"], **settings))
            for settings in (
                {"draft": "none"},
                {"draft": "substitute", "tree": "9x3"},
                {"draft": folders["unrelated"], "tree": "auto"},
            )
        ]


def test_whole_sessions_write_one_text_one_answer_after_another(sessions: list[OpenSession]) -> None:
    """The prompts begin alike, so that caches keep what they share, and nothing of an answer's penalties stays."""
    rng = np.random.default_rng(7)
    for _ in range(6):
        text = " ".join(["the cat and", *rng.choice(["the", "dog", "a"], size=int(rng.integers(1, 5)))])
        asked = request(text, **random_params(rng, vocab_size=90))
        expected = answer(sessions[0], asked)[1]
        for opened in sessions[1:]:
            assert answer(opened, asked)[1] == expected, asked.params


def test_penalties_bans_and_forced_tokens_change_the_text(sessions: list[OpenSession]) -> None:
    """The comparisons above would hold if nobody used them."""
    for opened in sessions:
        endless = tuple(opened.session.end_token_ids)
        usual = answer(opened, request(banned_tokens=endless))[1]
        assert len(usual) == 24, "end tokens can be banned"
        assert answer(opened, request(forced_tokens=(7, 70)))[1][:2] == [7, 70]
        assert usual[0] not in answer(opened, request(banned_tokens=(usual[0], *endless)))[1]
        penalties = {"frequency_penalty": 2.0, "presence_penalty": 2.0, "repetition_penalty": 50}
        penalised = answer(opened, request(banned_tokens=endless, **penalties))[1]
        assert len(set(penalised)) == len(penalised) == 24, "no token comes twice"
        assert answer(opened, request(banned_tokens=endless))[1] == usual


def test_min_p_of_one_is_greedy_at_any_temperature(sessions: list[OpenSession]) -> None:
    for opened in sessions:
        greedy = answer(opened, request())[1]
        for verification in ("coupled", "sequoia"):
            assert answer(opened, request(temperature=1.5, min_p=1.0, verification=verification))[1] == greedy


def test_an_id_that_the_model_does_not_have_ends_the_answer_with_a_sentence(sessions: list[OpenSession]) -> None:
    for opened in sessions:
        with pytest.raises(OptionError, match="banned_tokens holds 100000; the model's ids are 0 to"):
            answer(opened, request(banned_tokens=(100_000,)))
        assert answer(opened, request())[1] == answer(sessions[0], request())[1]
