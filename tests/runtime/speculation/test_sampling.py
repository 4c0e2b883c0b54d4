"""Distributions made by hand with exact expectations, and draws against their exact law."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from profiles.errors import OverstoryError
from runtime.config import SamplingParams
from runtime.speculation.sampling import (
    draw_while_mass,
    draw_with_replacement,
    draw_without_replacement,
    log_weights,
    logits_to_probs,
    sample,
    token_logprobs,
    top_tokens,
)
from tests.support.chi_square import chi_square_p_value

HAND_MADE = np.array([0.2, 0.05, 0.4, 0.05, 0.3])


def logits_of(probs: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(probs).astype(np.float32)


def ordered_draw_probability(probs: np.ndarray, tokens: tuple[int, ...]) -> float:
    """The product of q / (what is left of the mass), uniform over the tokens left once there is none."""
    left, probability = probs.astype(float), 1.0
    for num_drawn, token in enumerate(tokens):
        mass = left.sum()
        probability *= left[token] / mass if mass > 0 else 1 / (len(probs) - num_drawn)
        left[token] = 0
        if mass == 0 and token in tokens[:num_drawn]:
            return 0.0
    return probability


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_temperature_divides_the_logits(dtype: type) -> None:
    logits = np.array([1.0, -2.0, 0.5, 3.0], dtype=np.float32)
    probs = logits_to_probs(logits, SamplingParams(temperature=0.5), dtype=dtype)
    expected = np.exp(logits.astype(float) * 2)
    np.testing.assert_allclose(probs, expected / expected.sum(), rtol=1e-6)
    assert probs.dtype == dtype
    assert probs.sum() == pytest.approx(1, abs=1e-6 if dtype is np.float32 else 1e-15)


def test_temperature_zero_is_the_first_argmax() -> None:
    assert logits_to_probs(np.float32([0, 7, 7, 1]), SamplingParams(temperature=0)).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tiny_temperature_is_the_argmax_without_a_warning(temperature: float, dtype: type) -> None:
    probs = logits_to_probs(np.float32([100, -200, 99]), SamplingParams(temperature=temperature), dtype=dtype)
    assert probs.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.9, {2, 4, 0}), (0.91, {2, 4, 0, 1}), (0.95, {2, 4, 0, 1}), (0.7, {2, 4}), (0.4, {2})]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p: float, kept: set[int], dtype: type) -> None:
    """(.4 .3 .2 .05 .05) with .9 keeps three; an earlier system cut no tail at all."""
    params = SamplingParams(temperature=1, top_p=top_p)
    probs = logits_to_probs(logits_of(HAND_MADE), params, dtype=dtype)
    assert set(np.flatnonzero(probs)) == kept
    expected = np.where(probs > 0, HAND_MADE, 0)
    np.testing.assert_allclose(probs, expected / expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("num_tokens", [10, 40_000])
def test_top_p_of_a_flat_distribution_keeps_the_lowest_tokens(num_tokens: int) -> None:
    """An earlier system dropped the best token of flat distributions."""
    probs = logits_to_probs(np.zeros(num_tokens, dtype=np.float32), SamplingParams(temperature=1, top_p=0.3))
    assert np.flatnonzero(probs).tolist() == list(range(int(num_tokens * 0.3)))


@pytest.mark.parametrize("top_p", [0, 1e-300, 1e-9, 0.01])
def test_top_p_never_keeps_nothing(top_p: float) -> None:
    params = SamplingParams(temperature=1, top_p=top_p)
    assert logits_to_probs(logits_of(HAND_MADE), params).tolist() == [0, 0, 1, 0, 0]
    assert np.count_nonzero(logits_to_probs(np.zeros(7, dtype=np.float32), params)) == 1


@pytest.mark.parametrize("scale", [0.1, 2.0, 6.0])
def test_top_p_equals_sorting_the_whole_vocabulary(scale: float) -> None:
    logits = (np.random.default_rng(0).standard_normal(5000) * scale).astype(np.float32)
    for top_p in (0.1, 0.5, 0.9, 0.99, 0.9999):
        full = logits_to_probs(logits, SamplingParams(temperature=1))
        order = np.argsort(-full, kind="stable")
        num_kept = int(np.searchsorted(np.cumsum(full[order]), top_p - 1e-6)) + 1
        probs = logits_to_probs(logits, SamplingParams(temperature=1, top_p=top_p))
        assert set(np.flatnonzero(probs)) == set(order[:num_kept])


def test_top_k_keeps_exactly_k_and_prefers_lower_tokens_among_equals() -> None:
    logits = np.float32([1, 3, 2, 2, 2])
    probs = logits_to_probs(logits, SamplingParams(temperature=1, top_k=3))
    assert np.flatnonzero(probs).tolist() == [1, 2, 3]
    assert probs[1] / probs[2] == pytest.approx(np.e)


def test_top_k_comes_before_top_p() -> None:
    """Top-p then counts the mass of the k tokens left: .4/.7 and .3/.7."""
    probs = logits_to_probs(logits_of(HAND_MADE), SamplingParams(temperature=1, top_k=2, top_p=0.57))
    assert np.flatnonzero(probs).tolist() == [2]
    probs = logits_to_probs(logits_of(HAND_MADE), SamplingParams(temperature=1, top_k=2, top_p=0.58))
    assert np.flatnonzero(probs).tolist() == [2, 4]


@pytest.mark.parametrize("temperature", [0.6, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (12, 1.0), (0, 0.8), (20, 0.6)])
@pytest.mark.parametrize("min_p", [0.0, 0.02, 0.3, 1.0])
def test_min_p_behind_the_other_filters_is_what_transformers_keeps(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for seed in range(10):
        row = (4 * np.random.default_rng(seed).standard_normal(60)).astype(np.float32)
        row[-3:] = -np.inf
        expected = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(row)[None])
        expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
        expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
        expected = MinPLogitsWarper(min_p)(None, expected).softmax(dim=-1)[0].numpy()
        found = logits_to_probs(row, params)
        np.testing.assert_array_equal(found > 0, expected > 0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)
        np.testing.assert_array_equal(np.isfinite(log_weights(row, params)), expected > 0)


def test_min_p_is_a_share_of_the_likeliest_and_keeps_its_equals() -> None:
    row = logits_of(np.array([0.1, 0.35, 0.2, 0.35]))
    for min_p, kept in [(0.25, [0, 1, 2, 3]), (0.5, [1, 2, 3]), (1.0, [1, 3])]:
        probs = logits_to_probs(row, SamplingParams(temperature=1, min_p=min_p))
        assert np.flatnonzero(probs).tolist() == kept


def test_a_top_k_beyond_the_vocabulary_keeps_all() -> None:
    assert np.count_nonzero(logits_to_probs(logits_of(HAND_MADE), SamplingParams(temperature=1, top_k=99))) == 5


def test_rows_are_treated_one_by_one() -> None:
    logits = np.random.default_rng(1).standard_normal((2, 3, 50)).astype(np.float32)
    params = SamplingParams(temperature=0.8, top_k=20, top_p=0.9)
    probs = logits_to_probs(logits, params, dtype=np.float32)
    assert probs.shape == (2, 3, 50)
    np.testing.assert_array_equal(probs[1, 2], logits_to_probs(logits[1, 2], params, dtype=np.float32))


def test_banned_tokens_have_no_probability() -> None:
    probs = logits_to_probs(np.float32([0, -np.inf, 0]), SamplingParams(temperature=0.7))
    np.testing.assert_allclose(probs, [0.5, 0, 0.5])


@pytest.mark.parametrize("row", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(row: list[float], temperature: float) -> None:
    with pytest.raises(OverstoryError, match="largest logit"):
        logits_to_probs(np.float32(row), SamplingParams(temperature=temperature))
    with pytest.raises(OverstoryError, match="largest logit"):
        top_tokens(np.float32(row), 1)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1),
        SamplingParams(temperature=0.6, top_k=20),
        SamplingParams(temperature=1.4, top_p=0.8),
        SamplingParams(temperature=0.9, top_k=30, top_p=0.7),
        SamplingParams(temperature=0.9, top_k=30, top_p=0.9, min_p=0.1),
        SamplingParams(temperature=0),
    ],
    ids=str,
)
def test_log_weights_are_the_logarithm_of_the_probabilities_up_to_a_constant(params: SamplingParams) -> None:
    row = (np.random.default_rng(3).standard_normal(600) * 2).astype(np.float32)
    row[::5] = -np.inf
    weights, probs = log_weights(row, params), logits_to_probs(row, params)
    assert (weights.dtype, weights.max()) == (np.float32, 0)
    np.testing.assert_array_equal(np.isfinite(weights), probs > 0)
    np.testing.assert_allclose(np.exp(weights) / np.exp(weights).sum(), probs, rtol=1e-5)


@pytest.mark.parametrize("scale", [1, 30, 1e5])
@pytest.mark.parametrize("num_values", [6, 20_011])
def test_token_logprobs_are_the_log_softmax_of_the_row(num_values: int, scale: float) -> None:
    row = (scale * np.random.default_rng(2).standard_normal(num_values)).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(row).double(), dim=-1)
    found = token_logprobs(row, 3, 5)
    best = expected.topk(5)
    assert found.chosen.token_id == 3 and [token.token_id for token in found.likeliest] == best.indices.tolist()
    assert found.chosen.logprob == pytest.approx(float(expected[3]), rel=1e-6, abs=1e-6)
    assert [token.logprob for token in found.likeliest] == pytest.approx(best.values.tolist(), rel=1e-6, abs=1e-6)
    assert token_logprobs(row, 3, 0).likeliest == ()
    assert len(token_logprobs(row, 3, num_values + 9).likeliest) == num_values


def test_token_logprobs_of_what_cannot_come() -> None:
    row = np.float32([0, -np.inf, 0])
    assert token_logprobs(row, 1, 0).chosen.logprob == -np.inf
    with pytest.raises(OverstoryError, match="nan, where a finite number was expected"):
        token_logprobs(np.float32([0, np.nan]), 0, 0)


@pytest.mark.parametrize("num_values", [6, 700, 20_011])
def test_top_tokens_equal_a_stable_sort(num_values: int) -> None:
    row = np.random.default_rng(2).integers(0, 40, num_values).astype(np.float32)  # many ties
    row[::7] = -np.inf
    for num_tokens in (0, 1, 5, num_values):
        assert top_tokens(row, num_tokens).tolist() == np.argsort(-row, kind="stable")[:num_tokens].tolist()
    with pytest.raises(ValueError, match=f"no {num_values + 1} top tokens"):
        top_tokens(row, num_values + 1)


@pytest.mark.parametrize("probs", [[0.5, 0.3, 0.15, 0.05], [0.25] * 4, [0.7, 0.3, 0, 0], [0, 0, 1, 0]], ids=str)
def test_draws_follow_their_exact_law(probs: list[float]) -> None:
    """All ordered draws of 3 of 4 tokens, the uniform rest included. Seed 0, 8,000 draws, p > 0.001."""
    rng, num_trials, row = np.random.default_rng(0), 8_000, np.float32(probs)
    counts = Counter(tuple(draw_without_replacement(row, 3, rng).tolist()) for _ in range(num_trials))
    outcomes = list(itertools.permutations(range(4), 3))
    expected = [num_trials * ordered_draw_probability(row, outcome) for outcome in outcomes]
    assert sum(expected) == pytest.approx(num_trials)
    assert chi_square_p_value([counts[outcome] for outcome in outcomes], expected) > 1e-3


def test_draws_have_the_law_of_gumbel_top_k() -> None:
    """The definition: the largest of log Q + Gumbel noise, in order. Seed 1, 20,000 draws, p > 0.001."""
    rng, num_trials = np.random.default_rng(1), 20_000
    probs = np.array([0.6, 0.25, 0.1, 0.05])
    noisy = np.log(probs) + rng.gumbel(size=(num_trials, 4))
    counts = Counter(map(tuple, np.argsort(-noisy, axis=1)[:, :3].tolist()))
    outcomes = list(itertools.permutations(range(4), 3))
    expected = [num_trials * ordered_draw_probability(probs, outcome) for outcome in outcomes]
    assert chi_square_p_value([counts[outcome] for outcome in outcomes], expected) > 1e-3


def test_unlikely_tokens_are_proposed_as_often_as_they_should() -> None:
    """Half-precision noise never proposed tokens below 1e-4. Seed 2, 4,000 first draws, p > 0.001."""
    rng, num_tokens = np.random.default_rng(2), 32_000
    probs = logits_to_probs(
        (rng.standard_normal(num_tokens) * 2).astype(np.float32), SamplingParams(temperature=1), dtype=np.float32
    )
    edges = [0, 1e-5, 3e-5, 1e-4, 1e-3, 1]
    counts, expected = np.zeros(5), np.histogram(probs, edges, weights=probs.astype(float))[0]
    for _ in range(4000):
        counts += np.histogram(probs[draw_without_replacement(probs, 1, rng)], edges)[0]
    assert expected[0] > 0.02
    assert chi_square_p_value(counts, 4000 * expected / expected.sum()) > 1e-3


def test_a_hopelessly_unlikely_tail_is_still_drawn_in_proportion() -> None:
    """Once the only likely token is gone the tail is all there is. Seed 3, 5,000 draws, p > 0.001."""
    rng, probs = np.random.default_rng(3), np.float32([3e-30, 1, 1e-30, 0])
    draws = np.array([draw_without_replacement(probs, 4, rng) for _ in range(5000)])
    assert (draws[:, 0] == 1).all()
    assert (draws[:, 3] == 3).all()
    assert chi_square_p_value([(draws[:, 1] == 0).sum(), (draws[:, 1] == 2).sum()], [3750, 1250]) > 1e-3


def test_rounds_are_independent() -> None:
    """Noise reused from round to round was a defect of an earlier system. Seed 4, 9,000 pairs, p > 0.001."""
    rng, row = np.random.default_rng(4), np.float32([0.5, 0.3, 0.2])
    firsts = [int(draw_without_replacement(row, 2, rng)[0]) for _ in range(18_000)]
    counts = Counter(zip(firsts[::2], firsts[1::2], strict=True))
    expected = [9000 * float(row[a]) * float(row[b]) for a in range(3) for b in range(3)]
    assert chi_square_p_value([counts[a, b] for a in range(3) for b in range(3)], expected) > 1e-3


def test_draws_are_different_tokens_and_repeat_with_the_seed() -> None:
    probs = np.zeros(2000, dtype=np.float32)
    probs[[3, 700, 1999]] = [0.2, 0.5, 0.3]
    first = draw_without_replacement(probs, 50, np.random.default_rng(5))
    assert sorted(first[:3].tolist()) == [3, 700, 1999]
    assert len(set(first.tolist())) == 50
    assert first.tolist() == draw_without_replacement(probs, 50, np.random.default_rng(5)).tolist()
    assert sorted(draw_without_replacement(np.float32([0, 1]), 2, np.random.default_rng(5)).tolist()) == [0, 1]


def test_more_draws_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="3 different tokens"):
        draw_without_replacement(np.float32([0.5, 0.5]), 3, np.random.default_rng(0))


def test_draws_end_with_the_mass() -> None:
    drawn = draw_while_mass(np.float32([0, 0.5, 0, 0.5]), 4, np.random.default_rng(0))
    assert sorted(drawn.tolist()) == [1, 3]
    assert len(draw_while_mass(np.zeros(4, dtype=np.float32), 2, np.random.default_rng(0))) == 0


def test_draws_with_replacement_are_independent() -> None:
    """Seed 8, 4,000 pairs, p > 0.001."""
    rng, row = np.random.default_rng(8), np.float32([0.5, 0.5, 0])
    pairs = Counter(tuple(draw_with_replacement(row, 2, rng).tolist()) for _ in range(4000))
    assert chi_square_p_value([pairs[a, b] for a in range(2) for b in range(2)], [1000] * 4) > 1e-3
    assert set(pairs) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_sample_follows_the_distribution() -> None:
    """Blocks and their seams included. Seed 6, 20,000 samples, p > 0.001."""
    rng, probs = np.random.default_rng(6), np.zeros(1300)
    tokens = [0, 511, 512, 1299]
    probs[tokens] = [0.1, 0.2, 0.3, 0.4]
    counts = Counter(sample(probs, rng) for _ in range(20_000))
    assert set(counts) == set(tokens)
    assert chi_square_p_value([counts[token] for token in tokens], [2000, 4000, 6000, 8000]) > 1e-3


class EdgeGenerator:
    """A generator whose uniform numbers are the largest below 1."""

    def random(self) -> float:
        return float(np.nextafter(1, 0))


def test_rounding_never_picks_a_token_without_probability() -> None:
    probs = np.zeros(1500)
    probs[[10, 600]] = [1 / 3, 1e-20]
    assert sample(probs, EdgeGenerator()) in (10, 600)
    assert sample(np.array([0.0, 0.3, 0.0]), EdgeGenerator()) == 1


def test_nothing_can_be_sampled_from_no_mass() -> None:
    with pytest.raises(ValueError, match="without mass"):
        sample(np.zeros(4), np.random.default_rng(0))
