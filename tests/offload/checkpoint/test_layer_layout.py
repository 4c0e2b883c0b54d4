"""A slab is the file's bytes: every layout is played through on real bytes and compared with them."""

import random
from pathlib import Path

from offload.checkpoint.checkpoint import ITEM_BYTES
from offload.checkpoint.layer_layout import (
    DEVICE_ALIGNMENT_BYTES,
    MAX_GAP_BYTES,
    TENSOR_ALIGNMENT_BYTES,
    LayerLayout,
    SlabMove,
    SlabRange,
    layout_layer,
)
from offload.checkpoint.tensor_entry import TensorEntry
from offload.stage_ring import piece_bounds
from offload.units import PAGE_BYTES

FILE = Path("a.safetensors")
OTHER = Path("b.safetensors")


def entry(offset, num_items, *, dtype="BF16", file=FILE):
    return TensorEntry("stored", dtype, (num_items,), file, offset, num_items * ITEM_BYTES[dtype])


def read_by_pages(layout: LayerLayout, contents: dict[Path, bytes]) -> bytearray:
    """Fill a slab as O_DIRECT would: whole pages of the file over whole pages of the slab, in an arbitrary order."""
    slab = bytearray(layout.slab_bytes)
    for item in reversed(layout.ranges):
        first, end = item.window
        file_first = item.file_offset - (item.slab_offset - first)
        assert file_first % PAGE_BYTES == 0 and first % PAGE_BYTES == 0 and end <= layout.slab_bytes
        read = contents[item.file][file_first : file_first + end - first]
        slab[first : first + len(read)] = read
    return slab


def read_exactly(layout: LayerLayout, contents: dict[Path, bytes]) -> bytearray:
    slab = bytearray(layout.slab_bytes)
    for item in layout.ranges:
        read = contents[item.file][item.file_offset : item.file_offset + item.num_bytes]
        assert len(read) == item.num_bytes and item.slab_offset + len(read) <= len(slab)
        slab[item.slab_offset : item.slab_offset + len(read)] = read
    return slab


def assert_tensors_are_there(layout, entries, slab, contents):
    assert {tensor.name for tensor in layout.tensors} == set(entries)
    for tensor in layout.tensors:
        stored = entries[tensor.name]
        assert (tensor.dtype, tensor.shape) == (stored.dtype, stored.shape)
        assert tensor.slab_offset % ITEM_BYTES[tensor.dtype] == 0
        expected = contents[stored.file][stored.offset_bytes : stored.offset_bytes + stored.num_bytes]
        assert slab[tensor.slab_offset : tensor.slab_offset + stored.num_bytes] == expected


def random_entries(source: random.Random, *, alignment: int) -> tuple[dict[str, TensorEntry], dict[Path, bytes]]:
    entries, contents = {}, {}
    for file in (FILE, OTHER)[: source.choice((1, 2))]:
        offset = source.randrange(8, 9000)
        for index in range(source.randrange(1, 8)):
            gap = source.choice((0, 0, 0, 40, 5000, MAX_GAP_BYTES - 8, MAX_GAP_BYTES + 8))
            offset = (offset + gap) // alignment * alignment + alignment
            dtype = source.choice(("BF16", "F16", "F32"))
            stored = entry(offset, source.choice((0, 1, 33, 4096, 10_000)), dtype=dtype, file=file)
            entries[f"{file.stem}.{index}"] = stored
            offset += stored.num_bytes
        contents[file] = source.randbytes(offset + source.randrange(5000))
    return dict(source.sample(list(entries.items()), len(entries))), contents


def test_page_wise_and_exact_reads_both_put_the_files_bytes_under_every_tensor():
    for seed in range(40):
        entries, contents = random_entries(random.Random(seed), alignment=4)
        layout = layout_layer(entries)
        assert layout.is_phase_aligned and layout.slab_bytes % PAGE_BYTES == 0
        assert layout.payload_bytes == sum(stored.num_bytes for stored in entries.values())
        assert_tensors_are_there(layout, entries, read_by_pages(layout, contents), contents)
        assert_tensors_are_there(layout, entries, read_exactly(layout, contents), contents)


