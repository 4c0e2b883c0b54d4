"""The two slowdowns are recovered from passes that obey them, and only from those that show them."""

import pytest

from profiles.cost_fit import CostLaw
from profiles.slowdown import Overlap, OverlapLimits, measure_overlap
from tests.support.generator_ends import drained

LAW = CostLaw(base_seconds=0.2, token_seconds=0.02, attention_seconds=0.0)
RING_SHARE = 1 / 28


class SharedCores:
    """Copies of T seconds, drifting, and computation by LAW, each slowing the other."""

    def __init__(self, copies: float, *, copy_slowdown: float, compute_slowdown: float) -> None:
        self.copies = copies
        self.slowdowns = (copy_slowdown, compute_slowdown)
        self.num_calls = 0

    def time_copies(self) -> float:
        self.num_calls += 1
        return self.copies

    def time_pass(self, num_tokens: int, context_tokens: int) -> float:
        return LAW(num_tokens, context_tokens)

    def time_streamed_pass(self, num_tokens: int, context_tokens: int) -> tuple[float, float]:
        computing = LAW(num_tokens, context_tokens)
        taken = max(self.copies + self.slowdowns[0] * computing, computing + self.slowdowns[1] * self.copies)
        return taken - RING_SHARE * self.copies * (computing < self.copies), taken


def find(probes: SharedCores, *, max_tokens: int = 256, num_looks: int = 3, seconds: float = 1e9) -> Overlap:
    looks = measure_overlap(probes, LAW, OverlapLimits(max_tokens, 128, num_looks, lambda wanted: wanted <= seconds))
    said, found = drained(looks)
    assert all(said)
    return found


def test_both_slowdowns_are_recovered() -> None:
    found = find(SharedCores(2.0, copy_slowdown=0.3, compute_slowdown=0.25))
    assert found.copy_slowdown == pytest.approx(0.3)
    assert found.compute_slowdown == pytest.approx(0.25)
    assert found.link_bound_tokens == 50  # 0.2 + 50 * 0.02 = 0.6 * 2
    assert found.compute_bound_tokens == 120
    assert found.copy_seconds == 2.0


def test_links_that_share_nothing_slow_nothing() -> None:
    found = find(SharedCores(2.0, copy_slowdown=0.0, compute_slowdown=0.0), num_looks=1)
    assert (found.copy_slowdown, found.compute_slowdown) == (0.0, 0.0)


def test_a_pass_faster_than_its_parts_is_not_a_negative_slowdown() -> None:
    found = find(SharedCores(2.0, copy_slowdown=-0.1, compute_slowdown=-0.1))
    assert (found.copy_slowdown, found.compute_slowdown) == (0.0, 0.0)


def test_a_fast_link_never_waits_for_bytes_and_a_slow_one_never_for_products() -> None:
    fast = find(SharedCores(0.1, copy_slowdown=0.5, compute_slowdown=0.5))
    assert (fast.copy_slowdown, fast.link_bound_tokens) == (None, None)
    assert fast.compute_slowdown == pytest.approx(0.5)
    slow = find(SharedCores(50.0, copy_slowdown=0.5, compute_slowdown=0.5))
    assert (slow.compute_slowdown, slow.compute_bound_tokens) == (None, None)
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
