"""Decoder layers that lie packed in memory: 12 bits an element instead of 16, bit for bit (see `formats.packed`).

Which matrices are worth it is sampled from their files, so that a packed layer's slab has a known size before any
weight is read. What has no code, some ten bytes in a million, stays on the device, so that no slab needs room for it.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from offload.checkpoint.checkpoint import ITEM_BYTES
from offload.checkpoint.layer_layout import TENSOR_ALIGNMENT_BYTES, LayerLayout, SlabTensor
from offload.formats.packed import PackedFormat, escape_share, pack_matrix
from offload.formats.stored_sizes import ESCAPE_BYTES, MAX_ESCAPE_SHARE, can_be_packed
from offload.layer_slabs import slab_views
from offload.units import round_up_to_page

_SAMPLE_BYTES = 1 << 16
_SPARE_ESCAPES = 2.0
"""Times what the samples say: memory that is kept for them."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """How a layer lies once it is packed."""

    layout: LayerLayout
    """Of its slab, which no file fills."""
    matrices: tuple[str, ...]
    """Names of those that are packed; all else is as the files have it."""
    escape_bytes: int
    """What its escapes may take, as samples of the files say."""


@lru_cache(maxsize=8)
def plan_packing(
    layouts: tuple[LayerLayout, ...], matrices: tuple[frozenset[str], ...]
) -> tuple[PackedLayout, ...] | None:
    """Return every layer as it would lie packed, or None where no matrix is worth it. `matrices`: names, by layer.

    Reads 64 kB of every matrix of bfloat16.
    """
    found = tuple(_packed_layout(*each) for each in zip(layouts, matrices, strict=True))
    return found if any(each.matrices for each in found) else None


def _packed_layout(layout: LayerLayout, names: Collection[str]) -> PackedLayout:
    shares = {tensor.name: _sampled_share(layout, tensor) for tensor in layout.tensors if tensor.name in names}
    packed = {name: share for name, share in shares.items() if share is not None and share <= MAX_ESCAPE_SHARE}
    tensors: list[SlabTensor] = []
    cursor = payload_bytes = num_escapes = 0
    for tensor in layout.tensors:
        dtype, shape = tensor.dtype, tensor.shape
        if tensor.name in packed:
            dtype, shape = "I16", (shape[0], 3 * shape[1] // 4)
            num_escapes += math.ceil(_SPARE_ESCAPES * packed[tensor.name] * math.prod(tensor.shape))
        num_bytes = math.prod(shape) * ITEM_BYTES.get(dtype, 2)
        tensors.append(SlabTensor(tensor.name, dtype, shape, cursor, cursor))
        payload_bytes += num_bytes
        cursor = -(-(cursor + num_bytes) // TENSOR_ALIGNMENT_BYTES) * TENSOR_ALIGNMENT_BYTES
    slab = LayerLayout(tuple(tensors), (), round_up_to_page(cursor), payload_bytes)
    return PackedLayout(slab, tuple(packed), num_escapes * ESCAPE_BYTES)


def _sampled_share(layout: LayerLayout, tensor: SlabTensor) -> float | None:
    """Return the share of escapes among some elements in the middle of a matrix, None where it cannot be packed."""
    if not can_be_packed(tensor.dtype, tensor.shape):
        return None
    num_elements = math.prod(tensor.shape)
    num_bytes = min(_SAMPLE_BYTES, 2 * num_elements)
    begin = tensor.slab_offset + (2 * num_elements - num_bytes) // 4 * 2
    for part in layout.ranges:
        if part.slab_offset <= begin and begin + num_bytes <= part.slab_offset + part.num_bytes:
            try:
                with part.file.open("rb", buffering=0) as file:
                    file.seek(part.file_offset + begin - part.slab_offset)
                    sample = file.read(num_bytes)
            except OSError:  # loading says what is wrong
                return None
            return escape_share(np.frombuffer(sample[: len(sample) // 2 * 2], dtype=np.uint16))
    return None


@dataclass(slots=True, eq=False)
class PackedLayer:
    """A layer in memory; its formats are known, and its escapes there, once it was packed."""

    plan: PackedLayout
    formats: dict[str, PackedFormat] = field(default_factory=dict)
    """By name of the matrix."""
    escapes: dict[str, torch.Tensor] = field(default_factory=dict)
    """Where they are and what they are, by the names that the formats ask for; on the device."""

    @property
    def layout(self) -> LayerLayout:
        return self.plan.layout

    def pack(self, stored: LayerLayout, slab: torch.Tensor, target: torch.Tensor, device: torch.device) -> None:
        """Write a layer that `slab` holds as its files do to `target`, both in host memory; escapes go to `device`."""
        sources, targets = slab_views(stored, slab), slab_views(self.layout, target)
        places: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for name, source in sources.items():
            if name not in self.plan.matrices:
                targets[name].copy_(source)
                continue
            packed = pack_matrix(source, words=targets[name])
            self.formats[name] = packed.format
            places.append(packed.escapes)
            values.append(packed.escape_values)
        if places:
            suffixes = (".escapes", ".escape_values")
            for suffix, parts in zip(suffixes, (places, values), strict=True):
                together = torch.cat(parts).to(device)
                pieces = torch.split(together, [part.numel() for part in parts])
                self.escapes.update(
                    (f"{name}{suffix}", piece) for name, piece in zip(self.formats, pieces, strict=True)
                )

    def tensors(self, slab: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what is to be bound of a slab that holds the layer, wherever it is, once it was packed."""
        return slab_views(self.layout, slab) | self.escapes


def escape_bytes_of(layers: Sequence[PackedLayout]) -> int:
    """Return what the escapes of these layers may take of the device."""
    return sum(layer.escape_bytes for layer in layers)
