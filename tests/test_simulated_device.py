"""The simulated device keeps the rules of a real one, and computes what the CPU computes.

Loading it changes torch for the whole process, so every check below runs in one process of its own (this file, as a
script) and the tests read how each of them went.
"""

import copy
import ctypes
import mmap
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import model_factory
import pytest
import simulated_device as sim
import torch
import torch.nn.functional as F
from sim_checks import SimChecks, needs_compiler
from transformers import PreTrainedModel

MIB = 1 << 20
CHECKS = SimChecks(__file__)
check = CHECKS.check


@contextmanager
def link_speed(bytes_per_second: float) -> Iterator[None]:
    sim.set_copy_bytes_per_second(bytes_per_second)
    try:
        yield
    finally:
        sim.set_copy_bytes_per_second(None)


@contextmanager
def capacity(num_bytes: int) -> Iterator[None]:
    sim.set_capacity_bytes(num_bytes)
    try:
        yield
    finally:
        sim.set_capacity_bytes(1 << 30)


def pinned(num_bytes: int, value: int) -> torch.Tensor:
    return torch.full((num_bytes,), value, dtype=torch.uint8).pin_memory()


def slot_of(num_bytes: int) -> torch.Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8, device="sim:0")


def bytes_at(address: int, num_bytes: int) -> set[int]:
    return set(ctypes.string_at(address, num_bytes))


# ------------------------------------------------------------------------------------------------ torch's own interface


@check
def torch_finds_the_accelerator() -> None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert accelerator == torch.device("sim")
    assert torch.accelerator.device_count() == sim.device_count() == 2
    assert torch.accelerator.current_device_index() == 0
    assert torch.get_device_module("sim") is torch.get_device_module(accelerator)
    assert torch.float32 in torch.accelerator.get_device_capability("sim:0")["supported_dtypes"]


@check
def the_second_device_is_another_one() -> None:
    with torch.accelerator.device_index(1):
        here = torch.ones(3, device="sim")
    there = torch.ones(3, device="sim:0")
    assert (here.device.index, there.device.index) == (1, 0)
    assert here.to("sim:0").add(there).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match=r"same device.*sim:"):
        here + there


@check
def streams_become_current_and_are_put_back() -> None:
    stream = torch.Stream(torch.device("sim:0"))
    before = torch.accelerator.current_stream()
    with stream:
        assert torch.accelerator.current_stream() == stream
    assert torch.accelerator.current_stream() == before != stream
    torch.accelerator.set_stream(stream)
    assert torch.accelerator.current_stream() == stream
    torch.accelerator.set_stream(before)


@check
def streams_come_from_a_pool_as_on_cuda() -> None:
    """A program that makes a stream per pass must not end up with thousands of threads."""
    device = torch.device("sim:0")
    assert len({torch.Stream(device).stream_id for _ in range(100)}) == 32


@check
def each_host_thread_has_its_own_current_stream() -> None:
    found = []
    with torch.Stream(torch.device("sim:0")) as stream:
        thread = threading.Thread(target=lambda: found.append(torch.accelerator.current_stream()))
        thread.start()
        thread.join()
        assert found[0] != stream
        assert found[0].stream_id == 0


@check
def python_goes_on_while_a_thread_waits() -> None:
    """A wait that held the interpreter's lock would freeze the terminal for the length of a pass."""
    sim.delay_stream(0.3)
    waiter = threading.Thread(target=torch.accelerator.synchronize)
    began = time.perf_counter()
    waiter.start()
    num_turns = 0
    while waiter.is_alive() and time.perf_counter() < began + 10:
        time.sleep(0.01)
        num_turns += 1
    assert num_turns > 3


@check
def events_tell_what_has_happened() -> None:
    device = torch.device("sim:0")
    first, last = (torch.Event(device, enable_timing=True) for _ in range(2))
    assert first.query()
    first.record()
    sim.delay_stream(0.1)
    last.record()
    assert first.query()
    assert not last.query()
    assert not torch.accelerator.current_stream().query()
    last.synchronize()
    assert last.query()
    assert torch.accelerator.current_stream().query()
    assert first.elapsed_time(last) >= 100
    with pytest.raises(ValueError, match="enable_timing"):
        torch.Event(device).elapsed_time(last)


