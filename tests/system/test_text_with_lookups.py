"""Grafted branches leave the text what it is without them, and bring tokens where the text repeats itself.

Equal token for token with the schemes that have one text, on tiny random models with whole sessions; for the others
the law of several rounds over few tokens.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from runtime.config import MAX_GRAFTED_NODES, SamplingParams
from runtime.engine.loading import OpenSession
from runtime.events import Event, Round
from runtime.speculation import lookup
from runtime.speculation.lookup import graft, lookup_branches
from runtime.speculation.sampling import logits_to_probs
from runtime.speculation.schemes import Place, Row, scheme_for
from runtime.speculation.token_tree import TokenTree
from runtime.speculation.verifier import verify
from tests.support.chi_square import chi_square_p_value
from tests.support.session_factory import answer, open_tiny, request, save_target_and_drafts
from tests.support.trees import tree_of_counts

REPEATING = "the cat and the dog and the cat and the dog and the cat"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_target_and_drafts(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sessions(folders: dict[str, Path]) -> Iterator[list[OpenSession]]:
    """Plain, then drafts with lookups: the unrelated one accepts little, so that grafts decide."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(open_tiny(folders["target"], **settings))
            for settings in (
                {"draft": "none"},
                {"draft": folders["unrelated"], "tree": "4x3", "lookup": "on"},
                {"draft": "substitute", "tree": "9x3", "lookup": "on", "num_residents": 0},
                {"draft": folders["unrelated"], "tree": "auto", "lookup": "on"},
            )
        ]


def observed(opened: OpenSession, monkeypatch: pytest.MonkeyPatch) -> list[Round]:
    """Every round that the planner is told of."""
    found: list[Round] = []
    planner = opened.session.engine.planner
    monkeypatch.setattr(type(planner), "observe", lambda self, *rounds, **_: found.extend(rounds))
    return found


def forced_to_repeat(**params: object) -> dict[str, object]:
    """Choices under which any model repeats itself: three tokens are left of its vocabulary."""
    return {"banned_tokens": (0, 1, 2, *range(6, 96)), **params}


def test_text_is_that_of_plain_decoding(sessions: list[OpenSession]) -> None:
    rng = np.random.default_rng(5)
    for number in range(8):
        choices: dict[str, object] = {
            "temperature": float(rng.choice([0.0, 0.3, 0.8, 1.5])),
            "top_p": float(rng.choice([1.0, 0.8])),
            "seed": number,
            "verification": str(rng.choice(["coupled", "top-k"])),
        }
        if number % 2:
            choices = forced_to_repeat(repetition_penalty=float(rng.choice([0.9, 1.0])), **choices)
        asked = request(REPEATING, **choices)
        expected = answer(sessions[0], asked)[1]
        for opened in sessions[1:]:
            assert answer(opened, asked)[1] == expected, asked.params


