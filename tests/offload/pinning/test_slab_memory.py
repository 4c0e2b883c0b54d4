from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offload.checkpoint.stored_sizes import PAGE_BYTES, round_up_to_page
from offload.pinning.slab_memory import allocate_read_slab, allocate_slab


def test_sizes_are_rounded_up_to_whole_pages() -> None:
    assert [round_up_to_page(n) for n in (0, 1, PAGE_BYTES, PAGE_BYTES + 1)] == [
        0,
        PAGE_BYTES,
        PAGE_BYTES,
        2 * PAGE_BYTES,
    ]


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
