"""Memory: slabs that are allocated page by page, and what to say when it runs out.

A slab is one decoder layer's bytes: an anonymous mapping, page-aligned for O_DIRECT, of exact size, untouched until
written, and unmapped when the last tensor that views it is gone.
"""

import contextlib
import ctypes
import errno
import mmap
import sys
from collections.abc import Generator

import torch

from offload.errors import BudgetError
from offload.units import PAGE_BYTES, round_up_to_page

_ON_THE_HOST = "can't allocate memory"  # how torch's own allocator for the processor says it


def allocate_slab(num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
    """Allocate page-aligned zeroed bytes, uint8 of shape (round_up_to_page(num_bytes),); freed with the last view.

    `huge_pages` asks for them, for a few slabs that are used again and again: finding them for a whole model's bytes
    can take the kernel minutes. It may have none.
    """
    size = max(round_up_to_page(num_bytes), PAGE_BYTES)
    if hasattr(mmap, "MAP_PRIVATE"):
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:  # Windows maps the page file, which is private already
        mapping = mmap.mmap(-1, size)
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8)


def allocate_read_slab(num_bytes: int) -> torch.Tensor:
    """Allocate a slab on huge pages, for reading into over and over.

    Passes straight from a virtual disk got 3.0 to 3.3 GB/s into such slots, and 1.7 to 2.1 into small pages.
    """
    return allocate_slab(num_bytes, huge_pages=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed for want of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", _ON_THE_HOST)
    )


@contextlib.contextmanager
def explained_shortage(purpose: str) -> Generator[None, None, None]:
    """Raise BudgetError, chained to the cause, where memory runs out inside; `purpose` says what it was wanted for."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        is_host = isinstance(error, OSError | MemoryError) or _ON_THE_HOST in str(error).lower()
        place, users = ("host memory", "programs") if is_host else ("the device's memory", "programs that use it")
        budgets = "--device-memory or --host-memory" if is_host else "--device-memory"
        raise BudgetError(
            f"{place} has no room for {purpose}; close other {users}, or give a smaller {budgets}, draft or --context"
        ) from error


def release_freed_memory() -> None:
    """Give back to the system what the C library keeps of memory that was freed, where it is glibc.

    What lies between blocks that are still in use stays its own until it is asked: 100 MB and more after a model was
    converted, of which nobody who asks how much memory is free knows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