@check
def a_stream_waits_for_the_recording_that_was_there_when_it_was_told() -> None:
    device = torch.device("sim:0")
    event, after = torch.Event(device), torch.Event(device)
    event.record()
    other = torch.Stream(device)
    other.wait_event(event)
    sim.delay_stream(0.2)
    event.record()
    after.record(other)
    after.synchronize()
    assert not event.query()
    other.wait_event(event)
    after.record(other)
    assert not after.query()
    after.synchronize()
    assert event.query()


@check
def waiting_is_counted() -> None:
    sim.reset_counters()
    stream, event = torch.Stream(torch.device("sim:0")), torch.Event(torch.device("sim:0"))
    x = torch.arange(4, device="sim:0")
    event.record(stream)
    stream.wait_event(event)
    assert sim.num_device_synchronisations() == sim.num_event_synchronisations() == sim.num_blocking_reads() == 0
    stream.synchronize()
    torch.accelerator.synchronize()
    event.synchronize()
    assert sim.num_device_synchronisations() == 2
    assert sim.num_event_synchronisations() == 1
    host = torch.empty(4, dtype=torch.int64).pin_memory()
    host.copy_(x, non_blocking=True)
    x[x % 2]  # an index that is no mask
    assert sim.num_blocking_reads() == 0
    assert x[1].item() == 1
    x.cpu()
    x[x > 1]
    x.nonzero()
    x[x > 1] = x[:2].flip(0)
    assert sim.num_blocking_reads() == 5


# --------------------------------------------------------------------------------------------------------------- copies


@check
def a_copy_from_pinned_memory_is_asynchronous_and_paced() -> None:
    source, slot = pinned(8 * MIB, 7), slot_of(8 * MIB)
    device = torch.device("sim:0")
    sim.reset_counters()
    seconds = []
    with link_speed(160 * MIB):
        for _ in range(5):
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
    assert sim.bytes_to_device() == 5 * 8 * MIB


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
    with link_speed(10 * MIB):
        began = time.perf_counter()
        with up:
            slot.copy_(source, non_blocking=True)
        with down:
            target.copy_(full, non_blocking=True)
        torch.accelerator.synchronize()
    assert 0.4 <= time.perf_counter() - began < 0.7


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


# --------------------------------------------------------------------------------------------------------------- memory


@check
def new_and_freed_memory_is_poisoned() -> None:
    torch.accelerator.empty_cache()  # else it would be freed memory
    assert torch.empty(3, device="sim:0").isnan().all()
    assert torch.empty(3, dtype=torch.bfloat16, device="sim:0").isnan().all()
    tensor = slot_of(5000)
    address = tensor.data_ptr()
    assert bytes_at(address, 5000) == {0}
    del tensor
    assert bytes_at(address, 5000) == {255}


@check
def the_bytes_of_a_copy_on_its_way_are_poisoned() -> None:
    source, slot = pinned(2 * MIB, 1), slot_of(2 * MIB)
    torch.accelerator.synchronize()
    with link_speed(4 * MIB):
        slot.copy_(source, non_blocking=True)
        deadline = time.perf_counter() + 10
        while bytes_at(slot.data_ptr() + 2 * MIB - 1, 1) == {0} and time.perf_counter() < deadline:
            time.sleep(0.001)
        assert bytes_at(slot.data_ptr() + 2 * MIB - 1, 1) == {255}
        torch.accelerator.synchronize()
    assert bytes_at(slot.data_ptr(), 2 * MIB) == {1}


@check
def too_much_memory_is_refused_and_what_is_cached_is_given_back_first() -> None:
    torch.accelerator.empty_cache()
    with capacity(64 * MIB + torch.accelerator.memory_reserved()):
        free, total = torch.accelerator.get_memory_info()
        assert free == 64 * MIB
        held = slot_of(40 * MIB)
        with pytest.raises(torch.OutOfMemoryError, match=rf"Tried to allocate {30 * MIB} bytes.*sim:0.*{total} bytes"):
            torch.empty(30 * MIB, dtype=torch.uint8, device="sim:0")
        assert torch.accelerator.memory_stats()["num_ooms"] == 1
        address = held.data_ptr()
        del held
        assert torch.accelerator.get_memory_info()[0] == 24 * MIB
        held = torch.empty(60 * MIB, dtype=torch.uint8, device="sim:0")
        assert (held.data_ptr(), held.numel()) != (address, 40 * MIB)
        del held
        torch.accelerator.empty_cache()
        assert torch.accelerator.get_memory_info()[0] == 64 * MIB


