"""Find and check the tensors that a quantized linear layer is stored as, in bitsandbytes' spelling.

Besides names and shapes it reads the few bytes that steer (the packed quant_state, the weight format), once, when a
folder is opened, so that no pass has to fetch them from a device. Everything in them counts as hostile: each fault is
one sentence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from offload.checkpoint.checkpoint import Checkpoint, TensorEntry
from offload.checkpoint.strict_json import parse_json
from offload.errors import CheckpointError
from offload.formats.four_bit import BLOCK_SIZES, QUANT_TYPES, FourBitFormat
from offload.formats.int8 import Int8RowsFormat
from offload.formats.stored_sizes import NESTED_BLOCK_SIZE
from profiles.errors import quote

WeightFormat: TypeAlias = Int8RowsFormat | FourBitFormat
"""How a quantized matrix lies in a slab: known on the host before any of its bytes are on a device."""
MAX_STATE_BYTES = 4096
"""bitsandbytes writes about 160."""
_STATE = ".quant_state.bitsandbytes__"
_STATE_KEYS = {"quant_type", "blocksize", "dtype", "shape"}
_NESTED_KEYS = {"nested_blocksize", "nested_dtype", "nested_offset"}
_STORAGE_DTYPES = ("U8", "I8", "BF16", "F16", "F32")
_COMPUTE_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class QuantizedGroup:
    """A quantized matrix as it is stored."""

    format: WeightFormat
    entries: Mapping[str, TensorEntry]
    """Its tensors by their suffix in `format`."""


def find_group(checkpoint: Checkpoint, stored_name: str, shape: tuple[int, int]) -> QuantizedGroup | None:
    """Return the group behind the stored tensor `stored_name`, or None if it is stored as an ordinary matrix.

    Raises CheckpointError: part of a group is missing or not what a matrix of `shape` (O, I) needs.
    """
    entry = checkpoint.tensors[stored_name]
    absmax_name = stored_name.removesuffix("weight") + "SCB"
    states = [kind for kind in QUANT_TYPES if f"{stored_name}{_STATE}{kind}" in checkpoint.tensors]
    if len(states) + (entry.dtype == "I8" and not states) > 1 or (states and absmax_name in checkpoint.tensors):
        raise _wrong(entry, "is described by more than one quantization", "exactly one")
    if states:
        return _four_bit_group(checkpoint, entry, shape, quant_type=states[0])
    if entry.dtype == "I8" or absmax_name in checkpoint.tensors:
        return _int8_group(checkpoint, entry, shape, absmax_name=absmax_name)
    return None


def _int8_group(
    checkpoint: Checkpoint, entry: TensorEntry, shape: tuple[int, int], *, absmax_name: str
) -> QuantizedGroup:
    _check(entry, "I8", shape)
    absmax = _part(checkpoint, absmax_name, entry)
    _check(absmax, "F32", (shape[0],))
    layout = checkpoint.tensors.get(f"{entry.name}_format")
    if layout is not None:
        if layout.dtype != "U8" or layout.num_bytes != 1:
            raise _wrong(layout, f"has type {layout.dtype} and {layout.num_bytes} bytes", "one U8")
        if _read(layout) != b"\0":
            raise _wrong(layout, f"is {_read(layout)[0]}", "0 (row-major); save the model again with bitsandbytes")
    return QuantizedGroup(Int8RowsFormat(), {"": entry, ".SCB": absmax})


def _four_bit_group(
    checkpoint: Checkpoint, entry: TensorEntry, shape: tuple[int, int], *, quant_type: str
) -> QuantizedGroup:
    state = checkpoint.tensors[f"{entry.name}{_STATE}{quant_type}"]
    layout = _parse_state(state, shape, quant_type=quant_type)
    if entry.dtype not in _STORAGE_DTYPES or entry.num_bytes != layout.packed_bytes:
        raise _wrong(
            entry,
            f"has {entry.num_bytes} bytes of {entry.dtype}",
            f"{layout.packed_bytes} bytes of 4-bit codes for a matrix of {quote(list(shape))}",
        )
    names = [suffix for suffix in layout.part_suffixes if suffix]
    parts = {suffix: _part(checkpoint, f"{entry.name}{suffix}", entry) for suffix in names}
    _check(parts[".absmax"], "U8" if layout.is_nested else "F32", (layout.num_blocks,))
    if layout.is_nested:
        _check(parts[".nested_absmax"], "F32", (-(-layout.num_blocks // NESTED_BLOCK_SIZE),))
        _check(parts[".nested_quant_map"], "F32", (256,))
    codes = replace(entry, dtype="U8", shape=(entry.num_bytes,))
    return QuantizedGroup(layout, {"": codes, **parts})


def _parse_state(entry: TensorEntry, shape: tuple[int, int], *, quant_type: str) -> FourBitFormat:
    if entry.dtype != "U8" or not 2 <= entry.num_bytes <= MAX_STATE_BYTES:
        found = f"has {entry.num_bytes} bytes of {entry.dtype}"
        raise _wrong(entry, found, f"up to {MAX_STATE_BYTES} bytes of U8")
    state = parse_json(_read(entry), where=f"the tensor {quote(entry.name)} in {entry.file}")
    keys = _STATE_KEYS | (_NESTED_KEYS if _NESTED_KEYS & state.keys() else set())
    if state.keys() != keys:
        raise _wrong(entry, f"has the keys {quote(sorted(state))}", f"{', '.join(sorted(keys))}")
    block_size = state["blocksize"]
    expected = {
        "quant_type": ((quant_type,), state["quant_type"]),
        "blocksize": (BLOCK_SIZES, block_size),
        "dtype": (_COMPUTE_DTYPES, state["dtype"]),
        "shape": ((list(shape),), state["shape"]),
        "nested_blocksize": ((NESTED_BLOCK_SIZE,), state.get("nested_blocksize", NESTED_BLOCK_SIZE)),
        "nested_dtype": (("float32",), state.get("nested_dtype", "float32")),
    }
    for key, (allowed, found) in expected.items():
        if found not in allowed or isinstance(found, (bool, float)):
            raise _wrong(entry, f"has {key} = {quote(found)}", " or ".join(quote(value) for value in allowed))
    offset = state.get("nested_offset")
    if "nested_offset" in state and not _is_finite_number(offset):
        raise _wrong(entry, f"has nested_offset = {quote(offset)}", "a number")
    return FourBitFormat(shape, quant_type, block_size, None if offset is None else float(offset))


def _is_finite_number(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(float(value))  # type: ignore[arg-type]
    except OverflowError:
        return False


def _part(checkpoint: Checkpoint, name: str, owner: TensorEntry) -> TensorEntry:
    if name not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.folder} lacks the tensor {quote(name)} that the quantized {quote(owner.name)} needs; "
            "download it again"
        )
    return checkpoint.tensors[name]


def _check(entry: TensorEntry, dtype: str, shape: tuple[int, ...]) -> None:
    if entry.dtype != dtype or entry.shape != shape:
        found = f"has type {entry.dtype} and shape {quote(list(entry.shape))}"
        raise _wrong(entry, found, f"{dtype} of {quote(list(shape))}, which config.json calls for")


def _wrong(entry: TensorEntry, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"the tensor {quote(entry.name)} in {entry.file} {found}; expected {expected}")


def _read(entry: TensorEntry) -> bytes:
    """Return a tensor's bytes: only those of steering ones, a few hundred at most."""
    try:
        with entry.file.open("rb") as opened:
            opened.seek(entry.offset_bytes)
            raw = opened.read(entry.num_bytes)
    except OSError as error:
        raise CheckpointError(f"{entry.file} cannot be read: {quote(str(error))}") from error
    if len(raw) != entry.num_bytes:
        raise _wrong(entry, f"ends after {len(raw)} bytes", f"{entry.num_bytes}; download it again")
    return raw
