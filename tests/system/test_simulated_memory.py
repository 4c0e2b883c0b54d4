"""The simulated device's memory ends, is poisoned and counted, and host memory is pinned within a limit."""

import ctypes
import gc
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
    assert torch.accelerator.max_memory_allocated() == before + 3 * MIB + 512
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


# ------------------------------------------------------------------ the rules of c10/cuda/CUDACachingAllocator.cpp


def bytes_of(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device="sim:0")


@contextmanager
def only_what_is_allocated_here() -> Iterator[None]:
    """Nothing is cached at the start, and counts of bytes are of what comes."""
    gc.collect()
    torch.accelerator.synchronize()
    torch.accelerator.empty_cache()
    held.update(allocated=torch.accelerator.memory_allocated(), reserved=torch.accelerator.memory_reserved())
    torch.accelerator.reset_peak_memory_stats()
    yield


held = {"allocated": 0, "reserved": 0}


def allocated() -> int:
    return torch.accelerator.memory_allocated() - held["allocated"]


def reserved() -> int:
    return torch.accelerator.memory_reserved() - held["reserved"]


@check
def sizes_are_rounded_to_512_bytes() -> None:
    with only_what_is_allocated_here():
        kept = [bytes_of(size) for size in (1, 511, 512, 513, MIB - 1, 3 * MIB + 1)]
        assert allocated() == 512 + 512 + 512 + 1024 + MIB + 3 * MIB + 512
        del kept


@check
def up_to_a_mebibyte_blocks_are_cut_from_segments_of_two() -> None:
    with only_what_is_allocated_here():
        kept = [bytes_of(MIB // 2) for _ in range(4)]
        assert (allocated(), reserved()) == (2 * MIB, 2 * MIB)
        assert [one.data_ptr() - kept[0].data_ptr() for one in kept] == [place * MIB // 2 for place in range(4)]
        kept.append(bytes_of(1))
        assert (allocated(), reserved()) == (2 * MIB + 512, 4 * MIB)


@check
def up_to_ten_mebibytes_blocks_are_cut_from_segments_of_twenty() -> None:
    with only_what_is_allocated_here():
        kept = [bytes_of(MIB + 1)]
        assert (allocated(), reserved()) == (MIB + 512, 20 * MIB)
        kept += [bytes_of(9 * MIB), bytes_of(9 * MIB - 512)]  # the last MiB stays with the last block
        assert (allocated(), reserved()) == (20 * MIB, 20 * MIB)
        small = bytes_of(MIB)  # which never comes from a large segment
        assert reserved() == 22 * MIB
        del small, kept


@check
def larger_blocks_have_segments_of_whole_double_mebibytes() -> None:
    with only_what_is_allocated_here():
        kept = [bytes_of(10 * MIB + MIB // 16)]  # 1.9 MiB behind it are cut off, and hardly anything fits there
        assert (allocated(), reserved()) == (10 * MIB + MIB // 16, 12 * MIB)
        kept.append(bytes_of(11 * MIB))  # what is behind it is no more than 1 MiB and stays with it
        assert (allocated(), reserved()) == (22 * MIB + MIB // 16, 24 * MIB)
        assert torch.accelerator.memory_stats()["requested_bytes.all.current"] >= 21 * MIB + MIB // 16
        del kept


@check
def the_smallest_block_that_is_large_enough_is_taken_and_the_rest_cut_off() -> None:
    with only_what_is_allocated_here():
        large, small = bytes_of(40 * MIB), bytes_of(24 * MIB)
        addresses = large.data_ptr(), small.data_ptr()
        del large, small
        kept = [bytes_of(20 * MIB), bytes_of(4 * MIB), bytes_of(4 * MIB)]
        assert [one.data_ptr() for one in kept] == [addresses[1], addresses[1] + 20 * MIB, addresses[0]]
        assert (allocated(), reserved()) == (28 * MIB, 64 * MIB)


@check
def free_neighbours_are_merged() -> None:
    with only_what_is_allocated_here():
        parts = [bytes_of(5 * MIB) for _ in range(4)]
        first = parts[0].data_ptr()
        for place in (1, 3, 0, 2):
            parts[place] = None
        whole = bytes_of(20 * MIB)
        assert (whole.data_ptr(), reserved()) == (first, 20 * MIB)


@check
def a_segment_that_is_used_in_part_is_not_given_back() -> None:
    with only_what_is_allocated_here():
        first, second = bytes_of(5 * MIB), bytes_of(5 * MIB)
        del first
        torch.accelerator.empty_cache()
        assert reserved() == 20 * MIB
        del second
        torch.accelerator.empty_cache()
        assert reserved() == 0


@check
def memory_in_the_cache_of_another_stream_serves_only_when_it_was_given_back() -> None:
    """An allocation that does not fit gives back every free segment, waits for the device and tries again."""
    other = torch.Stream(torch.device("sim:0"))
    with only_what_is_allocated_here(), capacity(64 * MIB + torch.accelerator.memory_reserved()):
        retries = torch.accelerator.memory_stats()["num_alloc_retries"]
        with other:
            del (kept := [bytes_of(40 * MIB)])[:]
        assert (allocated(), reserved()) == (0, 40 * MIB)
        kept = [bytes_of(20 * MIB)]
        assert reserved() == 60 * MIB
        kept.append(bytes_of(40 * MIB))
        assert (allocated(), reserved()) == (60 * MIB, 60 * MIB)
        assert torch.accelerator.memory_stats()["num_alloc_retries"] == retries + 1
        del kept


@check
def peaks_of_both_counts_are_kept() -> None:
    with only_what_is_allocated_here():
        del (kept := [bytes_of(30 * MIB), bytes_of(3 * MIB)])[:]
        kept.append(bytes_of(MIB))
        assert torch.accelerator.max_memory_allocated() - held["allocated"] == 33 * MIB
        assert torch.accelerator.max_memory_reserved() - held["reserved"] == 52 * MIB
        torch.accelerator.empty_cache()
        assert (allocated(), reserved()) == (MIB, 2 * MIB)
        torch.accelerator.reset_peak_memory_stats()
        assert torch.accelerator.max_memory_allocated() - held["allocated"] == MIB
        assert torch.accelerator.max_memory_reserved() - held["reserved"] == 2 * MIB


@check
def segments_may_be_exact_for_checks_in_little_memory() -> None:
    sim.set_exact_segments(True)
    try:
        with only_what_is_allocated_here():
            kept = [bytes_of(size) for size in (1, MIB + 1, 11 * MIB)]
            assert allocated() == reserved() == 512 + MIB + 512 + 11 * MIB
            del kept
    finally:
        sim.set_exact_segments(False)
        torch.accelerator.empty_cache()


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