@check
def memory_is_counted() -> None:
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    sim.reset_counters()
    tensors = [torch.empty(MIB, dtype=torch.uint8, device="sim:0") for _ in range(3)]
    torch.empty(100, device="sim:0")
    assert torch.accelerator.memory_allocated() == before + 3 * MIB
    assert torch.accelerator.max_memory_allocated() == before + 3 * MIB + mmap.PAGESIZE
    assert sim.num_allocations() == 4
    assert sim.num_allocations(at_least_bytes=MIB) == 3
    tensors.clear()
    assert torch.accelerator.memory_allocated() == before
    assert torch.accelerator.memory_reserved() >= before + 3 * MIB


@check
def freed_memory_belongs_to_the_stream_it_came_from() -> None:
    torch.accelerator.empty_cache()
    other = torch.Stream(torch.device("sim:0"))
    address = slot_of(3 * MIB).data_ptr()
    with other:
        assert slot_of(3 * MIB).data_ptr() != address
    assert slot_of(3 * MIB).data_ptr() == address


@check
def record_stream_keeps_memory_until_the_other_stream_is_done() -> None:
    torch.accelerator.empty_cache()
    other = torch.Stream(torch.device("sim:0"))
    tensor = slot_of(3 * MIB)
    address = tensor.data_ptr()
    with other:
        sim.delay_stream(0.2)
    tensor.record_stream(other)
    del tensor
    assert slot_of(3 * MIB).data_ptr() != address
    torch.accelerator.empty_cache()
    assert torch.accelerator.memory_reserved() == torch.accelerator.memory_allocated()


@check
def freeing_behind_a_queued_reader_of_the_same_stream_is_safe() -> None:
    """The poison comes in the stream's order, so what was queued before still reads the old bytes."""
    target, full = pinned(1000, 0), torch.full((1000,), 9, dtype=torch.uint8, device="sim:0")
    sim.delay_stream(0.1)
    target.copy_(full, non_blocking=True)
    del full
    torch.accelerator.synchronize()
    assert target.eq(9).all()


# --------------------------------------------------------------------------------------------------- pinned host memory


@check
def torch_pins_host_memory() -> None:
    before = sim.registered_bytes()
    tensor = torch.empty(MIB, dtype=torch.uint8, pin_memory=True)
    assert tensor.is_pinned()
    assert tensor[5:].is_pinned()
    assert not torch.empty(5).is_pinned()
    assert torch.empty(5).pin_memory().is_pinned()
    assert sim.registered_bytes() == before + MIB
    del tensor
    torch.accelerator.empty_host_cache()
    assert sim.registered_bytes() == before


@check
def foreign_memory_is_registered_up_to_the_limit() -> None:
    memory = mmap.mmap(-1, 4 * MIB)
    slab = torch.frombuffer(memory, dtype=torch.uint8)
    slot, address = slot_of(4 * MIB), slab.data_ptr()
    sim.set_registrable_bytes(sim.registered_bytes() + 3 * MIB)
    try:
        assert sim.host_register(address, 4 * MIB) == sim.OUT_OF_MEMORY
        assert sim.host_register(address, 0) == sim.host_register(0, 10) == sim.INVALID_VALUE
        assert not slab.is_pinned()
        assert sim.host_register(address, 2 * MIB) == sim.SUCCESS
        assert slab.is_pinned()
        assert sim.host_register(address + MIB, 2 * MIB) == sim.ALREADY_REGISTERED
        assert sim.host_register(address + 2 * MIB, 2 * MIB) == sim.OUT_OF_MEMORY
        assert sim.host_register(address + 2 * MIB, MIB) == sim.SUCCESS
        with pytest.raises(RuntimeError, match="cannot pin"):
            torch.empty(MIB, dtype=torch.uint8, pin_memory=True)
    finally:
        sim.set_registrable_bytes(None)
    sim.reset_counters()
    for begin, end in ((0, MIB), (2 * MIB, 3 * MIB)):
        slot[begin:end].copy_(slab[begin:end], non_blocking=True)
    assert sim.num_synchronous_copies() == 0
    for begin, end in ((MIB, 3 * MIB), (2 * MIB, 4 * MIB)):  # over two registrations, beyond the last one
        slot[begin:end].copy_(slab[begin:end], non_blocking=True)
    assert sim.num_synchronous_copies() == 2
    assert sim.host_unregister(address + 1) == sim.NOT_REGISTERED
    assert sim.host_unregister(address) == sim.host_unregister(address + 2 * MIB) == sim.SUCCESS
    assert not slab.is_pinned()
    assert sim.hazards() == []


