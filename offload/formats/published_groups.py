"""Find and check the tensors of a matrix as quantized models are published: FP8, AWQ, GPTQ, compressed-tensors, MXFP4.

The tensors decide: their names, types and shapes say what a matrix is stored as, and config.json must not contradict.
What would lead outside a tensor (the groups that act order names) is checked on the host, once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.published_settings import PUBLISHED_METHODS, NumberKind, PublishedSettings
from offload.checkpoint.tensor_entry import TensorEntry
from offload.formats.eight_bit import EightBitFormat
from offload.formats.group_parts import check_part, read_part, require_part, wrong_part
from offload.formats.integer_groups import AWQ_BITS, AwqFormat, GptqFormat, PackedIntegersFormat
from offload.formats.microscaled import MicroscaledFormat
from offload.formats.weight_format import WeightFormat
from profiles.errors import quote

PublishedGroup: TypeAlias = tuple[WeightFormat, Mapping[str, TensorEntry]]
"""A matrix's format, and its tensors by their suffix in it."""
_FLOATS = ("F32", "BF16", "F16")
_EXPONENTS = ("U8", "F8_E8M0")
"""Types of e8m0 scales; files that are older than the second spell them as bytes."""
_FLOAT8_SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight")
NVFP4_GROUP, MXFP4_GROUP = 16, 32


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix that is looked at."""

    checkpoint: Checkpoint
    settings: PublishedSettings
    base: str
    """What the names of its tensors begin with, "model.layers.0.mlp.up_proj."."""
    codes: TensorEntry
    shape: tuple[int, int]

    def part(self, name: str) -> TensorEntry:
        return require_part(self.checkpoint, f"{self.base}{name}", self.codes)

    def optional(self, name: str) -> TensorEntry | None:
        return self.checkpoint.tensors.get(f"{self.base}{name}")

    def wrong(self, expected: str) -> Exception:
        found = f"has type {self.codes.dtype} and shape {quote(list(self.codes.shape))}"
        return wrong_part(self.codes, found, f"{expected} for a matrix of {quote(list(self.shape))}")

    def check_settings(self, name: str, kind: NumberKind, bits: int, group_size: int | None = None) -> None:
        """Raise CheckpointError unless config.json tells of a matrix in the format of that name, of such numbers."""
        allowed = PUBLISHED_METHODS[self.settings.method]
        if name not in allowed:
            expected = f"{' or '.join(allowed)}, as quant_method {quote(self.settings.method)} in config.json has it"
            raise wrong_part(self.codes, f"is stored as {name}", expected)
        if not self.settings.describes(kind, bits, group_size):
            groups = "" if group_size is None else f" in groups of {group_size}"
            expected = "what quantization_config in config.json says of its matrices"
            raise wrong_part(self.codes, f"holds {kind} numbers of {bits} bits{groups}", expected)


def find_published(
    checkpoint: Checkpoint, settings: PublishedSettings, stored_name: str, shape: tuple[int, int]
) -> PublishedGroup | None:
    """Return format and tensors of the matrix `stored_name`, or None if it is stored as an ordinary one.

    Raises CheckpointError: a tensor is missing or not what a matrix of `shape` (O, I) needs, or config.json says
    otherwise.
    """
    matrix = _Matrix(checkpoint, settings, stored_name.removesuffix("weight"), checkpoint.tensors[stored_name], shape)
    find = _finder(matrix)
    if find is None:
        return None
    found, entries = find(matrix)
    if matrix.base.removesuffix(".") in settings.ignored:
        raise wrong_part(
            matrix.codes, f"is stored as {found.name}", "an ordinary matrix, as config.json lists it among those"
        )
    return found, entries


def _finder(matrix: _Matrix) -> Callable[[_Matrix], PublishedGroup] | None:
    codes = matrix.codes
    if codes.name.endswith(".qweight"):
        return _gptq if matrix.settings.method == "gptq" else _awq
    if codes.name.endswith(".weight_packed"):
        return _packed_integers if codes.dtype == "I32" else _four_bit_floats
    if codes.name.endswith(".weight_blocks"):
        return partial(_mxfp4, scales_name="weight_scales")
    if codes.dtype in ("F8_E4M3", "F8_E5M2"):
        return _float8
    if codes.dtype == "I8":
        return _int8
    return _nvfp4_of_modelopt if codes.dtype == "U8" else None


def _gptq(matrix: _Matrix) -> PublishedGroup:
    num_outputs, num_inputs = matrix.shape
    codes, scales, qzeros = matrix.codes, matrix.part("scales"), matrix.part("qzeros")
    bits = next((bits for bits in (4, 8) if codes.shape == (num_inputs * bits // 32, num_outputs)), 0)
    if codes.dtype != "I32" or not bits or num_inputs * bits % 32 or num_outputs * bits % 32:
        raise matrix.wrong("I32 of [I * bits / 32, O], 4 or 8 bits, in whole words")
    group_size = _group_size(matrix, scales, scales.shape[0] if scales.shape else 0)
    num_groups = num_inputs // group_size
    check_part(scales, _FLOATS, (num_groups, num_outputs))
    check_part(qzeros, "I32", (num_groups, num_outputs * bits // 32))
    matrix.check_settings("gptq", "int", bits, None if num_groups == 1 else group_size)
    entries = {"": codes, ".qzeros": qzeros, ".scales": scales}
    order = _order(matrix, "g_idx", group_size)
    if order is not None:
        entries[".g_idx"] = order
    found = GptqFormat(matrix.shape, bits, group_size, matrix.settings.zero_offset, has_order=order is not None)
    return found, entries


def _awq(matrix: _Matrix) -> PublishedGroup:
    num_outputs, num_inputs = matrix.shape
    codes, scales, qzeros = matrix.codes, matrix.part("scales"), matrix.part("qzeros")
    if codes.dtype != "I32" or codes.shape != (num_inputs, num_outputs // 8) or num_outputs % 8:
        raise matrix.wrong("I32 of [I, O / 8]")
    group_size = _group_size(matrix, scales, scales.shape[0] if scales.shape else 0)
    num_groups = num_inputs // group_size
    check_part(scales, _FLOATS, (num_groups, num_outputs))
    check_part(qzeros, "I32", (num_groups, num_outputs // 8))
    matrix.check_settings("awq", "int", AWQ_BITS, None if num_groups == 1 else group_size)
    return AwqFormat(matrix.shape, group_size), {"": codes, ".qzeros": qzeros, ".scales": scales}


def _packed_integers(matrix: _Matrix) -> PublishedGroup:
    num_outputs, num_inputs = matrix.shape
    codes, scales = matrix.codes, matrix.part("weight_scale")
    bits = next((bits for bits in (4, 8) if codes.shape == (num_outputs, num_inputs * bits // 32)), 0)
    if not bits or num_inputs * bits % 32:
        raise matrix.wrong("I32 of [O, I * bits / 32], 4 or 8 bits, in whole words")
    num_groups = 1 if scales.shape == (num_outputs,) else scales.shape[-1] if scales.shape else 0
    group_size = _group_size(matrix, scales, num_groups)
    check_part(scales, _FLOATS, scales.shape if scales.shape == (num_outputs,) else (num_outputs, num_groups))
    matrix.check_settings(f"w{bits}a16", "int", bits, None if num_groups == 1 else group_size)
    entries = {"": codes, ".scales": scales}
    zeros = matrix.optional("weight_zero_point")
    if zeros is not None:
        check_part(zeros, "I32", (-(-num_outputs * bits // 32), num_groups))
        entries[".zeros"] = zeros
    order = _order(matrix, "weight_g_idx", group_size)
    if order is not None:
        entries[".g_idx"] = order
    has_zeros, has_order = zeros is not None, order is not None
    return PackedIntegersFormat(matrix.shape, bits, group_size, has_zeros, has_order), entries


def _four_bit_floats(matrix: _Matrix) -> PublishedGroup:
    """Return NVFP4 or MXFP4 as compressed-tensors stores them; only the first has a scale for the whole matrix."""
    divisor = matrix.optional("weight_global_scale")
    if divisor is None:
        return _mxfp4(matrix, scales_name="weight_scale")
    return _nvfp4(matrix, divisor, divides=True)


def _nvfp4_of_modelopt(matrix: _Matrix) -> PublishedGroup:
    return _nvfp4(matrix, matrix.part("weight_scale_2"), divides=False)


def _nvfp4(matrix: _Matrix, global_scale: TensorEntry, *, divides: bool) -> PublishedGroup:
    num_outputs, num_inputs = matrix.shape
    scales = matrix.part("weight_scale")
    if matrix.codes.shape != (num_outputs, num_inputs // 2) or num_inputs % NVFP4_GROUP or matrix.codes.dtype != "U8":
        raise matrix.wrong(f"U8 of [O, I / 2], I a multiple of {NVFP4_GROUP},")
    check_part(scales, "F8_E4M3", (num_outputs, num_inputs // NVFP4_GROUP))
    check_part(global_scale, "F32", () if global_scale.shape == () else (1,))
    matrix.check_settings("nvfp4", "float", 4)
    found = MicroscaledFormat(matrix.shape, "nvfp4", NVFP4_GROUP, "divides" if divides else "multiplies")
    return found, {"": matrix.codes, ".scales": scales, ".global_scale": global_scale}


def _mxfp4(matrix: _Matrix, *, scales_name: str) -> PublishedGroup:
    num_outputs, num_inputs = matrix.shape
    num_groups = num_inputs // MXFP4_GROUP
    shapes = ((num_outputs, num_inputs // 2), (num_outputs, num_groups, MXFP4_GROUP // 2))
    if matrix.codes.shape not in shapes or num_inputs % MXFP4_GROUP or matrix.codes.dtype != "U8":
        raise matrix.wrong(f"U8 of [O, I / 2], I a multiple of {MXFP4_GROUP},")
    scales = matrix.part(scales_name)
    check_part(scales, _EXPONENTS, (num_outputs, num_groups))
    matrix.check_settings("mxfp4", "float", 4)
    return MicroscaledFormat(matrix.shape, "mxfp4", MXFP4_GROUP), {"": matrix.codes, ".scales": _as_bytes(scales)}


def _float8(matrix: _Matrix) -> PublishedGroup:
    if matrix.codes.dtype != "F8_E4M3" or matrix.codes.shape != matrix.shape:
        raise matrix.wrong("F8_E4M3 of [O, I]")
    found = (scales for name in _FLOAT8_SCALES if (scales := matrix.optional(name)) is not None)
    scales = next(found, None) or matrix.part(_FLOAT8_SCALES[matrix.settings.method != "fp8"])
    block = _block_of(matrix, scales)
    matrix.check_settings("fp8", "float", 8)
    return EightBitFormat(matrix.shape, "fp8", block), {"": matrix.codes, ".scales": _as_bytes(scales)}


def _int8(matrix: _Matrix) -> PublishedGroup:
    if matrix.codes.shape != matrix.shape:
        raise matrix.wrong("I8 of [O, I]")
    zeros = matrix.optional("weight_zero_point")
    if zeros is not None:
        raise wrong_part(zeros, "gives int8 rows zero points", "rows without, as W8A8 is published")
    scales = matrix.part("weight_scale")
    block = _block_of(matrix, scales)
    matrix.check_settings("int8", "int", 8)
    return EightBitFormat(matrix.shape, "int8", block), {"": matrix.codes, ".scales": _as_bytes(scales)}


def _block_of(matrix: _Matrix, scales: TensorEntry) -> tuple[int, int]:
    """Return how many rows and columns share a scale: by the settings' blocks, else a row, else the matrix."""
    num_outputs, num_inputs = matrix.shape
    if scales.dtype not in (*_FLOATS, *_EXPONENTS):
        raise wrong_part(scales, f"has type {scales.dtype}", f"scales of {', '.join((*_FLOATS, *_EXPONENTS))}")
    for height, width in matrix.settings.blocks:
        if scales.shape == (-(-num_outputs // height), -(-num_inputs // width)):
            return height, width
    if scales.shape in ((num_outputs,), (num_outputs, 1)):
        return 1, num_inputs
    if math.prod(scales.shape) == 1:
        return num_outputs, num_inputs
    blocks = "".join(f", or blocks of {quote(list(block))}" for block in matrix.settings.blocks)
    found = f"has the shape {quote(list(scales.shape))}"
    expected = f"a scale for all, for each row{blocks} of a matrix of {quote(list(matrix.shape))}"
    raise wrong_part(scales, found, expected)


def _group_size(matrix: _Matrix, scales: TensorEntry, num_groups: int) -> int:
    num_inputs = matrix.shape[1]
    if not 0 < num_groups <= num_inputs or num_inputs % num_groups:
        found = f"has the shape {quote(list(scales.shape))}"
        raise wrong_part(scales, found, f"scales of equal groups for a matrix of {quote(list(matrix.shape))}")
    return num_inputs // num_groups


def _order(matrix: _Matrix, name: str, group_size: int) -> TensorEntry | None:
    """Return the index of the columns' groups, or None where they stand in order or nothing names them."""
    entry, num_inputs = matrix.optional(name), matrix.shape[1]
    if entry is None:
        return None
    check_part(entry, "I32", (num_inputs,))
    groups, num_groups = np.frombuffer(read_part(entry), dtype="<i4"), num_inputs // group_size
    if groups.min() < 0 or groups.max() >= num_groups:
        found = f"names groups from {groups.min()} to {groups.max()}"
        raise wrong_part(entry, found, f"groups from 0 to {num_groups - 1}")
    return None if np.array_equal(groups, np.arange(num_inputs) // group_size) else entry


def _as_bytes(scales: TensorEntry) -> TensorEntry:
    """Return e8m0 scales as bytes, whatever the file calls them."""
    return replace(scales, dtype="U8") if scales.dtype in _EXPONENTS else scales
