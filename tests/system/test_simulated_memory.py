"""The simulated device's memory ends, is poisoned and counted, and host memory is pinned within a limit."""

import ctypes
import mmap
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.support import simulated_device as sim
from tests.support.sim_checks import SimChecks
from tests.support.simulated_memory import MIB, link_speed, pinned, slot_of

CHECKS = SimChecks(__file__)
check = CHECKS.check


@contextmanager
def capacity(num_bytes: int) -> Iterator[None]:
    sim.set_capacity_bytes(num_bytes)
    try:
        yield
    finally:
        sim.set_capacity_bytes(1 << 30)


def bytes_at(address: int, num_bytes: int) -> set[int]:
    return set(ctypes.string_at(address, num_bytes))


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


test_simulated_device = CHECKS.as_test()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
