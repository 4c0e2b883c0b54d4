import torch

from offload.slab_memory import PAGE_BYTES, allocate_slab, round_up_to_page


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