@check
def unregistering_under_a_copy_is_reported() -> None:
    slab, slot = torch.ones(MIB, dtype=torch.uint8), slot_of(MIB)
    assert sim.host_register(slab.data_ptr(), MIB) == sim.SUCCESS
    sim.reset_counters()
    sim.delay_stream(0.1)
    slot.copy_(slab, non_blocking=True)
    assert sim.host_unregister(slab.data_ptr()) == sim.SUCCESS
    assert any("unregistered" in hazard for hazard in sim.hazards())
    torch.accelerator.synchronize()


# ------------------------------------------------------------------------------------------------------------ operators


def agree(compute: Callable[..., object], *arguments: torch.Tensor, tolerance: float = 1e-5) -> None:
    """`compute` gives the same on both devices, dtypes and shapes included, and leaves its arguments the same."""
    on_sim = [argument.to("sim:0") for argument in arguments]
    expected = compute(*(copies := [argument.clone() for argument in arguments]))
    found = compute(*on_sim)
    results = zip(found, expected, strict=True) if isinstance(expected, list | tuple) else [(found, expected)]
    for ours, theirs in [*results, *zip(on_sim, copies, strict=True)]:
        assert isinstance(ours, torch.Tensor)
        assert ours.device == torch.device("sim:0")
        torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)


@check
def views_share_their_bytes() -> None:
    base = torch.zeros(4, 6, device="sim:0")
    views = {
        "slice": base[1:3, ::2],
        "transpose": base.t(),
        "view": base.view(2, 12),
        "reshape": base.reshape(-1),
        "expand": base[0].expand(3, 6),
        "unsqueeze": base.unsqueeze(0),
        "permute": base.permute(1, 0),
        "as_strided": base.as_strided((2, 2), (1, 6), 3),
        "unfold": base.unfold(1, 2, 2),
        "dtype": base.view(torch.int32),
        "narrower dtype": base.view(torch.uint8),
        "detach": base.detach(),
        "diagonal": base.diagonal(),
        "chunk": base.chunk(2, dim=1)[1],
        "real": torch.view_as_complex(base.view(4, 3, 2)),
    }
    base.fill_(1)
    for name, view in views.items():
        ones = torch.ones(1).view(view.dtype) if not view.is_complex() and view.dtype != torch.uint8 else None
        assert view.cpu().ne(0).any(), name
        assert ones is None or view.cpu().eq(ones).all(), name
    base[1:3, ::2].mul_(5)
    base.view(2, 12)[0, :2].add_(torch.tensor([1.0, 2.0], device="sim:0"))
    expected = torch.ones(4, 6)
    expected[1:3, ::2] *= 5
    expected[0, 0] += 1
    expected[0, 1] += 2
    assert base.cpu().equal(expected)


@check
def arguments_that_overlap_are_refused() -> None:
    base = torch.arange(4.0, device="sim:0")
    with pytest.raises(RuntimeError, match="single memory location"):
        base.index_put_((torch.tensor([1, 2], device="sim:0"),), base[:2])