def test_tensors_at_odd_offsets_get_a_range_each_and_no_page_wise_reads():
    for seed in range(20):
        entries, contents = random_entries(random.Random(seed), alignment=1)
        entries["odd"] = entry(7, 16)
        layout = layout_layer(entries)
        assert not layout.is_phase_aligned
        assert all(tensor.slab_offset % TENSOR_ALIGNMENT_BYTES == 0 for tensor in layout.tensors)
        assert len(layout.ranges) == sum(stored.num_bytes > 0 for stored in entries.values())
        assert layout.slab_bytes % PAGE_BYTES == 0
        assert_tensors_are_there(layout, entries, read_exactly(layout, contents), contents)


def test_a_layer_that_lies_together_is_one_range_at_its_own_phase():
    layout = layout_layer({"k": entry(10_000 + 200, 50), "q": entry(10_000, 100), "v": entry(10_300, 10)})
    assert layout.ranges == (SlabRange(FILE, 10_000, 320, 10_000 % PAGE_BYTES),)
    assert [tensor.name for tensor in layout.tensors] == ["q", "k", "v"]
    assert layout.slab_bytes == PAGE_BYTES and layout.payload_bytes == 320


def test_gaps_are_read_through_up_to_a_mebibyte():
    near = layout_layer({"a": entry(0, 2), "b": entry(4 + MAX_GAP_BYTES, 2)})
    far = layout_layer({"a": entry(0, 2), "b": entry(6 + MAX_GAP_BYTES, 2)})
    assert [item.num_bytes for item in near.ranges] == [MAX_GAP_BYTES + 8]
    assert [item.num_bytes for item in far.ranges] == [4, 4]
    assert far.slab_bytes == 2 * PAGE_BYTES


def test_two_files_are_two_ranges_even_where_their_offsets_meet():
    layout = layout_layer({"a": entry(0, 2), "b": entry(4, 2, file=OTHER)})
    assert [item.file for item in layout.ranges] == [FILE, OTHER]
    assert layout.ranges[1].slab_offset == PAGE_BYTES + 4


def test_nothing_at_all_is_an_empty_slab():
    assert layout_layer({}) == LayerLayout((), (), 0, 0)


def test_ranges_that_share_a_page_are_not_phase_aligned():
    """A page-wise read of one would overwrite the other."""
    ranges = (SlabRange(FILE, 0, 10, 0), SlabRange(FILE, 100, 10, 100))
    assert not LayerLayout((), ranges, PAGE_BYTES, 20).is_phase_aligned


def moved(layout: LayerLayout, slab: bytearray) -> bytearray:
    """The slab as it lies on a device."""
    device = bytearray(layout.slab_bytes)
    end = 0
    for move in layout.moves:
        assert move.num_bytes > 0 and move.device_offset >= end
        end = move.device_offset + move.num_bytes
        assert end <= layout.slab_bytes and move.slab_offset + move.num_bytes <= layout.slab_bytes
        device[move.device_offset : end] = slab[move.slab_offset : move.slab_offset + move.num_bytes]
    return device


def test_on_a_device_every_tensor_is_aligned_and_the_files_own() -> None:
    for seed in range(60):
        entries, contents = random_entries(random.Random(seed), alignment=(1, 2, 4, 8)[seed % 4])
        layout = layout_layer(entries)
        device = moved(layout, read_exactly(layout, contents))
        for tensor in layout.tensors:
            stored = entries[tensor.name]
            assert tensor.device_offset % DEVICE_ALIGNMENT_BYTES == 0
            expected = contents[stored.file][stored.offset_bytes : stored.offset_bytes + stored.num_bytes]
            assert device[tensor.device_offset : tensor.device_offset + stored.num_bytes] == expected


