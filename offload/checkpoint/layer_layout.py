"""One decoder layer as one slab whose bytes are the file's bytes.

Pure arithmetic: which byte ranges of which files to read, where each lands in the slab, and where each tensor then
lies. Opens no file and allocates nothing. Ranges keep their phase modulo the page, so that O_DIRECT can read them in
place: file offset, memory address and length are then all multiples of the page once rounded outwards.

A device gets the same bytes closer together, in the few pieces (`SlabMove`) that bring every tensor to a multiple of
DEVICE_ALIGNMENT_BYTES: files align nothing to more than 8 bytes, and 4-bit codes begin anywhere.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from offload.checkpoint.checkpoint import ITEM_BYTES
from offload.checkpoint.tensor_entry import TensorEntry
from offload.units import PAGE_BYTES, round_up_to_page

MAX_GAP_BYTES = 1 << 20
"""Reading through a gap this long costs less than another request."""
TENSOR_ALIGNMENT_BYTES = 64
"""Where tensors are packed by ourselves: a cache line, and a multiple of every item size."""
DEVICE_ALIGNMENT_BYTES = 16
"""What the vector loads of a device's matrix products want, and fused 4-bit products cannot do without."""


@dataclass(frozen=True, slots=True)
class SlabTensor:
    """Where one tensor lies in the slab."""

    name: str
    """The key under which the tensor was given, local to the layer."""
    dtype: str
    """As in the file."""
    shape: tuple[int, ...]
    """Row-major."""
    slab_offset: int
    """Bytes from the beginning of a slab in host memory; a multiple of the item size."""
    device_offset: int = 0
    """Bytes from the beginning of a slab on a device; a multiple of DEVICE_ALIGNMENT_BYTES."""


@dataclass(frozen=True, slots=True)
class SlabMove:
    """Bytes of a slab in host memory that keep together on their way to a device."""

    slab_offset: int
    device_offset: int
    num_bytes: int
    """Never 0."""

    def part(self, begin: int, end: int) -> "SlabMove | None":
        """Return what moves of the slab's bytes [begin, end), which lie at 0 by now, to its place on a device."""
        first, last = max(self.slab_offset, begin), min(self.slab_offset + self.num_bytes, end)
        if first >= last:
            return None
        return SlabMove(first - begin, self.device_offset + first - self.slab_offset, last - first)


@dataclass(frozen=True, slots=True)
class SlabRange:
    """One contiguous read."""

    file: Path
    file_offset: int
    num_bytes: int
    """Never 0."""
    slab_offset: int

    @property
    def window(self) -> tuple[int, int]:
        """First byte and end of the whole pages of the slab that a page-wise read of this range writes."""
        return self.slab_offset // PAGE_BYTES * PAGE_BYTES, round_up_to_page(self.slab_offset + self.num_bytes)


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """How a layer's tensors are read into a slab and found there."""

    tensors: tuple[SlabTensor, ...]
    """In the order of the files' bytes."""
    ranges: tuple[SlabRange, ...]
    """The reads that fill the slab, by file and offset."""
    slab_bytes: int
    """A multiple of PAGE_BYTES that holds every range's window, and what lies on a device."""
    payload_bytes: int
    """The tensors alone, without gaps and rounding: what statistics and emulated links count."""
    moves: tuple[SlabMove, ...] = ()
    """How a slab comes to a device, by offset there; none: all of it as it lies."""

    @property
    def is_phase_aligned(self) -> bool:
        """Whether whole pages can be read straight into the slab: phases kept, and no page belongs to two ranges."""
        windows = sorted(item.window for item in self.ranges)
        return all((item.slab_offset - item.file_offset) % PAGE_BYTES == 0 for item in self.ranges) and all(
            left[1] <= right[0] for left, right in pairwise(windows)
        )

    def part(self, begin: int, end: int) -> "LayerLayout":
        """Return what fills the slab's bytes [begin, end), `begin` in whole pages, as a slab without tensors' names."""
        ranges = []
        for item in self.ranges:
            first, last = max(item.slab_offset, begin), min(item.slab_offset + item.num_bytes, end)
            if first < last:
                file_offset = item.file_offset + first - item.slab_offset
                ranges.append(SlabRange(item.file, file_offset, last - first, first - begin))
        payload_bytes = share_of(self.payload_bytes, self.slab_bytes, begin, end)
        return LayerLayout((), tuple(ranges), end - begin, payload_bytes)


def share_of(payload_bytes: int, slab_bytes: int, begin: int, end: int) -> int:
    """Return the weight bytes that the slab's bytes [begin, end) count for; those of all its parts add up."""
    return payload_bytes * end // slab_bytes - payload_bytes * begin // slab_bytes


