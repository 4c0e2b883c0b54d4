"""Copies to and from the simulated device take their time, hold the host up or do not, and need events for order."""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from runtime.model.upload import upload
from tests.support import simulated_device as sim
from tests.support.sim_checks import SimChecks
from tests.support.simulated_memory import MIB, link_speed, pinned, slot_of

CHECKS = SimChecks(__file__)
check = CHECKS.check


# --------------------------------------------------------------------------------------------------------------- copies


@check
def a_copy_from_pinned_memory_is_asynchronous_and_paced() -> None:
    source, slot = pinned(8 * MIB, 7), slot_of(8 * MIB)
    device = torch.device("sim:0")
    sim.reset_counters()
    seconds = []
    with link_speed(160 * MIB):
        while len(seconds) < 5 or (len(seconds) < 50 and min(seconds) >= 0.055):  # on a busy machine threads wake late
            begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
            begin.record()
            slot.copy_(source, non_blocking=True)
            end.record()
            assert not end.query()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000)
    assert min(seconds) >= 0.05
    assert min(seconds) < 0.055, seconds
    assert slot.eq(7).all()
    assert sim.num_synchronous_copies() == 0
    assert sim.bytes_to_device() == len(seconds) * 8 * MIB


@check
def small_arrays_cross_in_one_copy_that_nobody_waits_for() -> None:
    """Nor is their block given to the next ones while the link still reads it."""
    device = torch.device("sim:0")
    sim.reset_counters()
    with link_speed(MIB):
        uploaded = [
            upload((np.full(900, step), np.array([[step % 2 == 0] * 3] * 5), np.float32([step])), device)
            for step in range(12)
        ]
        assert sim.num_waiting_uploads() == sim.num_event_synchronisations() == 0
        torch.accelerator.synchronize()
    for step, (numbers, flags, single) in enumerate(uploaded):
        assert numbers.cpu().eq(step).all() and flags.cpu().eq(step % 2 == 0).all() and single.item() == step
    assert sim.bytes_to_device() == 12 * (7200 + 16 + 16)
    assert sim.num_hazards() == 0


@check
def all_streams_share_one_copy_engine() -> None:
    streams = [torch.Stream(torch.device("sim:0")) for _ in range(3)]
    source = pinned(MIB, 1)
    slots = [slot_of(MIB) for _ in streams]
    with link_speed(20 * MIB):
        began = time.perf_counter()
        for stream, slot in zip(streams, slots, strict=True):
            with stream:
                slot.copy_(source, non_blocking=True)
        torch.accelerator.synchronize()
    assert time.perf_counter() - began >= 0.15


@check
def the_other_direction_has_an_engine_of_its_own() -> None:
    up, down = (torch.Stream(torch.device("sim:0")) for _ in range(2))
    source, target = pinned(4 * MIB, 1), pinned(4 * MIB, 0)
    slot, full = slot_of(4 * MIB), slot_of(4 * MIB)
    seconds = [1.0]
    with link_speed(10 * MIB):
        while len(seconds) < 10 and min(seconds) >= 0.7:  # on a busy machine threads wake late
            began = time.perf_counter()
            with up:
                slot.copy_(source, non_blocking=True)
            with down:
                target.copy_(full, non_blocking=True)
            torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - began)
    assert 0.4 <= min(seconds) < 0.7


@check
def a_copy_from_pageable_memory_makes_the_host_wait_and_is_counted() -> None:
    source, slot = torch.ones(MIB, dtype=torch.uint8), slot_of(MIB)
    sim.reset_counters()
    with link_speed(20 * MIB):
        began = time.perf_counter()
        slot.copy_(source, non_blocking=True)
        assert time.perf_counter() - began >= 0.05
    assert torch.accelerator.current_stream().query()
    assert sim.num_synchronous_copies() == 1
    assert sim.synchronous_copy_bytes() == MIB


@check
def a_blocking_copy_is_nobodys_mistake() -> None:
    source, slot = pinned(1000, 5), slot_of(1000)
    sim.reset_counters()
    slot.copy_(source)
    slot.copy_(torch.ones(1000, dtype=torch.uint8))
    assert sim.num_synchronous_copies() == 0


@check
def a_copy_that_converts_is_synchronous_and_right() -> None:
    source = torch.arange(6, dtype=torch.float32).reshape(2, 3).pin_memory()
    slot = torch.empty(3, 2, dtype=torch.bfloat16, device="sim:0")
    sim.reset_counters()
    slot.copy_(source.T, non_blocking=True)
    assert sim.num_synchronous_copies() == 1
    assert slot.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert slot.float().T.cpu().equal(source)
    assert torch.zeros(2, 3).copy_(torch.arange(3.0, device="sim:0")).tolist() == [[0, 1, 2]] * 2


@check
def a_source_that_is_changed_too_early_arrives_changed() -> None:
    source, slot = pinned(1000, 1), slot_of(1000)
    sim.delay_stream(0.1)
    slot.copy_(source, non_blocking=True)
    source.fill_(2)
    assert slot.eq(2).all()


