"""Page-aligned anonymous memory for slabs.

A slab is one decoder layer's bytes. O_DIRECT needs page-aligned memory, and torch's own allocators round sizes up;
an anonymous mapping does neither, is untouched (and so uncounted by the kernel) until written, and is unmapped when
the last tensor that views it is gone.
"""

import mmap

import torch

PAGE_BYTES = 4096


def round_up_to_page(num_bytes: int) -> int:
    """The smallest multiple of PAGE_BYTES that is at least `num_bytes`."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def allocate_slab(num_bytes: int) -> torch.Tensor:
    """Page-aligned zeroed bytes, uint8 of shape (round_up_to_page(num_bytes),); freed with the last view of it."""
    size = max(round_up_to_page(num_bytes), PAGE_BYTES)
    if hasattr(mmap, "MAP_PRIVATE"):
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:  # Windows maps the page file, which is private already
        mapping = mmap.mmap(-1, size)
    return torch.frombuffer(mapping, dtype=torch.uint8)
