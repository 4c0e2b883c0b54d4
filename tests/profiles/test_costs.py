"""Known laws are recovered, and what was not measured is flagged and joins what was; so are known slowdowns."""

import numpy as np
import pytest

from profiles.costs import CostLaw, Overlap, fill_passes, fill_steps, fit_costs, measure_overlap, rate_and_latency
from profiles.machine_profile import TransferSample
from profiles.pair_profile import PassCost
from tests.support.generator_ends import drained

LAW = CostLaw(base_seconds=0.3, token_seconds=0.02, attention_seconds=2e-6)


def samples_of(law: CostLaw, cells: list[tuple[int, int]]) -> list[PassCost]:
    return [PassCost(size, context, law(size, context)) for size, context in cells]


def test_a_law_is_recovered_from_sizes_and_two_contexts() -> None:
    law = fit_costs(samples_of(LAW, [(1, 128), (4, 128), (64, 128), (256, 128), (64, 2048)]))
    assert law(1024, 4096) == pytest.approx(LAW(1024, 4096), rel=1e-6)
    assert law.base_seconds == pytest.approx(0.3, rel=1e-6)


def test_a_noisy_law_is_recovered_within_the_noise() -> None:
    """Relative errors count, so that the smallest pass is described as well as the largest."""
    rng = np.random.default_rng(3)
    cells = [(size, 128) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)] + [(64, 2048), (256, 2048)]
    noisy = [
        PassCost(item.num_tokens, item.context_tokens, item.seconds * float(rng.normal(1, 0.02)))
        for item in samples_of(LAW, cells)
    ]
    law = fit_costs(noisy)
    for size, context, within in [(1, 128, 0.04), (32, 512, 0.04), (1024, 4096, 0.15)]:
        assert law(size, context) == pytest.approx(LAW(size, context), rel=within)


def test_no_coefficient_is_negative_whatever_was_measured() -> None:
    """A cold first run makes a small pass slower than a large one."""
    law = fit_costs([PassCost(1, 128, 2.0), PassCost(64, 128, 1.0), PassCost(64, 2048, 0.5)])
    assert min(law.base_seconds, law.token_seconds, law.attention_seconds) >= 0
    assert law(64, 128) > 0


def test_sizes_behind_one_context_say_nothing_of_attention() -> None:
    """Kernels bend: doubled cost per token at 64 must not become quadratic growth at 1024."""
    law = fit_costs([PassCost(1, 128, 0.3), PassCost(16, 128, 0.5), PassCost(64, 128, 2.5)])
    assert law.attention_seconds == 0.0


def test_one_size_alone_is_a_constant() -> None:
    assert fit_costs([PassCost(8, 128, 0.7)])(1024, 4096) == pytest.approx(0.7)


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
    measured = [*samples_of(law, [(1, 0), (2, 0), (4, 0), (8, 0)]), PassCost(64, 0, 1.25 * law(64, 0))]
    (cost,) = (cost for cost in fill_passes(measured, sizes=(128,), contexts=(0,)) if cost.is_fitted)
    assert cost.seconds == pytest.approx(2 * 1.25 * law(64, 0), rel=1e-6)


def test_steps_are_filled_by_width() -> None:
    steps = fill_steps(samples_of(CostLaw(0.05, 0.001, 0.0), [(1, 256), (16, 256)]), widths=(1, 4, 16, 64))
    assert [(step.width, step.is_fitted) for step in steps] == [(1, False), (4, True), (16, False), (64, True)]
    assert [step.seconds for step in steps] == pytest.approx([0.051, 0.054, 0.066, 0.114])


def test_rate_and_latency_of_a_link_are_recovered() -> None:
    sizes = (1 << 16, 1 << 20, 1 << 23, 1 << 26)
    rate, latency = rate_and_latency([TransferSample(size, 1e-4 + size / 2e9) for size in sizes])
    assert rate == pytest.approx(2e9, rel=1e-9)
    assert latency == pytest.approx(1e-4, rel=1e-6)


