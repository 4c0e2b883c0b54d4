"""The closed form equals the recursion, and `followed` equals what enumeration of all draws gives."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.speculation.acceptance import analytic_acceptance
from runtime.speculation.child_acceptance import node_outcome
from runtime.speculation.sampling import draw_without_replacement

Probs = NDArray[np.float64]


def distributions(seed: int, size: int, spread: float = 2.0) -> tuple[Probs, Probs]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, size)
    rows = [np.exp(logits + rng.normal(0, 1.0, size)) for _ in range(2)]
    return rows[0] / rows[0].sum(), rows[1] / rows[1].sum()


@pytest.mark.parametrize("seed", range(20))
def test_acceptance_equals_the_recursion_over_residuals(seed: int) -> None:
    target, draft = distributions(seed, 300, spread=1 + seed / 4)
    rng = np.random.default_rng(seed)
    children = draw_without_replacement(draft, 32, rng).tolist()
    expected = analytic_acceptance(target, draft, children)
    found = node_outcome(target, draft, children, emitted=children[0]).acceptance
    assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("emitted", range(5))
def test_followed_is_the_share_of_the_token_that_comes_as_an_accepted_child(emitted: int) -> None:
    """Means over all ordered draws of 3 children from 5 tokens: P(child j is y, accepted) / P(y), both enumerated."""
    target, draft = distributions(7, 5, spread=1.0)
    mean_followed, as_child = np.zeros(3), np.zeros(3)
    for children in permutations(range(5), 3):
        chance, left = 1.0, 1.0
        for token in children:
            chance *= draft[token] / left
            left -= draft[token]
        accepted = analytic_acceptance(target, draft, children)
        as_child += chance * np.where(np.array(children) == emitted, accepted, 0.0)
        mean_followed += chance * node_outcome(target, draft, children, emitted=emitted).followed
    assert mean_followed == pytest.approx(as_child / target[emitted], abs=1e-12)


def test_a_draft_that_equals_the_target_is_always_accepted() -> None:
    target, _ = distributions(1, 50)
    children = draw_without_replacement(target, 4, np.random.default_rng(0)).tolist()
    outcome = node_outcome(target, target.copy(), children, emitted=children[1])
    assert outcome.acceptance == pytest.approx([1, 0, 0, 0])
    assert outcome.followed.sum() == pytest.approx(1.0)


def test_a_token_that_the_draft_never_proposes_is_never_followed() -> None:
    target, draft = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    assert node_outcome(target, draft, [1, 2], emitted=0).followed.sum() == 0.0


def test_children_drawn_after_the_mass_was_gone_are_never_accepted() -> None:
    target, draft = np.array([0.2, 0.3, 0.5]), np.array([1.0, 0.0, 0.0])
    outcome = node_outcome(target, draft, [0, 2, 1], emitted=2)
    assert outcome.acceptance == pytest.approx([0.2, 0.0, 0.0])
    assert outcome.followed.sum() == 0.0
