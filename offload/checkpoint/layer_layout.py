"""One decoder layer as one slab whose bytes are the file's bytes.

Pure arithmetic: which byte ranges of which files to read, where each lands in the slab, and where each tensor then
lies. Opens no file and allocates nothing. Ranges keep their phase modulo the page, so that O_DIRECT can read them in
place: file offset, memory address and length are then all multiples of the page once rounded outwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from offload.checkpoint.checkpoint import ITEM_BYTES, TensorEntry
from offload.units import PAGE_BYTES, round_up_to_page

MAX_GAP_BYTES = 1 << 20
"""Reading through a gap this long costs less than another request."""
TENSOR_ALIGNMENT_BYTES = 64
"""Where tensors are packed by ourselves: a cache line, and a multiple of every item size."""


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
    """Bytes from the slab's beginning; a multiple of the item size."""


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
    """A multiple of PAGE_BYTES that holds every range's window."""
    payload_bytes: int
    """The tensors alone, without gaps and rounding: what statistics and emulated links count."""

    @property
    def is_phase_aligned(self) -> bool:
        """Whether whole pages can be read straight into the slab: phases kept, and no page belongs to two ranges."""
        windows = sorted(item.window for item in self.ranges)
        return all((item.slab_offset - item.file_offset) % PAGE_BYTES == 0 for item in self.ranges) and all(
            left[1] <= right[0] for left, right in pairwise(windows)
        )


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
    return LayerLayout(tuple(tensors), tuple(ranges), cursor, _payload_bytes(ordered))


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
    return LayerLayout(tuple(tensors), tuple(ranges), round_up_to_page(cursor), _payload_bytes(ordered))


def _payload_bytes(ordered: list[tuple[str, TensorEntry]]) -> int:
    return sum(entry.num_bytes for _, entry in ordered)