def test_a_layer_of_dense_matrices_crosses_in_one_piece_whatever_the_files_phase() -> None:
    for phase in range(0, 4096, 8):
        sizes = {"k": 1024 * 8192, "norm": 8192, "q": 8192 * 8192}
        entries, offset = {}, 4096 + phase
        for name, num_items in sizes.items():
            entries[name] = entry(offset, num_items)
            offset += 2 * num_items
        layout = layout_layer(entries)
        assert layout.moves == (SlabMove(phase, 0, layout.payload_bytes),)


def test_a_layer_of_four_bit_matrices_crosses_in_few_pieces() -> None:
    """As bitsandbytes saves the 70B: scales, then norms, then codes with states of 173 bytes among them, by name."""
    shapes = {"down": (8192, 28672), "gate": (28672, 8192), "up": (28672, 8192)}
    shapes |= {"k": (1024, 8192), "o": (8192, 8192), "q": (8192, 8192), "v": (1024, 8192)}
    entries, offset = {}, 1_000_008
    for name, (rows, columns) in shapes.items():
        num_blocks = rows * columns // 64
        for part, num_items in (("nested_absmax", num_blocks // 256), ("nested_quant_map", 256)):
            entries[f"{name}.{part}"] = entry(offset, num_items, dtype="F32")
            offset += 4 * num_items
        offset += 64  # quant_map, which no layer needs
    offset += 3_000_000_000
    for name in ("input_norm", "post_norm"):
        entries[name] = entry(offset, 8192)
        offset += 2 * 8192
    offset += 1_000_000_000
    for name, (rows, columns) in shapes.items():
        for part, num_items in ((name, rows * columns // 2), (f"{name}.absmax", rows * columns // 64)):
            entries[part] = entry(offset, num_items, dtype="U8")
            offset += num_items
        offset += 173
    layout = layout_layer(entries)
    assert len(layout.ranges) == 3 and not all(tensor.slab_offset % 16 == 0 for tensor in layout.tensors)
    assert all(tensor.device_offset % 16 == 0 for tensor in layout.tensors)
    assert len(layout.moves) <= 10
    assert layout.slab_bytes - layout.payload_bytes < 32 << 10


def test_parts_of_a_layout_read_what_the_whole_of_it_reads():
    """By pages where the whole is read so, which needs whole pages of file and memory in every part."""
    for seed in range(60):
        source = random.Random(seed)
        entries, contents = random_entries(source, alignment=source.choice((1, 2)))
        layout = layout_layer(entries)
        if layout.slab_bytes == 0:
            continue
        read = read_by_pages if layout.is_phase_aligned else read_exactly
        num_pieces = source.randrange(1, 9)
        parts = [layout.part(begin, end) for begin, end in piece_bounds(layout.slab_bytes, num_pieces)]
        assert b"".join(read(part, contents) for part in parts) == read(layout, contents)
        assert sum(part.payload_bytes for part in parts) == layout.payload_bytes
        assert all(part.is_phase_aligned >= layout.is_phase_aligned for part in parts)


def test_parts_of_a_slab_come_to_the_same_places_on_a_device() -> None:
    for seed in range(60):
        source = random.Random(seed)
        entries, contents = random_entries(source, alignment=source.choice((1, 2, 8)))
        layout = layout_layer(entries)
        slab, device = read_exactly(layout, contents), bytearray(layout.slab_bytes)
        for begin, end in piece_bounds(layout.slab_bytes, source.randrange(1, 9)) if slab else ():
            stage = slab[begin:end]
            for move in filter(None, (item.part(begin, end) for item in layout.moves)):
                moving = stage[move.slab_offset : move.slab_offset + move.num_bytes]
                device[move.device_offset : move.device_offset + move.num_bytes] = moving
        assert device == moved(layout, slab)
