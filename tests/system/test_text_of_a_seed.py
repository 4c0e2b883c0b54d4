"""Sampled text of a seed is one text: with any draft, tree and ring, and without any, on tiny random models.

Bit for bit, hence a test of losslessness that needs no statistics. The models' logits depend on the shape of a pass by
rounding only, and no position of these texts comes close to a tie.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.planner.growth import ContextChances
from tests.support.session_factory import answer, open_tiny, request, save_target_and_drafts, save_tiny_folder

NUM_CHOICES = 4
SURE = ContextChances(np.array([[1.0]]), 0.01)
"""Of a draft that is the target: what it likes best is what is emitted."""


def random_choices(verification: str, *, seed: int) -> Iterator[dict[str, object]]:
    """Temperatures 0 to 2 with and without top-p and top-k, prompts and seeds."""
    rng = np.random.default_rng(seed)
    for number in range(NUM_CHOICES):
        yield {
            "text": " ".join(rng.choice(["the", "cat", "and", "dog", "a"], size=int(rng.integers(2, 9)))),
            "temperature": float(rng.choice([0.0, 0.3, 0.7, 1.0, 1.5, 2.0])),
            "top_p": float(rng.choice([1.0, 0.95, 0.6])),
            "top_k": int(rng.choice([0, 0, 5, 40])),
            "seed": number + int(rng.integers(1000)),
            "max_new_tokens": 16,
            "verification": verification,
        }


def texts(opened: OpenSession, verification: str, *, seed: int, num_texts: int = NUM_CHOICES) -> list[list[int]]:
    choices = islice(random_choices(verification, seed=seed), num_texts)
    return [answer(opened, request(**chosen))[1] for chosen in choices]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_target_and_drafts(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> Iterator[OpenSession]:
    with open_tiny(folders["target"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain_texts(plain: OpenSession) -> Callable[[str, int], list[list[int]]]:
    """What plain decoding writes, once for each verification and seed."""
    return functools.cache(lambda verification, seed: texts(plain, verification, seed=seed))


@pytest.mark.parametrize(
    ("verification", "draft", "tree", "ring_slots"),
    [
        ("coupled", "perfect", "12x12", 3),
        ("coupled", "unrelated", "33x6", 2),
        ("coupled", "substitute", "auto", 3),
        ("coupled", "perfect", "dynamic:14x8", 2),
        ("coupled", "unrelated", "dynamic:33x6", 3),
        ("coupled", "substitute", "dynamic", 2),
        ("top-k", "unrelated", "9x3", 2),
    ],
)
def test_speculation_does_not_change_sampled_text(
    verification: str,
    draft: str,
    tree: str,
    ring_slots: int,
    folders: dict[str, Path],
    plain_texts: Callable[[str, int], list[list[int]]],
) -> None:
    seed = len(draft)
    settings = {"tree": tree, "ring_slots": ring_slots, "num_residents": 0}
    with open_tiny(folders["target"], draft=folders.get(draft, draft), **settings) as opened:
        assert texts(opened, verification, seed=seed) == plain_texts(verification, seed)


def test_a_perfect_draft_meets_the_targets_noise_on_every_level(folders: dict[str, Path]) -> None:
    """Noise of a wrong position would leave the text as it is, and cost tokens per pass."""
    with open_tiny(folders["target"], draft=folders["perfect"], tree="6x6") as opened:
        finished, _ = answer(opened, request(temperature=1.5, top_p=0.95, verification="coupled"))
    assert (finished.statistics.new_tokens, finished.statistics.rounds) == (24, 4)


def test_a_perfect_draft_is_followed_as_far_as_a_tree_in_context_may_grow(folders: dict[str, Path]) -> None:
    """All its worth lies on one path: six nodes go five levels deep where they are needed."""
    with open_tiny(folders["target"], draft=folders["perfect"], tree="dynamic:6x6") as opened:
        planner = opened.session.engine.planner
        planner._prior = replace(planner._prior, chances_at=lambda temperature: SURE)
        finished, _ = answer(opened, request(temperature=1.5, verification="coupled"))
    assert (finished.statistics.new_tokens, finished.statistics.rounds) == (24, 4)


@pytest.mark.parametrize("verification", ["sequoia", "specinfer"])
def test_a_tree_in_context_is_refused_where_it_would_change_the_distribution(
    verification: str, folders: dict[str, Path]
) -> None:
    with (
        open_tiny(folders["target"], draft=folders["unrelated"], tree="dynamic:9x3") as opened,
        pytest.raises(OptionError, match=f"verification is {verification} and the tree dynamic"),
    ):
        answer(opened, request(temperature=1.0, verification=verification))


def test_texts_differ_between_seeds_and_are_not_all_greedy(plain: OpenSession) -> None:
    """Or the test above would prove little."""
    found = [tuple(answer(plain, request(temperature=1.0, seed=seed, verification="coupled"))[1]) for seed in range(5)]
    greedy = tuple(answer(plain, request(temperature=0.0))[1])
    assert len({*found, greedy}) == 6


def test_sequoia_is_another_sample_with_another_tree(folders: dict[str, Path], plain: OpenSession) -> None:
    """The comparison above can fail."""
    with open_tiny(folders["target"], draft=folders["unrelated"], tree="9x3") as opened:
        assert texts(opened, "sequoia", seed=1, num_texts=2) != texts(plain, "sequoia", seed=1, num_texts=2)


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_coupled_text_survives_sliding_windows(kind: str, tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / kind, kind)
    with ExitStack() as stack:
        plain = stack.enter_context(open_tiny(folder))
        opened = stack.enter_context(open_tiny(folder, draft="substitute", tree="12x5", num_residents=0))
        assert texts(opened, "coupled", seed=3, num_texts=2) == texts(plain, "coupled", seed=3, num_texts=2)


def test_the_answer_names_the_scheme(plain: OpenSession) -> None:
    for temperature, verification, expected in [(0.0, "coupled", "greedy"), (1.0, "auto", "coupled")]:
        finished, _ = answer(plain, request(temperature=temperature, verification=verification))
        assert finished.verification == expected
