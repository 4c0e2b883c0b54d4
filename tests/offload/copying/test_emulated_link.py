"""Pacing on a virtual clock, to the last bit; and that nothing else changes."""

import threading
import time

import pytest
import torch

from offload.copying.copy_engine import HostSource
from offload.copying.emulated_link import EmulatedLink, wait_until
from offload.errors import LinkError, PassCancelledError
from offload.units import LinkSpeed
from tests.support.fakes import ExclusiveLink, InstantEngine, VirtualClock

LINK = LinkSpeed(bytes_per_second=100.0, latency_seconds=0.5)


def source(num_bytes: int) -> HostSource:
    return HostSource(torch.zeros(4, dtype=torch.uint8), num_bytes)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def slot() -> torch.Tensor:
    return torch.zeros(4, dtype=torch.uint8)


def test_a_copy_takes_latency_plus_bytes_over_bandwidth(clock: VirtualClock, slot: torch.Tensor) -> None:
    link = EmulatedLink(InstantEngine(), LINK, clock=clock, wait=clock.wait_until)
    copy = link.start(source(200), slot)
    assert (clock.now, copy.is_done) == (0.0, False)
    copy.wait()
    assert (clock.now, copy.is_done) == (2.5, True)
    copy.wait()
    assert clock.now == 2.5


def test_copies_queue_on_the_link_and_an_idle_link_starts_at_submission(
    clock: VirtualClock, slot: torch.Tensor
) -> None:
    link = EmulatedLink(InstantEngine(), LINK, clock=clock, wait=clock.wait_until)
    first, second = link.start(source(100), slot), link.start(source(300), slot)
    second.wait()
    assert (clock.now, first.is_done) == (1.5 + 3.5, True)
    clock.compute(10.0)
    third = link.start(source(50), slot)
    third.wait()
    assert clock.now == 15.0 + 1.0


def test_the_way_back_takes_as_long_and_is_a_way_of_its_own(clock: VirtualClock, slot: torch.Tensor) -> None:
    link = EmulatedLink(InstantEngine(), LINK, clock=clock, wait=clock.wait_until)
    there = link.start(source(400), slot)
    back = [link.bring_back(torch.ones(100, dtype=torch.uint8), torch.zeros(100, dtype=torch.uint8)) for _ in range(2)]
    back[0].wait()
    assert (clock.now, back[1].is_done, there.is_done) == (1.5, False, False)
    back[1].wait()
    assert clock.now == 3.0
    there.wait()
    assert clock.now == 4.5


def test_a_slower_engine_below_decides(clock: VirtualClock, slot: torch.Tensor) -> None:
    below = ExclusiveLink(clock, {100: 9.0})
    copy = EmulatedLink(below, LINK, clock=clock, wait=clock.wait_until).start(source(100), slot)
    copy.wait()
    assert clock.now == 9.0


def test_busy_time_is_what_copies_have_occupied_so_far(clock: VirtualClock, slot: torch.Tensor) -> None:
    link = EmulatedLink(InstantEngine(), LINK, clock=clock, wait=clock.wait_until)
    seen = []
    link.start(source(100), slot)  # 0 .. 1.5
    link.start(source(50), slot)  # 1.5 .. 2.5
    for step in (0.0, 1.0, 1.0, 1.0, 2.0):
        clock.compute(step)
        seen.append(link.busy_seconds)
    link.start(source(100), slot)  # 5 .. 6.5
    clock.compute(1.0)
    seen.append(link.busy_seconds)
    assert seen == [0.0, 1.0, 2.0, 2.5, 2.5, 3.5]


def test_a_cancelled_wait_ends_before_the_copy_is_due(clock: VirtualClock, slot: torch.Tensor) -> None:
    copy = EmulatedLink(InstantEngine(), LINK, clock=clock, wait=clock.wait_until).start(source(100), slot)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(PassCancelledError):
        copy.wait(cancel)
    assert clock.now == 0.0


def test_an_abandoned_copy_is_not_waited_for_but_keeps_its_place_on_the_link(
    clock: VirtualClock, slot: torch.Tensor
) -> None:
    link = EmulatedLink(InstantEngine(), LINK, clock=clock, wait=clock.wait_until)
    copy = link.start(source(100), slot)
    copy.abandon()
    copy.wait()
    assert (clock.now, copy.is_done) == (0.0, True)
    link.start(source(100), slot).wait()
    assert clock.now == 3.0


def test_failures_bytes_release_and_close_belong_to_the_engine_below(clock: VirtualClock, slot: torch.Tensor) -> None:
    below = InstantEngine()
    below.failing = {1}
    link = EmulatedLink(below, LINK, clock=clock, wait=clock.wait_until)
    link.start(source(100), slot).wait()
    with pytest.raises(LinkError):
        link.start(source(100), slot).wait()
    link.release(slot)
    link.close()
    assert (link.bytes_copied, below.num_released, below.is_closed) == (100, 1, True)


def test_the_real_wait_ends_at_its_deadline_or_at_once() -> None:
    began = time.perf_counter()
    wait_until(began - 1.0, None)
    wait_until(began + 0.002, None)
    wait_until(began + 0.004, threading.Event())
    assert time.perf_counter() >= began + 0.004
    cancel = threading.Event()
    cancel.set()
    wait_until(began + 1000.0, cancel)
    assert time.perf_counter() < began + 100.0
