"""Noise that anybody can compute again: by seed and position, whatever was asked before."""

import numpy as np
import pytest

from runtime.speculation.position_noise import PositionNoise, _fill_with_noise
from tests.support.chi_square import chi_square_p_value


def test_the_values_are_these_on_every_machine() -> None:
    """Pinned: an answer with a seed should come out the same next year. Only the logarithm's last bit may differ."""
    expected = [0.44661611, 0.34942427, -1.2310883, -0.33714238]
    np.testing.assert_allclose(PositionNoise(7).at(100, 4), expected, rtol=1e-6)


def test_it_is_gumbel_noise() -> None:
    """Twenty cells of equal probability. Seed 1, 200,000 values, p > 0.001."""
    noise = np.concatenate([PositionNoise(1).at(position, 40_000) for position in range(5)]).astype(float)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    shares = np.exp(-np.exp(-noise))
    counts, _ = np.histogram(shares, np.linspace(0, 1, 21))
    assert chi_square_p_value(counts, np.full(20, 10_000)) > 1e-3


def test_the_upper_tail_is_that_of_gumbel_noise() -> None:
    """Large noise makes unlikely tokens win: half-precision noise has none. Seed 2, 4,000,000 values, p > 0.001."""
    noise = np.concatenate([PositionNoise(2).at(position, 200_000) for position in range(20)]).astype(float)
    edges = np.array([8, 9, 10, 11, 12, np.inf])
    cumulative = 1 - np.exp(-np.exp(-edges))
    counts, _ = np.histogram(noise, edges)
    expected = 4_000_000 * -np.diff(cumulative)
    assert chi_square_p_value([*counts, 4_000_000 - counts.sum()], [*expected, 4_000_000 - expected.sum()]) > 1e-3


def test_a_smaller_vocabulary_has_the_beginning_of_a_larger_ones_noise() -> None:
    """Draft and target differ by padding. Either may ask first."""
    larger = PositionNoise(3).at(5, 20_011)
    noise = PositionNoise(3)
    for num_tokens in (1, 7, 8192, 8193, 20_011, 3):
        np.testing.assert_array_equal(noise.at(5, num_tokens), larger[:num_tokens])


def test_neither_order_nor_a_full_cache_changes_a_vector() -> None:
    noise = PositionNoise(4, max_cached_positions=2)
    first = [noise.at(position, 9).tolist() for position in range(6)]
    assert [noise.at(position, 9).tolist() for position in reversed(range(6))] == first[::-1]


def test_a_position_that_is_asked_for_again_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, computed = PositionNoise(5, max_cached_positions=3), []
    compute = noise._compute
    monkeypatch.setattr(noise, "_compute", lambda position, num: computed.append(position) or compute(position, num))
    for position in (0, 1, 2, 0, 3, 0, 1):  # 3 drives 1 out, the least recently used
        noise.at(position, 8)
    assert computed == [0, 1, 2, 3, 1]


def test_seeds_and_positions_are_independent() -> None:
    """Correlation of 100,000 values: below 4.5 standard errors."""
    vectors = [PositionNoise(seed).at(position, 100_000) for seed, position in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    vectors.append(np.roll(vectors[0], 1))
    correlations = np.corrcoef(np.array(vectors, dtype=float))
    assert abs(correlations[~np.eye(5, dtype=bool)]).max() < 4.5 / np.sqrt(100_000)


@pytest.mark.parametrize("seed", [0, 2**63, 2**128 + 1, 10**50])
def test_any_seed_and_any_position_will_do(seed: int) -> None:
    assert np.isfinite(PositionNoise(seed).at(2**40, 16)).all()


def test_the_most_extreme_bits_are_finite() -> None:
    noise = np.empty(2, dtype=np.float32)
    _fill_with_noise(noise, np.array([0, 2**64 - 1], dtype=np.uint64))
    assert noise.tolist() == pytest.approx([-np.log(53 * np.log(2)), 53 * np.log(2)])


def test_a_vector_is_float32_and_cannot_be_written_to() -> None:
    vector = PositionNoise(6).at(0, 10)
    assert vector.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1