def test_chance_cannot_make_a_link_infinitely_fast() -> None:
    measured = [(1 << 20, 0.001), (1 << 26, 0.05), (1 << 28, 0.0501)]
    rate, latency = rate_and_latency([TransferSample(*sample) for sample in measured])
    assert rate == pytest.approx(2 * (1 << 28) / 0.0501)
    assert latency is not None and latency >= 0
    assert rate_and_latency([TransferSample(100, 0.5)]) == (200.0, 0.0)
    assert rate_and_latency([]) == (None, None)


PASS_LAW = CostLaw(base_seconds=0.2, token_seconds=0.02, attention_seconds=0.0)
RING_SHARE = 1 / 28


class SharedCores:
    """Copies of T seconds, drifting, and computation by PASS_LAW, each slowing the other."""

    def __init__(self, copies: float, *, copy_slowdown: float, compute_slowdown: float) -> None:
        self.copies = copies
        self.slowdowns = (copy_slowdown, compute_slowdown)
        self.num_calls = 0
        self.sizes = set[int]()

    def time_copies(self) -> float:
        self.num_calls += 1
        return self.copies

    def time_pass(self, num_tokens: int, context_tokens: int) -> float:
        self.sizes.add(num_tokens)
        return PASS_LAW(num_tokens, context_tokens)

    def time_streamed_pass(self, num_tokens: int, context_tokens: int) -> tuple[float, float]:
        computing = PASS_LAW(num_tokens, context_tokens)
        taken = max(self.copies + self.slowdowns[0] * computing, computing + self.slowdowns[1] * self.copies)
        return taken - RING_SHARE * self.copies * (computing < self.copies), taken


def find(probes: SharedCores, *, max_tokens: int = 256, num_looks: int = 3, seconds: float = 1e9) -> Overlap:
    looks = measure_overlap(
        probes,  # type: ignore[arg-type]
        PASS_LAW,
        max_tokens=max_tokens,
        context_tokens=128,
        num_looks=num_looks,
        has_time=lambda wanted: wanted <= seconds,
    )
    said, found = drained(looks)
    assert all(said)
    return found


def test_both_slowdowns_are_recovered() -> None:
    probes = SharedCores(2.0, copy_slowdown=0.3, compute_slowdown=0.25)
    found = find(probes)
    assert found.copy_slowdown == pytest.approx(0.3)
    assert found.compute_slowdown == pytest.approx(0.25)
    assert probes.sizes == {50, 120}  # 0.2 + 50 * 0.02 = 0.6 * 2
    assert found.copy_seconds == 2.0


def test_links_that_share_nothing_slow_nothing() -> None:
    found = find(SharedCores(2.0, copy_slowdown=0.0, compute_slowdown=0.0), num_looks=1)
    assert (found.copy_slowdown, found.compute_slowdown) == (0.0, 0.0)


def test_a_pass_faster_than_its_parts_is_not_a_negative_slowdown() -> None:
    found = find(SharedCores(2.0, copy_slowdown=-0.1, compute_slowdown=-0.1))
    assert (found.copy_slowdown, found.compute_slowdown) == (0.0, 0.0)


def test_a_fast_link_never_waits_for_bytes_and_a_slow_one_never_for_products() -> None:
    fast = find(SharedCores(0.1, copy_slowdown=0.5, compute_slowdown=0.5))
    assert fast.copy_slowdown is None
    assert fast.compute_slowdown == pytest.approx(0.5)
    slow = find(SharedCores(50.0, copy_slowdown=0.5, compute_slowdown=0.5))
    assert slow.compute_slowdown is None
    assert slow.copy_slowdown == pytest.approx(0.5)


def test_what_would_not_end_in_time_is_left_out() -> None:
    probes = SharedCores(2.0, copy_slowdown=0.3, compute_slowdown=0.25)
    found = find(probes, seconds=4.5)  # the small pass takes 2 * 1.2 + 2, the large one 2 * 2.6 + 2
    assert found.copy_slowdown == pytest.approx(0.3)
    assert found.compute_slowdown is None
    assert find(probes, seconds=0.0).copy_slowdown is None


def test_copies_are_looked_at_around_each_pass() -> None:
    """A disk that gets slower halfway: the pass is held against the mean of before and after."""
    probes = SharedCores(2.0, copy_slowdown=0.3, compute_slowdown=0.25)
    find(probes, num_looks=2)
    assert probes.num_calls == 3
