"""Host memory that a device can fetch by itself: what the loader sees of it, and the two ways that need no driver.

A pinned slab crosses the link without the processor; a pageable one does not. Where a driver can register memory,
`pinned_memory` does that; everywhere else torch's own pinned allocator is asked, and for the processor itself nothing
has to be pinned. Knows slabs, not layers.
"""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import torch

from offload.checkpoint.stored_sizes import PAGE_BYTES, round_up_to_page
from offload.closeable import Closeable
from offload.pinning.slab_memory import allocate_slab
from offload.units import format_bytes

logger = logging.getLogger(__name__)


class HostPinner(Protocol):
    """Hands out slabs and pins them as far as budget and driver allow; a context manager, driven from one thread.

    The order for each slab: `allocate`, fill it, `filled`; after the last one `finish`. Copies may start after that.
    """

    @property
    def pinned_bytes(self) -> int:
        """What is pinned now, as the system accounts for it."""

    @property
    def refused(self) -> str | None:
        """One sentence if memory was refused at some slab, after which nothing more is pinned; else None."""

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        """A slab of whole pages, uint8 of shape (round_up_to_page(num_bytes),), for the caller to fill.

        `huge_pages`: see allocate_slab; memory that is pinned from the start is left as it comes.
        """

    def filled(self, slab: torch.Tensor) -> None:
        """The slab holds its bytes: pin it, now or in the background; returns at once."""

    def finish(self, cancel: threading.Event | None = None) -> None:
        """Block until nothing is being pinned any more. Raises PassCancelledError if `cancel` is set first."""

    def is_pinned(self, slab: torch.Tensor) -> bool:
        """Whether all of a slab from `allocate` is pinned; never True before that is certain."""

    def close(self) -> None:
        """Unpin everything; idempotent. No copy may be in flight any more."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""


class PageableMemory(Closeable):
    """For a device that computes in host memory: slabs that nobody has to pin."""

    pinned_bytes = 0
    refused: str | None = None

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        """See HostPinner."""
        return allocate_slab(num_bytes, huge_pages=huge_pages)

    def filled(self, slab: torch.Tensor) -> None:
        """Nothing to do."""

    def finish(self, cancel: threading.Event | None = None) -> None:
        """Nothing to wait for."""

    def is_pinned(self, slab: torch.Tensor) -> bool:
        """Never."""
        return False

    def close(self) -> None:
        """Nothing to undo: a slab goes with the last view of it."""


def _allocate_pinned(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


class AllocatorPinnedMemory(Closeable):
    """Slabs from torch's own pinned allocator, pinned from the start; pageable ones once it refuses or at the budget.

    The allocator takes the next power of two of every size, which is what counts against the budget. It keeps freed
    memory for itself, so that `close` gives nothing back to the system.
    """

    def __init__(
        self, budget_bytes: int | None, *, allocate_pinned: Callable[[int], torch.Tensor] = _allocate_pinned
    ) -> None:
        """`budget_bytes`: None for no limit. `allocate_pinned` gets a number of bytes and may raise RuntimeError."""
        self._budget_bytes = budget_bytes
        self._allocate_pinned = allocate_pinned
        self._slabs: dict[int, torch.Tensor] = {}
        self.pinned_bytes = 0
        self.refused: str | None = None

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        """See HostPinner."""
        size = max(round_up_to_page(num_bytes), PAGE_BYTES)
        taken_bytes = next_power_of_two(size)
        has_room = self._budget_bytes is None or self.pinned_bytes + taken_bytes <= self._budget_bytes
        slab = self._try_pinned(size) if has_room and self.refused is None else None
        if slab is None:
            return allocate_slab(num_bytes, huge_pages=huge_pages)
        self._slabs[slab.data_ptr()] = slab
        self.pinned_bytes += taken_bytes
        return slab

    def filled(self, slab: torch.Tensor) -> None:
        """Nothing to do: it is pinned already, or never will be."""

    def finish(self, cancel: threading.Event | None = None) -> None:
        """Nothing to wait for."""

    def is_pinned(self, slab: torch.Tensor) -> bool:
        """See HostPinner."""
        return slab.data_ptr() in self._slabs

    def close(self) -> None:
        """Let go of all slabs; torch's allocator may use their memory again once their last view is gone."""
        self._slabs.clear()
        self.pinned_bytes = 0

    def _try_pinned(self, num_bytes: int) -> torch.Tensor | None:
        try:
            slab = self._allocate_pinned(num_bytes)
            is_pinned = slab.is_pinned()  # the allocator's own word is all there is to go by here
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            self._refuse(str(error))
            return None
        if not is_pinned:
            self._refuse("torch returned memory that it does not call pinned")
            return None
        return slab

    def _refuse(self, cause: str) -> None:
        reason = " ".join(cause.split())[:200]
        self.refused = f"torch pinned {format_bytes(self.pinned_bytes)} of host memory and then no more ({reason})"
        logger.warning("%s", self.refused)


def next_power_of_two(num_bytes: int) -> int:
    """The smallest power of two that is at least `num_bytes`: what torch's pinned allocator takes."""
    return 1 << max(0, num_bytes - 1).bit_length()