@check
def operators_agree_with_the_cpu() -> None:
    torch.manual_seed(1)
    x, y, index = torch.randn(3, 4, 8), torch.randn(3, 4, 8), torch.tensor([2, 0, 1])
    table, weight = torch.randn(10, 8), torch.rand(8)
    mask = torch.rand(3, 4, 8) > 0.5
    agree(torch.add, x, y)
    agree(lambda a: a.mul_(2).add_(1), x)
    agree(lambda a, b: torch.cat([a, b], dim=1), x, y)
    agree(lambda a, b: torch.add(a, b, out=torch.empty(0, device=a.device)), x, y)
    agree(lambda a, b: torch.where(a > 0, a, b), x, y)
    agree(lambda a, m: a.masked_fill_(m, float("-inf")), x, mask)
    agree(lambda a, m: a[m], x, mask)
    agree(lambda a, i: a.index_select(0, i), x, index)
    agree(lambda a, i: a[i, i], x, index)
    agree(lambda a, i: a.index_put_((i,), torch.ones(8, device=a.device)), x[0], index)
    agree(lambda a, i: a.index_copy_(0, i, a.flip(0)), x, index)
    agree(lambda a, i: a.scatter_(1, i.view(-1, 1, 1), 0.0), x, index)
    agree(lambda a, i: a.gather(0, i.view(3, 1, 1).expand(3, 4, 8)), x, index)
    agree(F.embedding, index, table)
    agree(lambda a: torch.topk(a, 3), x)
    agree(lambda a: a.sort(dim=-1, descending=True), x)
    agree(torch.argmax, x)
    agree(lambda a: a.split([1, 3], dim=1), x)
    agree(lambda a: a.cumsum(-1).softmax(-1).log(), x)
    agree(lambda a: a.float().pow(2).mean(-1, keepdim=True).rsqrt(), x)
    agree(lambda a: torch.tril(torch.ones(5, 5, device=a.device)), x)
    agree(lambda a: torch.arange(3, 9, 2, device=a.device).cos(), x)
    agree(lambda a, w: F.layer_norm(a, (8,), w), x, weight)
    agree(lambda a, w: F.linear(F.silu(a), w), x, table)
    agree(lambda a, b: a @ b.transpose(1, 2), x, y)
    agree(lambda a: a.to(torch.bfloat16), x)
    agree(lambda a: a.repeat_interleave(2, dim=1), x)
    agree(lambda a: a.to(torch.int8).to(torch.float32), x)


