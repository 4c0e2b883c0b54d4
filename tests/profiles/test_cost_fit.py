"""Known laws are recovered, and what was not measured is flagged and joins what was."""

import numpy as np
import pytest

from profiles.cost_fit import CostLaw, CostSample, fill_passes, fill_steps, fit_costs, rate_and_latency

LAW = CostLaw(base_seconds=0.3, token_seconds=0.02, attention_seconds=2e-6)


def samples_of(law: CostLaw, cells: list[tuple[int, int]]) -> list[CostSample]:
    return [CostSample(size, context, law(size, context)) for size, context in cells]


def test_a_law_is_recovered_from_sizes_and_two_contexts() -> None:
    law = fit_costs(samples_of(LAW, [(1, 128), (4, 128), (64, 128), (256, 128), (64, 2048)]))
    assert law(1024, 4096) == pytest.approx(LAW(1024, 4096), rel=1e-6)
    assert law.base_seconds == pytest.approx(0.3, rel=1e-6)


def test_a_noisy_law_is_recovered_within_the_noise() -> None:
    """Relative errors count, so that the smallest pass is described as well as the largest."""
    rng = np.random.default_rng(3)
    cells = [(size, 128) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)] + [(64, 2048), (256, 2048)]
    noisy = [
        CostSample(item.num_tokens, item.context_tokens, item.seconds * float(rng.normal(1, 0.02)))
        for item in samples_of(LAW, cells)
    ]
    law = fit_costs(noisy)
    for size, context, within in [(1, 128, 0.04), (32, 512, 0.04), (1024, 4096, 0.15)]:
        assert law(size, context) == pytest.approx(LAW(size, context), rel=within)


def test_no_coefficient_is_negative_whatever_was_measured() -> None:
    """A cold first run makes a small pass slower than a large one."""
    law = fit_costs([CostSample(1, 128, 2.0), CostSample(64, 128, 1.0), CostSample(64, 2048, 0.5)])
    assert min(law.base_seconds, law.token_seconds, law.attention_seconds) >= 0
    assert law(64, 128) > 0


def test_sizes_behind_one_context_say_nothing_of_attention() -> None:
    """Kernels bend: doubled cost per token at 64 must not become quadratic growth at 1024."""
    law = fit_costs([CostSample(1, 128, 0.3), CostSample(16, 128, 0.5), CostSample(64, 128, 2.5)])
    assert law.attention_seconds == 0.0


def test_one_size_alone_is_a_constant() -> None:
    assert fit_costs([CostSample(8, 128, 0.7)])(1024, 4096) == pytest.approx(0.7)


def test_the_grid_is_complete_ascending_and_flagged() -> None:
    measured = samples_of(LAW, [(1, 128), (64, 128), (64, 2048)])
    costs = fill_passes(measured, sizes=(1, 64, 1024), contexts=(128, 4096))
    keys = [(cost.context_tokens, cost.num_tokens) for cost in costs]
    assert keys == [(128, 1), (128, 64), (128, 1024), (2048, 64), (4096, 1), (4096, 64), (4096, 1024)]
    assert [cost.is_fitted for cost in costs] == [False, False, True, False, True, True, True]
    assert [cost.seconds for cost in costs] == pytest.approx([LAW(size, context) for context, size in keys], rel=1e-6)


def test_fitted_sizes_join_the_measured_ones() -> None:
    """Where the law misses the largest measured size by 20 %, the next size must not be a fifth cheaper."""
    law = CostLaw(0.0, 0.01, 0.0)
    measured = [*samples_of(law, [(1, 0), (2, 0), (4, 0), (8, 0)]), CostSample(64, 0, 1.25 * law(64, 0))]
    (cost,) = (cost for cost in fill_passes(measured, sizes=(128,), contexts=(0,)) if cost.is_fitted)
    assert cost.seconds == pytest.approx(2 * 1.25 * law(64, 0), rel=1e-6)


def test_steps_are_filled_by_width() -> None:
    steps = fill_steps(samples_of(CostLaw(0.05, 0.001, 0.0), [(1, 256), (16, 256)]), widths=(1, 4, 16, 64))
    assert [(step.width, step.is_fitted) for step in steps] == [(1, False), (4, True), (16, False), (64, True)]
    assert [step.seconds for step in steps] == pytest.approx([0.051, 0.054, 0.066, 0.114])


def test_rate_and_latency_of_a_link_are_recovered() -> None:
    samples = [(num_bytes, 1e-4 + num_bytes / 2e9) for num_bytes in (1 << 16, 1 << 20, 1 << 23, 1 << 26)]
    rate, latency = rate_and_latency(samples)
    assert rate == pytest.approx(2e9, rel=1e-9)
    assert latency == pytest.approx(1e-4, rel=1e-6)


def test_chance_cannot_make_a_link_infinitely_fast() -> None:
    rate, latency = rate_and_latency([(1 << 20, 0.001), (1 << 26, 0.05), (1 << 28, 0.0501)])
    assert rate == pytest.approx(2 * (1 << 28) / 0.0501)
    assert latency >= 0
    assert rate_and_latency([(100, 0.5)]) == (200.0, 0.0)
