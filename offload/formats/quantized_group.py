"""Find and check the tensors that a linear layer is stored as: quantized, in bitsandbytes' spelling or as published,
or packed.

Besides names and shapes it reads the few bytes that steer (the packed quant_state, the weight format, the state of a
packed matrix), once, when a folder is opened, so that no pass has to fetch them from a device. Everything in them
counts as hostile: each fault is one sentence.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from offload.checkpoint.checkpoint import SUPPORTED_DTYPES, Checkpoint
from offload.checkpoint.strict_json import parse_json
from offload.checkpoint.tensor_entry import TensorEntry
from offload.formats.four_bit import BLOCK_SIZES, QUANT_TYPES, FourBitFormat
from offload.formats.ggml_blocks import GgmlFormat
from offload.formats.ggml_codes import BLOCK_TYPES
from offload.formats.group_parts import check_part, read_part, require_part, wrong_part
from offload.formats.int8 import Int8RowsFormat
from offload.formats.packed import MAX_BASE, PackedFormat
from offload.formats.packed_tensors import ESCAPE_MULTIPLE, FORMAT_NAME, STATE_SUFFIX
from offload.formats.published_groups import find_published
from offload.formats.stored_sizes import CHUNK_ROW_MULTIPLE, NESTED_BLOCK_SIZE, PACKED_COLUMNS
from offload.formats.weight_format import WeightFormat
from profiles.errors import quote

MAX_STATE_BYTES = 4096
"""bitsandbytes writes about 160."""
_PACKED_KEYS = {"format", "shape", "base", "escape_counts", "sha256"}
_PACKED_STATE_BYTES, _BYTES_PER_COUNT = 1024, 12
"""Of a packed matrix's state: that of its keys, and of a block's number of escapes, at most."""
_STATE = ".quant_state.bitsandbytes__"
_STATE_KEYS = {"quant_type", "blocksize", "dtype", "shape"}
_NESTED_KEYS = frozenset(("nested_blocksize", "nested_dtype", "nested_offset"))
_STORAGE_DTYPES = ("U8", "I8", "BF16", "F16", "F32")
_COMPUTE_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class QuantizedGroup:
    """A quantized or packed matrix as it is stored."""

    format: WeightFormat
    entries: Mapping[str, TensorEntry]
    """Its tensors by their suffix in `format`."""
    sha256: str | None = None
    """Of the bytes of the matrix that was packed; None where nothing says it."""


def find_group(checkpoint: Checkpoint, stored_name: str, shape: tuple[int, int]) -> QuantizedGroup | None:
    """Return the group behind the stored tensor `stored_name`, or None if it is stored as an ordinary matrix.

    Raises CheckpointError: part of a group is missing or not what a matrix of `shape` (O, I) needs.
    """
    entry = checkpoint.tensors[stored_name]
    if checkpoint.gguf is not None:
        return _ggml_group(entry, shape)
    if (settings := checkpoint.published) is not None:
        found = find_published(checkpoint, settings, stored_name, shape)
        return None if found is None else QuantizedGroup(*found)
    absmax_name = stored_name.removesuffix("weight") + "SCB"
    states = [kind for kind in QUANT_TYPES if f"{stored_name}{_STATE}{kind}" in checkpoint.tensors]
    num_others = len(states) + (absmax_name in checkpoint.tensors)
    if f"{stored_name}{STATE_SUFFIX}" in checkpoint.tensors:
        if num_others:
            raise wrong_part(entry, "is described as quantized and as packed", "one of the two")
        return _packed_group(checkpoint, entry, shape)
    if len(states) + (entry.dtype == "I8" and not states) > 1 or (states and absmax_name in checkpoint.tensors):
        raise wrong_part(entry, "is described by more than one quantization", "exactly one")
    if states:
        return _four_bit_group(checkpoint, entry, shape, quant_type=states[0])
    if entry.dtype == "I8" or absmax_name in checkpoint.tensors:
        return _int8_group(checkpoint, entry, shape, absmax_name=absmax_name)
    return None


def _ggml_group(entry: TensorEntry, shape: tuple[int, int]) -> QuantizedGroup | None:
    if entry.dtype in SUPPORTED_DTYPES:
        return None
    if entry.shape != shape:
        raise wrong_part(entry, f"has the shape {quote(list(entry.shape))}", f"{quote(list(shape))} by its metadata")
    if entry.dtype not in BLOCK_TYPES:
        known = ", ".join((*SUPPORTED_DTYPES, *BLOCK_TYPES))
        raise wrong_part(
            entry, f"is stored as {entry.dtype}", f"one of {known}: choose another quantization of the model"
        )
    raw = replace(entry, dtype="U8", shape=(entry.num_bytes,))
    return QuantizedGroup(GgmlFormat(shape, entry.dtype), {"": raw})


def _int8_group(
    checkpoint: Checkpoint, entry: TensorEntry, shape: tuple[int, int], *, absmax_name: str
) -> QuantizedGroup:
    check_part(entry, "I8", shape)
    absmax = require_part(checkpoint, absmax_name, entry)
    check_part(absmax, "F32", (shape[0],))
    layout = checkpoint.tensors.get(f"{entry.name}_format")
    if layout is not None:
        if layout.dtype != "U8" or layout.num_bytes != 1:
            raise wrong_part(layout, f"has type {layout.dtype} and {layout.num_bytes} bytes", "one U8")
        if read_part(layout) != b"\0":
            raise wrong_part(
                layout, f"is {read_part(layout)[0]}", "0 (row-major); save the model again with bitsandbytes"
            )
    return QuantizedGroup(Int8RowsFormat(shape), {"": entry, ".SCB": absmax})


def _four_bit_group(
    checkpoint: Checkpoint, entry: TensorEntry, shape: tuple[int, int], *, quant_type: str
) -> QuantizedGroup:
    state = checkpoint.tensors[f"{entry.name}{_STATE}{quant_type}"]
    layout = _parse_state(state, shape, quant_type=quant_type)
    if entry.dtype not in _STORAGE_DTYPES or entry.num_bytes != layout.packed_bytes:
        raise wrong_part(
            entry,
            f"has {entry.num_bytes} bytes of {entry.dtype}",
            f"{layout.packed_bytes} bytes of 4-bit codes for a matrix of {quote(list(shape))}",
        )
    names = [suffix for suffix in layout.part_suffixes if suffix]
    parts = {suffix: require_part(checkpoint, f"{entry.name}{suffix}", entry) for suffix in names}
    check_part(parts[".absmax"], "U8" if layout.is_nested else "F32", (layout.num_blocks,))
    if layout.is_nested:
        check_part(parts[".nested_absmax"], "F32", (-(-layout.num_blocks // NESTED_BLOCK_SIZE),))
        check_part(parts[".nested_quant_map"], "F32", (256,))
    codes = replace(entry, dtype="U8", shape=(entry.num_bytes,))
    return QuantizedGroup(layout, {"": codes, **parts})


def _packed_group(checkpoint: Checkpoint, entry: TensorEntry, shape: tuple[int, int]) -> QuantizedGroup:
    num_rows, num_columns = shape
    if num_columns % PACKED_COLUMNS:
        raise wrong_part(entry, f"is packed and has {num_columns} columns", f"a multiple of {PACKED_COLUMNS}")
    check_part(entry, "I16", (num_rows, 3 * num_columns // 4))
    state = checkpoint.tensors[f"{entry.name}{STATE_SUFFIX}"]
    num_blocks = -(-num_rows // CHUNK_ROW_MULTIPLE)
    most_bytes = _PACKED_STATE_BYTES + _BYTES_PER_COUNT * num_blocks
    found = _parse_json(state, keys=_PACKED_KEYS, max_bytes=most_bytes)
    counts, base, sha256 = found["escape_counts"], found["base"], found["sha256"]
    _expect(state, {"format": ((FORMAT_NAME,), found["format"]), "shape": ((list(shape),), found["shape"])})
    if type(base) is not int or not 0 <= base <= MAX_BASE:
        raise wrong_part(state, f"has base = {quote(base)}", f"a whole number up to {MAX_BASE}")
    most = CHUNK_ROW_MULTIPLE * num_columns
    is_counted = isinstance(counts, list) and all(type(count) is int and 0 <= count <= most for count in counts)
    if not is_counted or len(counts) != num_blocks:
        raise wrong_part(state, f"has escape_counts = {quote(counts)}", f"{num_blocks} numbers up to {most}")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise wrong_part(state, f"has sha256 = {quote(sha256)}", "64 hexadecimal digits")
    layout = PackedFormat(shape, base, np.cumsum(counts, dtype=np.int64))
    names = [suffix for suffix in layout.part_suffixes if suffix]
    parts = {suffix: require_part(checkpoint, f"{entry.name}{suffix}", entry) for suffix in names}
    num_listed = -(-sum(counts) // ESCAPE_MULTIPLE) * ESCAPE_MULTIPLE
    check_part(parts[".escapes"], "I32", (num_listed,))
    check_part(parts[".escape_values"], "BF16", (num_listed,))
    return QuantizedGroup(layout, {"": entry, **parts}, sha256)


def _parse_state(entry: TensorEntry, shape: tuple[int, int], *, quant_type: str) -> FourBitFormat:
    state = _parse_json(entry, keys=_STATE_KEYS, more_keys=_NESTED_KEYS, max_bytes=MAX_STATE_BYTES)
    block_size = state["blocksize"]
    expected = {
        "quant_type": ((quant_type,), state["quant_type"]),
        "blocksize": (BLOCK_SIZES, block_size),
        "dtype": (_COMPUTE_DTYPES, state["dtype"]),
        "shape": ((list(shape),), state["shape"]),
        "nested_blocksize": ((NESTED_BLOCK_SIZE,), state.get("nested_blocksize", NESTED_BLOCK_SIZE)),
        "nested_dtype": (("float32",), state.get("nested_dtype", "float32")),
    }
    _expect(entry, expected)
    offset = state.get("nested_offset")
    if "nested_offset" in state and not _is_finite_number(offset):
        raise wrong_part(entry, f"has nested_offset = {quote(offset)}", "a number")
    return FourBitFormat(shape, quant_type, block_size, None if offset is None else float(offset))


def _parse_json(
    entry: TensorEntry, *, keys: set[str], max_bytes: int, more_keys: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return the JSON object that a tensor of bytes holds: with these keys, and with all or none of `more_keys`."""
    if entry.dtype != "U8" or not 2 <= entry.num_bytes <= max_bytes:
        raise wrong_part(entry, f"has {entry.num_bytes} bytes of {entry.dtype}", f"up to {max_bytes} bytes of U8")
    state = parse_json(read_part(entry), where=f"the tensor {quote(entry.name)} in {entry.file}")
    expected = keys | (more_keys if more_keys & state.keys() else set())
    if state.keys() != expected:
        raise wrong_part(entry, f"has the keys {quote(sorted(state))}", f"{', '.join(sorted(expected))}")
    return state


def _expect(entry: TensorEntry, expected: Mapping[str, tuple[tuple[object, ...], object]]) -> None:
    """Raise CheckpointError unless each key's value, given beside what is allowed, is one of those."""
    for key, (allowed, found) in expected.items():
        if found not in allowed or isinstance(found, (bool, float)):
            raise wrong_part(entry, f"has {key} = {quote(found)}", " or ".join(quote(value) for value in allowed))


def _is_finite_number(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(float(value))  # type: ignore[arg-type]
    except OverflowError:
        return False
