"""Memory pinned without a driver of ours: by torch's allocator as long as it gives any, or not at all."""

import logging

import pytest
import torch

from offload.checkpoint.stored_sizes import round_up_to_page
from offload.pinning.host_pinner import AllocatorPinnedMemory, HostPinner, PageableMemory, next_power_of_two

PAGE = 4096


class PinnedTensor(torch.Tensor):
    """Host memory that calls itself pinned."""

    def is_pinned(self, *_: object) -> bool:
        return True


class FakeAllocator:
    """Gives pinned tensors until a call fails with the given error."""

    def __init__(self, error: Exception | None = None, *, failing_call: int = 0, gives_pinned: bool = True) -> None:
        self.error = error
        self.failing_call = failing_call
        self.gives_pinned = gives_pinned
        self.requests: list[int] = []

    def __call__(self, num_bytes: int) -> torch.Tensor:
        self.requests.append(num_bytes)
        if self.error is not None and len(self.requests) == self.failing_call:
            raise self.error
        memory = torch.zeros(num_bytes, dtype=torch.uint8)
        return memory.as_subclass(PinnedTensor) if self.gives_pinned else memory


def allocator_memory(budget_bytes: int | None, allocator: FakeAllocator) -> AllocatorPinnedMemory:
    return AllocatorPinnedMemory(budget_bytes, allocate_pinned=allocator)


def fill(pinner: HostPinner, *sizes: int) -> list[bool]:
    """Whether each of the slabs is pinned in the end; they are always whole pages of bytes."""
    slabs = [pinner.allocate(size) for size in sizes]
    for size, slab in zip(sizes, slabs, strict=True):
        assert slab.dtype == torch.uint8 and slab.shape == (max(PAGE, round_up_to_page(size)),)
        pinner.filled(slab.fill_(1))
    pinner.finish()
    return [pinner.is_pinned(slab) for slab in slabs]


def test_the_processor_needs_nothing_pinned() -> None:
    with PageableMemory() as pinner:
        assert fill(pinner, 0, 5, 3 * PAGE) == [False] * 3
        assert pinner.pinned_bytes == 0 and pinner.refused is None


def test_memory_from_torch_is_pinned_from_the_start() -> None:
    with allocator_memory(None, FakeAllocator()) as pinner:
        slab = pinner.allocate(5)
        assert pinner.is_pinned(slab) and pinner.pinned_bytes == PAGE
        assert not pinner.is_pinned(torch.zeros(PAGE, dtype=torch.uint8))


def test_what_torch_really_takes_counts_against_the_budget() -> None:
    """Its allocator rounds 5 pages up to 8."""
    allocator = FakeAllocator()
    with allocator_memory(10 * PAGE, allocator) as pinner:
        assert fill(pinner, 5 * PAGE, 3 * PAGE, 2 * PAGE, PAGE) == [True, False, True, False]
        assert pinner.pinned_bytes == 10 * PAGE and pinner.refused is None
        assert allocator.requests == [5 * PAGE, 2 * PAGE]


@pytest.mark.parametrize("error", [RuntimeError("no\nmore"), torch.OutOfMemoryError("no more")])
def test_after_a_refusal_slabs_are_pageable_and_torch_is_not_asked_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    allocator = FakeAllocator(error, failing_call=3)
    with caplog.at_level(logging.WARNING), allocator_memory(None, allocator) as pinner:
        assert fill(pinner, PAGE, PAGE, PAGE, PAGE) == [True, True, False, False]
        assert len(allocator.requests) == 3
        assert pinner.refused == "torch pinned 8.19 KB of host memory and then no more (no more)"
        assert caplog.messages == [pinner.refused]


def test_memory_that_torch_does_not_call_pinned_is_not_counted() -> None:
    with allocator_memory(None, FakeAllocator(gives_pinned=False)) as pinner:
        assert fill(pinner, PAGE) == [False]
        assert pinner.pinned_bytes == 0 and "does not call pinned" in str(pinner.refused)


def test_closing_lets_go_of_everything_and_may_be_repeated() -> None:
    pinner = allocator_memory(None, FakeAllocator())
    slab = pinner.allocate(PAGE)
    pinner.close()
    pinner.close()
    assert not pinner.is_pinned(slab) and pinner.pinned_bytes == 0


def test_a_machine_without_an_accelerator_falls_back_to_pageable_slabs() -> None:
    if torch.accelerator.is_available():
        pytest.skip("torch can pin memory here")
    with AllocatorPinnedMemory(None) as pinner:
        assert fill(pinner, 3 * PAGE) == [False]
        assert pinner.refused is not None


def test_powers_of_two() -> None:
    assert [next_power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 4096, 4097)] == [1, 1, 2, 4, 4, 8, 4096, 8192]