@check
def attention_agrees_with_the_cpu() -> None:
    torch.manual_seed(2)
    query, key, value = torch.randn(1, 4, 6, 8), torch.randn(1, 4, 6, 8), torch.randn(1, 4, 6, 8)
    few = torch.randn(1, 2, 6, 8)
    float_mask = torch.zeros(1, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        q, k, v, g, m = (tensor.to(dtype) for tensor in (query, key, value, few, float_mask))
        agree(F.scaled_dot_product_attention, q, k, v, tolerance=tolerance)
        agree(partial(F.scaled_dot_product_attention, is_causal=True), q, k, v, tolerance=tolerance)
        agree(F.scaled_dot_product_attention, q, k, v, m, tolerance=tolerance)
        agree(F.scaled_dot_product_attention, q, k, v, m == 0, tolerance=tolerance)
        agree(partial(F.scaled_dot_product_attention, enable_gqa=True), q, g, g, tolerance=tolerance)


@check
def storage_can_be_changed_under_a_tensor() -> None:
    tensor = torch.arange(6.0, device="sim:0")
    tensor.resize_(2, 2)
    assert tensor.tolist() == [[0, 1], [2, 3]]
    tensor.resize_(100)
    assert tensor[:6].tolist() == [0, 1, 2, 3, 4, 5]
    other = torch.ones(4, device="sim:0")
    tensor.set_(other)
    tensor.zero_()
    assert other.eq(0).all()
    tensor.set_(other.untyped_storage(), 1, (2,), (1,))
    tensor.fill_(3)
    assert other.tolist() == [0, 3, 3, 0]
    tensor.set_()
    assert tensor.numel() == 0
    other.untyped_storage().resize_(64)
    assert other.tolist() == [0, 3, 3, 0]
    copied = copy.deepcopy(other)
    assert copied.add_(1).tolist() == [1, 4, 4, 1]
    assert other.tolist() == [0, 3, 3, 0]


@check
def inference_mode_and_parameters_work() -> None:
    layer = torch.nn.Linear(4, 4).to("sim:0")
    with torch.inference_mode():
        made = layer(torch.ones(2, 4, device="sim:0"))
        assert made.is_inference()
        made.add_(1).view(-1)[0] = 0
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
        layer.bias.data = torch.zeros(4, device="sim:0")
        assert layer(torch.ones(1, 4, device="sim:0")).tolist() == [[1, 1, 1, 1]]


@check
def tensors_of_two_devices_do_not_mix() -> None:
    """A forgotten `.to(device)` must fail here as it would on a GPU."""
    on_sim, on_cpu = torch.ones(3, device="sim:0"), torch.ones(3)
    assert (on_sim * torch.tensor(2.0)).tolist() == [2, 2, 2]
    assert on_sim[torch.tensor([0, 2])].tolist() == [1, 1]
    wrong: list[Callable[[], object]] = [
        lambda: on_sim + on_cpu,
        lambda: on_cpu + on_sim,
        lambda: F.embedding(torch.tensor([0]), torch.ones(3, 3, device="sim:0")),
        lambda: torch.cat([on_sim, on_cpu]),
        lambda: on_cpu.add_(on_sim),
    ]
    for mistake in wrong:
        with pytest.raises(RuntimeError, match="same device"):
            mistake()


@check
def random_numbers_follow_the_seed() -> None:
    torch.manual_seed(5)
    first = torch.randn(10, device="sim:0")
    state = torch.get_device_module("sim").get_rng_state()
    second = torch.rand(10, device="sim:0")
    torch.get_device_module("sim").set_rng_state(state)
    assert torch.rand(10, device="sim:0").equal(second)
    torch.manual_seed(5)
    assert torch.randn(10, device="sim:0").equal(first)
    drawn = [
        torch.randn(10, device="sim:0", generator=torch.Generator("sim:0").manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


# --------------------------------------------------------------------------------------------------------------- models


def logits_and_tokens(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        return model(ids).logits, tokens


def run_model(kind: str) -> None:
    model = model_factory.random_model(model_factory.tiny_config(kind))
    ids = torch.arange(3, 23).reshape(1, -1)
    logits, tokens = logits_and_tokens(model, ids)
    sim.reset_counters()
    found_logits, found_tokens = logits_and_tokens(model.to("sim:0"), ids.to("sim:0"))
    torch.testing.assert_close(found_logits.cpu(), logits, rtol=1e-5, atol=1e-5)
    assert found_tokens.cpu().equal(tokens)
    assert sim.hazards() == []


def run_model_in_bfloat16(kind: str) -> None:
    """Both round to 8 bits; plain and fused attention round in different places."""
    model = model_factory.random_model(model_factory.tiny_config(kind)).to(torch.bfloat16)
    ids = torch.arange(3, 23).reshape(1, -1)
    with torch.inference_mode():
        logits = model(ids).logits.float()
        found = model.to("sim:0")(ids.to("sim:0")).logits
    assert found.dtype == torch.bfloat16
    assert (found.cpu().float() - logits).norm() < 0.02 * logits.norm()


CHECKS |= {f"{kind}_agrees_with_the_cpu": partial(run_model, kind) for kind in ("llama", "qwen2", "gemma3")}
CHECKS |= {f"{kind}_runs_in_bfloat16": partial(run_model_in_bfloat16, kind) for kind in ("llama", "qwen2", "gemma3")}


# ------------------------------------------------------------------------------------------------- the tests themselves


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    return CHECKS.failures()


@needs_compiler
@pytest.mark.parametrize("name", CHECKS)
def test_simulated_device(name, failures):
    assert name not in failures, failures[name]


@needs_compiler
def test_this_process_is_left_alone(failures):
    assert not hasattr(torch, "sim")
    assert torch.accelerator.current_accelerator(check_available=True) is None or torch.cuda.is_available()


@needs_compiler
def test_it_is_compiled_once(failures, monkeypatch):
    path = sim.build()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert sim.build() == path


@needs_compiler
def test_a_broken_source_shows_what_the_compiler_said(monkeypatch, tmp_path):
    broken = tmp_path / "broken.cpp"
    broken.write_text("#error this is broken\n")
    monkeypatch.setattr(sim, "SOURCE", broken)
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match="this is broken"):
        sim.build()
    assert not list(tmp_path.rglob("*.so"))


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not sim.is_buildable()
    with pytest.raises(RuntimeError, match="install"):
        sim.build()


if __name__ == "__main__":
    sim.load()
    CHECKS.run()  # loads it again, which must change nothing