def layout_layer(entries: Mapping[str, TensorEntry]) -> LayerLayout:
    """Lay out tensors (keys: names local to the layer) so that the slab holds the files' bytes unchanged.

    Neighbours up to MAX_GAP_BYTES apart share a range. Where a tensor starts at a file offset that its item size does
    not divide, no range that keeps its phase could be viewed as that type: every tensor then gets its own
    range at a multiple of TENSOR_ALIGNMENT_BYTES, and `is_phase_aligned` is False.
    """
    ordered = sorted(entries.items(), key=lambda item: (str(item[1].file), item[1].offset_bytes, item[1].num_bytes))
    if all(entry.offset_bytes % ITEM_BYTES[entry.dtype] == 0 for _, entry in ordered):
        return _layout_in_phase(ordered)
    return _layout_packed(ordered)


def _layout_in_phase(ordered: list[tuple[str, TensorEntry]]) -> LayerLayout:
    groups: list[list[tuple[str, TensorEntry]]] = []
    group_end = 0
    for item in ordered:
        entry = item[1]
        is_same_file = bool(groups) and groups[-1][0][1].file == entry.file
        if is_same_file and entry.offset_bytes - group_end <= MAX_GAP_BYTES:
            groups[-1].append(item)
            group_end = max(group_end, entry.offset_bytes + entry.num_bytes)
        else:
            groups.append([item])
            group_end = entry.offset_bytes + entry.num_bytes
    tensors: list[SlabTensor] = []
    ranges: list[SlabRange] = []
    cursor = 0
    for group in groups:
        first = group[0][1]
        num_bytes = max(entry.offset_bytes + entry.num_bytes for _, entry in group) - first.offset_bytes
        slab_offset = cursor + first.offset_bytes % PAGE_BYTES
        for name, entry in group:
            offset = slab_offset + entry.offset_bytes - first.offset_bytes
            tensors.append(SlabTensor(name, entry.dtype, entry.shape, offset))
        if num_bytes:
            ranges.append(SlabRange(first.file, first.offset_bytes, num_bytes, slab_offset))
        cursor = round_up_to_page(slab_offset + num_bytes)
    return _with_device_offsets(LayerLayout(tuple(tensors), tuple(ranges), cursor, _payload_bytes(ordered)))


def _layout_packed(ordered: list[tuple[str, TensorEntry]]) -> LayerLayout:
    tensors: list[SlabTensor] = []
    ranges: list[SlabRange] = []
    cursor = 0
    for name, entry in ordered:
        tensors.append(SlabTensor(name, entry.dtype, entry.shape, cursor))
        if entry.num_bytes:
            ranges.append(SlabRange(entry.file, entry.offset_bytes, entry.num_bytes, cursor))
        end = cursor + entry.num_bytes
        cursor = -(-end // TENSOR_ALIGNMENT_BYTES) * TENSOR_ALIGNMENT_BYTES
    slab_bytes = round_up_to_page(cursor)
    return _with_device_offsets(LayerLayout(tuple(tensors), tuple(ranges), slab_bytes, _payload_bytes(ordered)))


def _with_device_offsets(layout: LayerLayout) -> LayerLayout:
    """Give every tensor an aligned place on a device; neighbours move together where the files' gaps keep them aligned.

    A layer in bfloat16 is one piece, as its tensors' bytes are multiples of the alignment; one of 4-bit matrices about
    ten, since the states between them have 173 bytes or so.
    """
    tensors = dict.fromkeys(layout.tensors, 0)
    moves: list[SlabMove] = []
    device_end = 0
    for tensor in sorted(layout.tensors, key=lambda tensor: tensor.slab_offset):
        num_bytes = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
        if num_bytes == 0:
            continue
        last = moves[-1] if moves else None
        shift = last.device_offset - last.slab_offset if last else 1
        if last is None or (tensor.slab_offset + shift) % DEVICE_ALIGNMENT_BYTES:
            begin = -(-device_end // TENSOR_ALIGNMENT_BYTES) * TENSOR_ALIGNMENT_BYTES
            last, shift = SlabMove(tensor.slab_offset, begin, 0), begin - tensor.slab_offset
            moves.append(last)
        tensors[tensor] = tensor.slab_offset + shift
        device_end = max(device_end, tensors[tensor] + num_bytes)
        moves[-1] = replace(last, num_bytes=device_end - last.device_offset)
    return replace(
        layout,
        tensors=tuple(replace(tensor, device_offset=offset) for tensor, offset in tensors.items()),
        slab_bytes=max(layout.slab_bytes, round_up_to_page(device_end)),
        moves=tuple(moves),
    )


def _payload_bytes(ordered: list[tuple[str, TensorEntry]]) -> int:
    return sum(entry.num_bytes for _, entry in ordered)
