"""Chances of candidates against their formula and against simulated targets whose spread is known."""

import numpy as np
import pytest

from profiles.candidate_chances import LARGEST_SPREAD, LEAST_SPREAD, NONE_WEIGHT, fit_spread, log_chances


def emitted_by_a_target(spread: float, num_positions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 8 candidates, best first, and which is the largest once each has Gumbel noise of that scale."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.normal(0, 2, (num_positions, 8)), axis=1)
    chosen = (scores + rng.gumbel(0, spread, scores.shape)).argmax(axis=1)
    return scores, chosen


def test_chances_are_the_formula_and_leave_a_share_for_none() -> None:
    chances = np.exp(log_chances([3.0, 2.0, -np.inf], spread=0.5))
    total = 1 + np.exp(-2) + NONE_WEIGHT
    assert chances == pytest.approx([1 / total, np.exp(-2) / total, 0])


def test_only_gaps_count() -> None:
    scores = np.array([[2.0, 1.0, 0.5], [102.0, 101.0, 100.5]])
    first, second = log_chances(scores, spread=0.8)
    assert first == pytest.approx(second)


def test_chances_say_how_often_a_candidate_is_emitted() -> None:
    """Seed 0, 20,000 positions: standard errors are below 0.004."""
    scores, chosen = emitted_by_a_target(0.8, 20_000)
    chances = np.exp(log_chances(scores, spread=0.8)) * (1 + NONE_WEIGHT / 2)
    seen = (chosen[:, None] == np.arange(8)).mean(axis=0)
    assert np.abs(chances.mean(axis=0) - seen).max() < 0.012


@pytest.mark.parametrize("spread", [0.2, 0.8, 2.5])
def test_a_fit_finds_the_spread(spread: float) -> None:
    assert fit_spread(*emitted_by_a_target(spread, 20_000)) == pytest.approx(spread, rel=0.05)


def test_a_fit_is_the_likeliest_spread() -> None:
    scores, chosen = emitted_by_a_target(0.8, 300)
    fitted = fit_spread(scores, chosen)

    def likelihood(spread: float) -> float:
        return float(log_chances(scores, spread=spread)[np.arange(len(chosen)), chosen].mean())

    assert likelihood(fitted) > likelihood(fitted * 1.02)
    assert likelihood(fitted) > likelihood(fitted / 1.02)


def test_positions_where_none_was_emitted_and_missing_candidates_change_nothing() -> None:
    scores, chosen = emitted_by_a_target(0.8, 200)
    padded = np.pad(scores, ((0, 5), (0, 2)), constant_values=-np.inf)
    padded[200:, 0] = 0.0
    assert fit_spread(padded, np.append(chosen, [-1] * 5)) == pytest.approx(fit_spread(scores, chosen))


def test_a_draft_that_is_always_right_and_one_that_knows_nothing_end_at_the_limits() -> None:
    scores, _ = emitted_by_a_target(1.0, 100)
    assert fit_spread(scores, np.zeros(100)) == pytest.approx(LEAST_SPREAD, rel=0.01)
    assert fit_spread(scores, np.full(100, 7)) == pytest.approx(LARGEST_SPREAD, rel=0.01)


def test_no_positions_and_no_spread_are_refused() -> None:
    with pytest.raises(ValueError, match="without a position"):
        fit_spread(np.zeros((2, 3)), [-1, -1])
    with pytest.raises(ValueError, match="more than 0 logits"):
        log_chances([1.0], spread=0.0)
