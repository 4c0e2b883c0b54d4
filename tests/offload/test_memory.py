"""Slabs, and running out.

Every real way of running out of memory is known as one; whatever else goes wrong stays what it is.
"""

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offload.errors import BudgetError
from offload.free_memory import resident_memory_bytes
from offload.memory import (
    allocate_read_slab,
    allocate_slab,
    explained_shortage,
    is_out_of_memory,
    release_freed_memory,
)
from offload.units import PAGE_BYTES


def test_a_slab_starts_on_a_page_is_zero_and_can_be_written() -> None:
    slab = allocate_slab(PAGE_BYTES + 5)
    assert slab.dtype == torch.uint8
    assert slab.numel() == 2 * PAGE_BYTES
    assert slab.data_ptr() % PAGE_BYTES == 0
    assert not slab.any()
    slab.fill_(7)
    assert int(slab[-1]) == 7


def test_a_view_keeps_the_memory_alive() -> None:
    view = allocate_slab(PAGE_BYTES)[:16].view(torch.float32)
    view.fill_(1.5)
    assert view.tolist() == [1.5] * 4


def test_an_empty_slab_still_has_an_address() -> None:
    assert allocate_slab(0).numel() == PAGE_BYTES


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no transparent huge pages"
)
@pytest.mark.parametrize(("allocate", "is_huge"), [(allocate_slab, False), (allocate_read_slab, True)])
def test_only_slabs_that_are_read_into_ask_for_huge_pages(
    allocate: Callable[[int], torch.Tensor], is_huge: bool
) -> None:
    slab = allocate(8 << 20).fill_(1)
    flags = mapping_flags(slab.data_ptr())
    assert ("hg" in flags) == is_huge, flags
    assert int(slab[-1]) == 1


def mapping_flags(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds the address."""
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            is_inside = begin <= address < end
        elif is_inside and head == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("the address is not mapped")


TOO_MUCH = 1 << 60


def map_too_much() -> object:
    return mmap.mmap(-1, TOO_MUCH)


def allocate_too_much_with_torch() -> object:
    return torch.empty(1 << 46)


def allocate_too_much_with_python() -> object:
    return bytearray(TOO_MUCH)


def device_is_full() -> object:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def older_device_is_full() -> object:
    raise RuntimeError("HIP error: out of memory")


@pytest.mark.parametrize(
    ("allocate", "place", "option"),
    [
        (map_too_much, "host memory", "--host-memory"),
        (allocate_too_much_with_torch, "host memory", "--host-memory"),
        (allocate_too_much_with_python, "host memory", "--host-memory"),
        (device_is_full, "the device's memory", "--device-memory"),
        (older_device_is_full, "the device's memory", "--device-memory"),
    ],
)
def test_every_way_of_running_out_is_a_sentence(allocate: Callable[[], object], place: str, option: str) -> None:
    with pytest.raises(BudgetError) as caught, explained_shortage("the ring"):
        allocate()
    sentence = str(caught.value)
    assert sentence.startswith(f"{place} has no room for the ring; close other programs")
    assert option in sentence and "\n" not in sentence
    assert caught.value.__cause__ is not None and is_out_of_memory(caught.value.__cause__)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("shapes differ"), ValueError("no")])
def test_anything_else_goes_on_as_it_is(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, explained_shortage("the ring"):
        raise error
    assert caught.value is error


def test_where_nothing_runs_out_nothing_happens() -> None:
    with explained_shortage("the ring"):
        pass


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_memory_that_was_freed_is_given_back_to_the_system() -> None:
    blocks = [torch.ones(16_000) for _ in range(2000)]  # 64 KB each, from the heap
    keeper = torch.ones(16_000)
    del blocks
    before = resident_memory_bytes()
    release_freed_memory()
    assert before - resident_memory_bytes() > 64_000_000
    assert float(keeper.sum()) == 16_000
