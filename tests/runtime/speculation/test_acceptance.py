"""The builtin vectors, and learning from drawn paths: convergence, forgetting, return to the prior."""

import numpy as np
import pytest

from runtime.speculation.acceptance import (
    BUILTIN_EVENTS,
    MEASURED_EVENTS,
    NUM_DEPTHS,
    AcceptanceLearner,
    builtin_acceptance,
)
from runtime.speculation.tree_search import best_first_by_levels, make_non_increasing
from tests.support.paths import REFERENCE_TREES

PRIOR = builtin_acceptance(substitute_held=None)
CHILDREN = (8, 5, 4, 3, 2, 2, 1, 1)


def with_first(first: float) -> np.ndarray:
    """The prior with another first rank; the others share what it leaves."""
    return np.concatenate(([first], PRIOR[1:] * (1 - first) / (1 - PRIOR[0])))


def rounds(learner: AcceptanceLearner, truth: np.ndarray, num_rounds: int, rng: np.random.Generator) -> None:
    """Walks down a tree of CHILDREN per level, accepting children as `truth` (R,) or (D, R) says."""
    rows = np.atleast_2d(truth)
    for _ in range(num_rounds):
        ranks: list[int] = []
        for depth, count in enumerate(CHILDREN):
            probs = rows[min(depth, len(rows) - 1)][:count]
            drawn = int(rng.choice(count + 1, p=[1 - probs.sum(), *probs]))
            ranks.append(drawn)
            if drawn == 0:
                break
        else:
            ranks.append(0)
        learner.observe(ranks, [*CHILDREN, 0][: len(ranks)])


def test_builtin_acceptance_follows_its_recipe() -> None:
    tail = np.array(REFERENCE_TREES["llama3_70b_8b_cnn"]["acceptance"])[4:] * 0.007 / 0.012833
    recipe = make_non_increasing([0.818, 0.095, 0.029, 0.017, *tail, tail[-1]])
    np.testing.assert_allclose(PRIOR, recipe, atol=5.1e-7)
    assert len(PRIOR) == 32
    assert sum(PRIOR) < 1
    assert (np.diff(PRIOR) <= 0).all()


def test_the_builtin_vector_depends_on_what_drafts() -> None:
    """An int8 copy of the target agrees nearly always, an NF4 one often, another model less."""
    vectors = [builtin_acceptance(substitute_held=held) for held in ("int8", "nf4", None)]
    assert vectors[0][0] > vectors[1][0] > vectors[2][0]
    for vector in vectors:
        assert (np.diff(vector) <= 0).all()
        assert 0.95 < vector.sum() <= 1
    assert (builtin_acceptance(substitute_held="stored") == vectors[0]).all()


def test_before_anything_is_seen_the_prior_is_the_estimate() -> None:
    assert AcceptanceLearner(PRIOR).estimate() == pytest.approx(np.tile(PRIOR, (NUM_DEPTHS, 1)))
    deep = np.linspace(0.9, 0.5, 20)[:, None] * np.array([[0.8, 0.1]])
    assert AcceptanceLearner(deep).estimate() == pytest.approx(deep)


@pytest.mark.parametrize("first", [0.5, 0.7, 0.95])
def test_the_first_rank_is_learned_within_fifty_rounds(first: float) -> None:
    """Seed 0; the walk has some 150 to 300 positions, so three standard errors are 0.1."""
    learner = AcceptanceLearner(PRIOR)
    rounds(learner, with_first(first), 50, np.random.default_rng(0))
    assert learner.estimate()[0, 0] == pytest.approx(first, abs=0.1)


def test_the_estimate_follows_a_text_that_changes() -> None:
    """150 rounds of prose after 150 of code: three time constants later the code has been forgotten. Seed 1."""
    rng, learner = np.random.default_rng(1), AcceptanceLearner(PRIOR)
    rounds(learner, with_first(0.9), 150, rng)
    assert learner.estimate()[0, 0] == pytest.approx(0.9, abs=0.06)
    rounds(learner, with_first(0.5), 150, rng)
    assert learner.estimate()[0, 0] == pytest.approx(0.5, abs=0.08)


def test_what_is_not_seen_any_more_returns_to_the_prior() -> None:
    """Rounds without a tree teach nothing, so plain decoding does not last because of a bad page long ago."""
    learner = AcceptanceLearner(PRIOR)
    for _ in range(40):
        learner.observe([0], [4])
    assert learner.estimate()[0, 0] < 0.3
    for _ in range(400):
        learner.observe([0], [0])
    assert learner.estimate() == pytest.approx(np.tile(PRIOR, (NUM_DEPTHS, 1)), rel=0.05)


def test_depths_are_told_apart_once_there_is_evidence() -> None:
    """A draft that is better deeper down, as real ones are; 40 positions at the root move it half-way. Seed 2."""
    learner = AcceptanceLearner(PRIOR)
    truth = np.stack([with_first(0.6), with_first(0.9)])
    rounds(learner, truth, 100, np.random.default_rng(2))
    found = learner.estimate()[:, 0]
    assert found[0] < 0.75
    assert found[1:3].mean() > 0.83


def test_a_measured_prior_is_harder_to_move_than_a_builtin_one() -> None:
    estimates = []
    for events in (BUILTIN_EVENTS, MEASURED_EVENTS):
        learner = AcceptanceLearner(PRIOR, prior_events=events)
        for _ in range(10):
            learner.observe([0], [3])
        estimates.append(learner.estimate()[0, 0])
    assert estimates[0] < 0.45
    assert 0.5 < estimates[1] < 0.7


def test_one_lucky_far_rank_does_not_make_far_ranks_likely() -> None:
    """One in one; what is believed afterwards is less than one in 500."""
    learner = AcceptanceLearner(PRIOR)
    learner.observe([20, 0], [24, 0])
    assert PRIOR[19] < learner.estimate()[0, 19] < 5 * PRIOR[19]


def test_ranks_and_depths_beyond_the_prior_are_left_out_or_pooled() -> None:
    learner = AcceptanceLearner([0.7, 0.2])
    learner.observe([9] * 20, [12] * 20)
    assert learner.estimate().shape == (NUM_DEPTHS, 2)
    assert learner.estimate()[0, 0] < 0.7  # tried, and not taken


def test_whatever_is_observed_the_estimate_can_be_searched() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        learner = AcceptanceLearner(np.sort(rng.dirichlet(np.ones(33))[:-1])[::-1])
        for _ in range(60):
            counts = rng.integers(1, 33, size=rng.integers(1, 15))
            learner.observe([int(rng.integers(1, count + 1)) for count in counts[:-1]] + [0], counts.tolist())
            estimate = learner.estimate()
            assert (np.diff(estimate) <= 0).all()
            assert (estimate.sum(axis=1) <= 1 + 1e-9).all()
            best_first_by_levels(estimate, 30, 5)


def test_a_better_first_rank_leaves_the_others_less_and_in_proportion() -> None:
    """Forty first children in a row: what is left for the second shrinks as what the first leaves does."""
    learner = AcceptanceLearner(PRIOR)
    learner.observe([1] * 40 + [0], [4] * 40 + [0])
    found = learner.estimate()[0]
    assert found[0] > 0.88
    assert found[1:] / (1 - found[0]) == pytest.approx(PRIOR[1:] / (1 - PRIOR[0]))
