"""From a layer's slab to its tensors: a slab's bytes are the file's bytes, and tensors are views of it.

Reads through a CopyEngine, so that with O_DIRECT nothing is left behind in the page cache. Knows layouts, not what
the tensors mean or in which tier a slab is.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from offload.copy_engine import CopyEngine, DiskSource
from offload.layer_layout import LayerLayout
from offload.slab_memory import allocate_slab
from offload.weight_format import TORCH_DTYPES


def slab_views(layout: LayerLayout, slab: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors in `slab` (uint8, at least layout.slab_bytes) as views in their storage dtypes; no copy is made."""
    views = {}
    for tensor in layout.tensors:
        dtype = TORCH_DTYPES[tensor.dtype]
        num_bytes = math.prod(tensor.shape) * dtype.itemsize
        piece = slab[tensor.slab_offset : tensor.slab_offset + num_bytes]
        views[tensor.name] = piece.view(dtype).view(tensor.shape)
    return views


def read_slab(layout: LayerLayout, engine: CopyEngine) -> torch.Tensor:
    """The layout's bytes in fresh memory of its own, uint8; blocks until they are there. Raises LinkError."""
    slab = allocate_slab(layout.slab_bytes)
    engine.start(DiskSource(layout), slab).wait()
    return slab


class LayerSlabs:
    """The layouts of a model's decoder layers; turns the slab of a layer into named tensors."""

    def __init__(self, layouts: Sequence[LayerLayout]) -> None:
        self.layouts = tuple(layouts)

    @property
    def payload_bytes(self) -> tuple[int, ...]:
        """Bytes of weights in each layer."""
        return tuple(layout.payload_bytes for layout in self.layouts)

    def views(self, index: int, slab: torch.Tensor) -> dict[str, torch.Tensor]:
        """Layer `index`'s tensors as views of its slab; valid as long as the slab is."""
        return slab_views(self.layouts[index], slab)

    def stream_from_disk(self, engine: CopyEngine, *, num_slots: int = 2) -> Iterator[dict[str, torch.Tensor]]:
        """Every layer's tensors once, in order, read ahead through `num_slots` slots; each is valid until the next."""
        slots = [allocate_slab(max(layout.slab_bytes for layout in self.layouts)) for _ in range(num_slots)]
        pending = [engine.start(DiskSource(layout), slots[i]) for i, layout in enumerate(self.layouts[:num_slots])]
        for index in range(len(self.layouts)):
            slot = slots[index % num_slots]
            pending[index].wait()
            yield self.views(index, slot)
            following = index + num_slots
            if following < len(self.layouts):
                pending.append(engine.start(DiskSource(self.layouts[following]), slot))