@check
def a_source_that_is_let_go_stays_until_it_is_copied() -> None:
    before = sim.registered_bytes()
    slot = slot_of(1000)
    sim.delay_stream(0.1)
    slot.copy_(pinned(1000, 3), non_blocking=True)
    assert sim.registered_bytes() > before
    assert slot.eq(3).all()
    assert sim.registered_bytes() == before


@check
def a_read_into_pinned_memory_is_asynchronous() -> None:
    target, full = pinned(1000, 0), torch.full((1000,), 9, dtype=torch.uint8, device="sim:0")
    done = torch.Event(torch.device("sim:0"))
    sim.delay_stream(0.1)
    target.copy_(full, non_blocking=True)
    done.record()
    assert not done.query()
    assert target.eq(0).all()
    done.synchronize()
    assert target.eq(9).all()


# ------------------------------------------------------------------------------------------------------------- ordering


def stream_two_layers(*, waits_for_copy: bool, waits_for_compute: bool) -> list[int]:
    """Two layers through one slot, each with a slow copy and a slow kernel; what the kernels read of them."""
    device = torch.device("sim:0")
    copies, compute = torch.Stream(device), torch.accelerator.current_stream()
    slot, results = slot_of(MIB), [slot_of(MIB) for _ in range(2)]
    copy_done, compute_done = torch.Event(device), torch.Event(device)
    torch.accelerator.synchronize()
    sim.reset_counters()
    with link_speed(20 * MIB):
        for index, result in enumerate(results):
            with copies:
                if waits_for_compute:
                    copies.wait_event(compute_done)
                slot.copy_(pinned(MIB, index + 1), non_blocking=True)
                copy_done.record()
            if waits_for_copy:
                compute.wait_event(copy_done)
            sim.delay_stream(0.02)
            result.copy_(slot, non_blocking=True)
            compute_done.record(compute)
        torch.accelerator.synchronize()
    return [int(result[-1].item()) for result in results]


@check
def events_keep_copies_and_computation_in_order() -> None:
    assert stream_two_layers(waits_for_copy=True, waits_for_compute=True) == [1, 2]
    assert sim.hazards() == []


@check
def a_copy_that_waits_for_nothing_overwrites_what_computation_reads() -> None:
    assert stream_two_layers(waits_for_copy=True, waits_for_compute=False) != [1, 2]
    assert any("overwrites bytes that a copy on stream 0 reads" in hazard for hazard in sim.hazards())


@check
def computation_that_does_not_wait_reads_what_is_not_there_yet() -> None:
    assert stream_two_layers(waits_for_copy=False, waits_for_compute=True) != [1, 2]
    assert any("reads bytes that a copy from the host" in hazard for hazard in sim.hazards())


@check
def a_missing_wait_is_reported_even_when_it_did_no_harm() -> None:
    """Kernels run while the host looks on, so the next copy comes too late to hurt: on a real device it would not."""
    copies = torch.Stream(torch.device("sim:0"))
    weight = torch.ones(8, 8, device="sim:0")
    source = torch.zeros(8, 8).pin_memory()
    torch.accelerator.synchronize()
    done = torch.Event(torch.device("sim:0"))
    for has_wait in (True, False):
        sim.reset_counters()
        assert F.linear(torch.ones(1, 8, device="sim:0"), weight).shape == (1, 8)
        done.record()
        with copies:
            if has_wait:
                copies.wait_event(done)
            weight.copy_(source, non_blocking=True)
        assert [sim.num_hazards(), len(sim.hazards())] == ([0, 0] if has_wait else [1, 1])
        torch.accelerator.synchronize()
    assert sim.num_hazards() == 1
    sim.reset_counters()
    assert sim.hazards() == []


@check
def waiting_on_the_host_orders_too() -> None:
    copies = torch.Stream(torch.device("sim:0"))
    slot, source, done = slot_of(1000), pinned(1000, 4), torch.Event(torch.device("sim:0"))
    waits: list[Callable[[], object]] = [done.synchronize, copies.synchronize, torch.accelerator.synchronize]
    for wait in waits:
        torch.accelerator.synchronize()
        sim.reset_counters()
        with copies:
            slot.copy_(source, non_blocking=True)
            done.record()
        wait()
        assert slot.eq(4).all()
        assert sim.hazards() == []


@check
def parts_of_a_slot_are_told_apart() -> None:
    copies = torch.Stream(torch.device("sim:0"))
    slot, source = slot_of(3000), pinned(1000, 4)
    torch.accelerator.synchronize()
    sim.reset_counters()
    with copies:
        slot[1000:2000].copy_(source, non_blocking=True)
    slot[:1000].add_(1)
    slot[2000:].add_(1)
    assert sim.hazards() == []
    slot[1500:2500].add_(1)
    assert sim.num_hazards() == 1
    torch.accelerator.synchronize()


test_simulated_device = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