def test_grafts_are_accepted_beyond_the_trees_own_levels(
    sessions: list[OpenSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A greedy text of few tokens ends in a cycle, which lookups then follow for many tokens at once."""
    asked = request(REPEATING, **forced_to_repeat(max_new_tokens=60))
    expected = answer(sessions[0], asked)[1]
    rounds = observed(sessions[1], monkeypatch)
    assert answer(sessions[1], asked)[1] == expected
    assert max(item.num_emitted for item in rounds) > 10
    assert max(item.num_grafted for item in rounds) > 10
    for item in rounds:
        assert item.num_nodes == 4 + item.num_grafted <= 4 + MAX_GRAFTED_NODES
        assert item.num_pass_tokens >= item.num_nodes
        assert len(item.accepted_ranks) == len(item.num_children) <= 3, "nothing but the draft's own levels"
        assert max(item.num_children) <= 3


def test_a_full_context_ends_in_time(folders: dict[str, Path]) -> None:
    settings = {"draft": folders["unrelated"], "tree": "4x3", "lookup": "on", "context_tokens": 40}
    with open_tiny(folders["target"], **settings) as opened, open_tiny(folders["target"], context_tokens=40) as plain:
        asked = request(REPEATING, **forced_to_repeat(max_new_tokens=99))
        found, expected = answer(opened, asked), answer(plain, asked)
        assert found[1] == expected[1]
        assert (found[0].finish_reason, len(opened.session.engine.text)) == ("context", 40)


def test_caches_have_room_for_the_largest_grafted_tree(folders: dict[str, Path]) -> None:
    with open_tiny(folders["target"], draft="substitute", tree="9x3", lookup="on") as opened:
        assert opened.plan.need.capacity_tokens == 128 + 9 + MAX_GRAFTED_NODES
        with open_tiny(folders["target"], draft="substitute", tree="9x3") as other:
            assert other.plan.need.capacity_tokens == 128 + 9
            assert opened.placement.fixed_bytes > other.placement.fixed_bytes


def test_stopping_anywhere_leaves_a_text_that_goes_on(sessions: list[OpenSession]) -> None:
    engine = sessions[1].session.engine
    params = SamplingParams(banned_tokens=(0, 1, 2, *range(6, 96)))
    expected = written_by(engine.generate([3, 4, 5, 3, 4, 5], params, np.random.default_rng(0)), 30)
    for num_events in range(1, 20, 3):
        engine.truncate(0)
        rounds = engine.generate([3, 4, 5, 3, 4, 5], params, np.random.default_rng(0))
        for _ in range(num_events):
            next(rounds)
        rounds.close()
        assert engine.drafter is not None
        assert engine.drafter.num_committed <= len(engine.text)
        text = list(engine.text)
        more = written_by(engine.generate(text, params, np.random.default_rng(0)), 10)
        assert (text[6:] + more)[:30] == expected[: len(text) + 4]


def written_by(rounds: Iterator[Event], num_tokens: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        event = next(rounds)
        tokens += event.token_ids if isinstance(event, Round) else ()
    return tokens[:num_tokens]


def test_without_lookups_every_tree_is_the_drafts(folders: dict[str, Path]) -> None:
    """The comparisons above can fail: it is off unless it is asked for."""
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="4x3") as opened:
        events = list(opened.session.generate(request(REPEATING, **forced_to_repeat(max_new_tokens=60))))
        assert {event.num_nodes for event in events if isinstance(event, Round)} <= {4, 3, 2, 1}


SMALL_VOCAB, SMALL_PROMPT, NUM_LAW_TOKENS = 4, (0, 1, 2, 3, 0, 1, 2), 3


@cache
def small_row(text: tuple[int, ...], model: int) -> Row:
    return (1.2 * np.random.default_rng([model, *text]).standard_normal(SMALL_VOCAB)).astype(np.float32)


def answer_with_grafts(params: SamplingParams, rng: np.random.Generator) -> tuple[tuple[int, ...], int]:
    """Rounds over a drawn tree with looked-up branches, and how many nodes were grafted."""
    topology, scheme = tree_of_counts([2, 1, 0, 0]), scheme_for(params)
    text, num_grafted = list(SMALL_PROMPT), 0
    while len(text) < len(SMALL_PROMPT) + NUM_LAW_TOKENS:
        tree = TokenTree.rooted(topology, root_token_id=text[-1], root_position=len(text) - 1)

        def row(node: int, model: int, tree: TokenTree, text: tuple[int, ...] = tuple(text)) -> Row:
            return small_row((*text, *tree.path_token_ids(node)[1:].tolist()), model)

        for node in np.flatnonzero(topology.num_children).tolist():
            width = int(topology.num_children[node])
            placed = scheme.place(row(node, 1, tree), width, Place.below(tree, node, params), rng)
            tree.set_children(node, token_ids=placed.token_ids, draft_probs=placed.draft_probs, drawn=placed.drawn)
        grafted = graft(tree, lookup_branches(text, tree), max_nodes=12, max_levels=6)
        num_grafted += grafted.num_grafted
        target_row = partial(row, model=0, tree=grafted.tree)
        emitted = verify(grafted.tree, target_row, params, rng, scheme=scheme).emitted_token_ids(grafted.tree)
        text += emitted
    return tuple(text[len(SMALL_PROMPT) :][:NUM_LAW_TOKENS]), num_grafted


@pytest.mark.parametrize("verification", ["sequoia", "specinfer", "top-k"])
def test_rounds_with_grafts_have_the_distribution_of_plain_decoding(
    verification: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 3, 1200 answers of three tokens over several rounds, p-value above 0.001."""
    monkeypatch.setattr(lookup, "MIN_MATCH", 2)
    params, rng, num_answers = SamplingParams(temperature=1, verification=verification), np.random.default_rng(3), 1200
    found = [answer_with_grafts(params, rng) for _ in range(num_answers)]
    assert sum(num_grafted for _, num_grafted in found) > num_answers
    seen = Counter(text for text, _ in found)
    outcomes = list(itertools.product(range(SMALL_VOCAB), repeat=NUM_LAW_TOKENS))
    expected = [
        num_answers
        * np.prod(
            [
                logits_to_probs(small_row((*SMALL_PROMPT, *outcome[:i]), 0), params)[outcome[i]]
                for i in range(NUM_LAW_TOKENS)
            ]
        )
        for outcome in outcomes
    ]
    assert chi_square_p_value([seen[outcome] for outcome in outcomes], expected) > 1e-3
