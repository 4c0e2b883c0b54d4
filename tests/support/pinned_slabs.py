"""Small slabs that are filled and pinned."""

import torch

from offload.pinning.pinned_memory import PinnedMemory

PAGE = 4096
CHUNK = 4 * PAGE


def pin(memory: PinnedMemory, *sizes: int) -> list[torch.Tensor]:
    slabs = [memory.allocate(size) for size in sizes]
    for slab in slabs:
        memory.filled(slab.fill_(1))
    memory.finish()
    return slabs
