"""From a layer's slab to its tensors: a slab's bytes are the file's bytes, and tensors are views of it.

Reads through a CopyEngine, so that with O_DIRECT nothing is left behind in the page cache.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import CopyEngine, DiskSource
from offload.formats.weight_format import TORCH_DTYPES
from offload.memory import allocate_read_slab, allocate_slab


def slab_views(layout: LayerLayout, slab: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors in `slab` (uint8, at least layout.slab_bytes) as views in their storage dtypes."""
    views = {}
    for tensor in layout.tensors:
        dtype = TORCH_DTYPES[tensor.dtype]
        num_bytes = math.prod(tensor.shape) * dtype.itemsize
        piece = slab[tensor.slab_offset : tensor.slab_offset + num_bytes]
        views[tensor.name] = piece.view(dtype).view(tensor.shape)
    return views


def read_slab(layout: LayerLayout, engine: CopyEngine) -> torch.Tensor:
    """Read the layout's bytes into fresh memory, uint8; blocks until they are there. Raises LinkError."""
    slab = allocate_slab(layout.slab_bytes)
    engine.start(DiskSource(layout), slab).wait()
    return slab


class LayerSlabs:
    """The layouts of a model's decoder layers, which turn the slab of a layer into named tensors."""

    def __init__(self, layouts: Sequence[LayerLayout]) -> None:
        self.layouts = tuple(layouts)

    @property
    def payload_bytes(self) -> tuple[int, ...]:
        return tuple(layout.payload_bytes for layout in self.layouts)

    def views(self, index: int, slab: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return layer `index`'s tensors as views of its slab; valid as long as the slab is."""
        return slab_views(self.layouts[index], slab)

    def stream_from_disk(
        self, engine: CopyEngine, *, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield index and tensors of every layer (or of `indices`), in order, read ahead through two slots.

        The tensors are valid until the next.
        """
        wanted = range(len(self.layouts)) if indices is None else indices
        layouts = [self.layouts[index] for index in wanted]
        largest = max((layout.slab_bytes for layout in layouts), default=0)
        slots = [allocate_read_slab(largest) for _ in range(min(2, len(layouts)))]
        pending = [engine.start(DiskSource(layout), slot) for layout, slot in zip(layouts, slots, strict=False)]
        for place, index in enumerate(wanted):
            slot = slots[place % 2]
            pending[place].wait()
            yield index, self.views(index, slot)
            following = place + 2
            if following < len(layouts):
                pending.append(engine.start(DiskSource(layouts[following]), slot))
