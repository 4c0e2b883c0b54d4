"""Where each block type of GGUF has its codes and its scales (llama.cpp, `ggml-common.h` and `ggml-quants.c`).

A number of a block is `scale * code`, or `scale * code + offset`, with codes that fit into a byte. Types differ in how
codes lie: this module brings them out in planes, rows of codes that are neighbours in the matrix, by operations on
whole tensors of bytes. What a matrix is made of and what becomes of the codes is `ggml_blocks`' matter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from math import prod

import numpy as np
import torch

from offload.formats.stored_sizes import GGML_BLOCKS

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What a nibble of IQ4_NL and IQ4_XS stands for."""
FP4_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""What a nibble of MXFP4 and NVFP4 stands for, doubled: their scales are halved."""
_IQ1_STEPS = 8
"""A number of IQ1_S and IQ1_M is -1, 0 or 1, and an eighth more or less: counted in eighths it is whole."""
_INT64_BYTES = 8
_ALIGNMENT = 64
_MOST_VIEWS = 4096
"""Of a workspace: a model has some twenty sizes of pieces, of some five types with ten steps each."""


class Workspace:
    """Memory for the steps of one chunk, cut from one piece that is kept from chunk to chunk."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._used = 0
        self._views: dict[tuple[int, tuple[int, ...], torch.dtype], torch.Tensor] = {}

    def clear(self, num_bytes: int) -> None:
        """Make room for `num_bytes`; what was taken before may be overwritten."""
        self._used = 0
        if len(self._memory) < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
            self._views.clear()

    def take(self, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """Return uninitialised memory, valid until this is cleared.

        Pieces take the same again and again, and three views cost as much as a step of 100,000 elements: they are kept.
        """
        key = (self._used, shape, dtype)
        num_bytes = prod(shape) * dtype.itemsize
        start, self._used = self._used, self._used + -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        found = self._views.get(key)
        if found is None:
            if self._used > len(self._memory):
                return torch.empty(shape, dtype=dtype, device=self.device)
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            found = self._views[key] = self._memory[start : start + num_bytes].view(dtype).view(shape)
        return found

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy."""
        return self.take(*source.shape, dtype=source.dtype).copy_(source)


Codes = Callable[[torch.Tensor, Workspace], torch.Tensor]
"""Of blocks (B, bytes): planes (P, R, W) of codes, uint8 or int8. Row r of all planes, one after the other, are
neighbours in the matrix, so that (R, P, W) is (B, elements) in order."""
Scales = Callable[[torch.Tensor, Workspace], tuple[torch.Tensor, torch.Tensor | None]]
"""Of blocks (B, bytes): scales (B, G) float32, and offsets (B, G) float32 where the type has them."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """How blocks of one type are to be read."""

    name: str
    num_elements: int
    """Of a block."""
    num_bytes: int
    """Of a block."""
    codes: Codes
    scales: Scales


def _floats(source: torch.Tensor, work: Workspace) -> torch.Tensor:
    return work.take(*source.shape, dtype=torch.float32).copy_(source)


def _halves(blocks: torch.Tensor, start: int, work: Workspace, *, count: int = 1) -> torch.Tensor:
    """Read float16 numbers of a block: (count, B, 1) float32."""
    return _floats(blocks[:, start : start + 2 * count].view(torch.float16).t(), work)[:, :, None]


def _nibbles(source: torch.Tensor, work: Workspace) -> torch.Tensor:
    """Split contiguous bytes (N, ...): (N, 2, ...), low nibbles first."""
    planes = work.take(len(source), 2, *source.shape[1:])
    torch.bitwise_and(source, 0xF, out=planes[:, 0])
    torch.bitwise_right_shift(source, 4, out=planes[:, 1])
    return planes


def _shifted(source: torch.Tensor, shifts: tuple[int, ...], mask: int, work: Workspace) -> torch.Tensor:
    """Shift bytes, or words, right, or left where a shift is negative, and mask them: (len(shifts), *source.shape)."""
    planes = work.take(len(shifts), *source.shape, dtype=source.dtype)
    for plane, shift in zip(planes, shifts, strict=True):
        if shift > 0:
            torch.bitwise_right_shift(source, shift, out=plane)
        elif shift < 0:
            torch.bitwise_left_shift(source, -shift, out=plane)
        else:
            plane.copy_(source)
    return planes.bitwise_and_(mask)


def _signed(codes: torch.Tensor, zero: int) -> torch.Tensor:
    """Return codes less `zero`, in place, as int8."""
    return codes.view(torch.int8).sub_(zero)


# Types of 32 elements: a scale, perhaps an offset, and nibbles: element i and element i + 16 share a byte.


def _codes_nibbles(blocks: torch.Tensor, work: Workspace, *, start: int, zero: int = 0) -> torch.Tensor:
    planes = _nibbles(work.copy(blocks[None, :, start : start + 16]), work)[0]
    return _signed(planes, zero) if zero else planes


def _codes_q5(blocks: torch.Tensor, work: Workspace, *, start: int, zero: int = 0) -> torch.Tensor:
    planes = _nibbles(work.copy(blocks[None, :, start + 4 : start + 20]), work)[0]
    high = work.copy(blocks[:, start : start + 4])  # (B, 4): bit i is the fifth of element i
    wide = torch.index_select(_bits(blocks.device, 0x10), 0, high.view(-1).to(torch.int32))
    wide = wide.view(torch.uint8).view(-1, 2, 16).transpose(0, 1)
    planes.bitwise_or_(wide)
    return _signed(planes, zero) if zero else planes


def _scales_plain(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, None]:
    return _halves(blocks, 0, work)[0], None


def _scales_offset(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    scales, offsets = _halves(blocks, 0, work, count=2)
    return scales, offsets


def _codes_q8_0(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    return blocks[None, :, 2:].view(torch.int8)


# K types: 256 elements in groups with whole-numbered scales of their own.


def _codes_q4_k(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    return _nibbles(work.copy(blocks[:, 16:]).view(1, -1, 32), work)[0]


def _codes_q5_k(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    low = work.take(4, len(blocks), 32).copy_(blocks[:, 48:].view(-1, 4, 32).transpose(0, 1))
    planes = _nibbles(low, work).view(8, -1, 32)
    return planes.bitwise_or_(_shifted(work.copy(blocks[:, 16:48]), (-4, -3, -2, -1, 0, 1, 2, 3), 0x10, work))


def _scales_k4(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    """Of Q4_K and Q5_K: 8 scales and 8 offsets of 6 bits in 12 bytes, the upper ones in pieces."""
    words = work.copy(blocks[:, 4:16].view(torch.int32).t())  # (3, B): four fields of a byte in each
    first, last = words[:2], words[2]  # scales and offsets; what is left of both
    fields = work.take(2, len(blocks), 2, dtype=torch.int32)
    torch.bitwise_and(first, 0x3F3F3F3F, out=fields[:, :, 0])
    low = work.take(2, len(blocks), dtype=torch.int32)
    low[0].copy_(last)
    torch.bitwise_right_shift(last, 4, out=low[1])
    upper = first.bitwise_right_shift_(2).bitwise_and_(0x30303030)
    torch.bitwise_or(low.bitwise_and_(0x0F0F0F0F), upper, out=fields[:, :, 1])
    factors = _halves(blocks, 0, work, count=2)
    factors[1].neg_()
    scales, offsets = _floats(fields.view(torch.uint8), work).mul_(factors)  # (B, 8) each
    return scales, offsets


def _codes_q6_k(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    """Of each half of a block, elements 32 k to 32 k + 31 have bits 2 k and 2 k + 1 of 32 bytes as their upper ones."""
    num_rows = 2 * len(blocks)
    low = work.take(2, num_rows, 32)  # what k = 0 and 2, and k = 1 and 3 share
    source, goal = blocks[:, :128].view(-1, 2, 2, 32), low.view(2, -1, 2, 32)
    for half, k in product(range(2), range(2)):  # one copy of four dimensions takes longer
        goal[k, :, half].copy_(source[:, half, k])
    planes = _nibbles(low[None].view(1, -1), work).view(4, num_rows, 32)
    high = work.copy(blocks[:, 128:192]).view(num_rows, 32)
    planes.bitwise_or_(_shifted(high, (-4, -2, 0, 2), 0x30, work))
    return _signed(planes, 32)


def _scales_q6_k(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, None]:
    return _floats(blocks[:, 192:208].view(torch.int8), work).mul_(_halves(blocks, 208, work)[0]), None


def _codes_q2_k(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    return _shifted(work.copy(blocks[:, 16:80]).view(-1, 32), (0, 2, 4, 6), 3, work)


def _scales_q2_k(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
    fields = _nibbles(work.copy(blocks[None, :, :16]), work)[0]
    factors = _halves(blocks, 80, work, count=2)
    factors[1].neg_()
    scales, offsets = _floats(fields, work).mul_(factors)
    return scales, offsets


def _codes_q3_k(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    """Bit 4 h + k of 32 bytes is the upper one of elements 32 k to 32 k + 31 of half h; without it they are 4 less."""
    planes = _shifted(work.copy(blocks[:, 32:96]).view(-1, 32), (0, 2, 4, 6), 3, work)
    high = work.take(len(blocks), 2, 32)
    high[:, 0].copy_(blocks[:, :32])
    torch.bitwise_right_shift(blocks[:, :32], 4, out=high[:, 1])
    planes.bitwise_or_(_shifted(high.view(-1, 32), (-2, -1, 0, 1), 4, work))
    return _signed(planes, 4)


def _scales_q3_k(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, None]:
    """6 bits, nibbles in 8 bytes, upper pairs in 4."""
    words = work.copy(blocks[:, 96:108]).view(torch.int32)  # (B, 3): four fields of a byte in each
    fields = work.take(len(blocks), 4, dtype=torch.int32)
    fields[:, :2].copy_(words[:, :2])
    torch.bitwise_right_shift(words[:, :2], 4, out=fields[:, 2:])
    upper = _shifted(words[:, 2], (-4, -2, 0, 2), 0x30303030, work)
    fields.bitwise_and_(0x0F0F0F0F).bitwise_or_(upper.t())
    return _floats(fields.view(torch.uint8), work).sub_(32).mul_(_halves(blocks, 108, work)[0]), None


# Types whose nibbles count levels that are not evenly spaced.


@cache
def _level_table(levels: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return (65536,) int32: of two bytes, the levels of their low nibbles, then those of their high ones."""
    codes = np.arange(1 << 16, dtype=np.int64)[:, None] >> np.array([0, 8, 4, 12])
    table = np.array(levels, dtype=np.int8)[codes & 0xF]
    return torch.from_numpy(table.view(np.int32).reshape(-1)).to(device)


def _codes_levels(
    blocks: torch.Tensor, work: Workspace, *, start: int, half: int, levels: tuple[int, ...]
) -> torch.Tensor:
    """Look nibbles up, four at a time; `half` bytes hold the low nibbles of neighbours, and the high ones of others."""
    source = work.copy(blocks[:, start:])
    index = work.take(source.numel() // 2, dtype=torch.int32).copy_(source.view(torch.uint16).view(-1))
    pairs = work.take(len(index), dtype=torch.int32)
    torch.index_select(_level_table(levels, blocks.device), 0, index, out=pairs)
    planes = work.take(2, len(pairs), dtype=torch.int16)
    planes[0].copy_(pairs)
    planes[1].copy_(pairs.bitwise_right_shift_(16))
    return planes.view(torch.int8).view(2, -1, half)


def _scales_iq4_xs(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, None]:
    """6 bits, low nibbles in four bytes, upper pairs in one number of 16 bits."""
    pairs = blocks[:, 4:8].to(torch.int32)
    low = torch.stack((pairs, pairs >> 4), dim=2).bitwise_and_(0xF).view(-1, 8)
    upper = blocks[:, 2:4].to(torch.int32)
    upper = torch.stack((upper << 4, upper << 2, upper, upper >> 2), dim=2).bitwise_and_(0x30).view(-1, 8)
    return low.bitwise_or_(upper).to(torch.float32).sub_(32).mul_(_halves(blocks, 0, work)[0]), None


@cache
def _byte_scales(kind: str, device: torch.device) -> torch.Tensor:
    """Return (256,) float32, half of what a scale of one byte stands for: "e8m0" of MXFP4, "ue4m3" of NVFP4."""
    byte = np.arange(256)
    if kind == "e8m0":
        values = np.exp2(byte - 128.0)
    else:
        exponent, mantissa = (byte >> 3) & 0xF, byte & 7
        values = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * np.exp2(exponent - 7.0)) / 2
        values[[0, 127]] = 0
    return torch.from_numpy(values.astype(np.float32)).to(device)


def _scales_byte(blocks: torch.Tensor, work: Workspace, *, kind: str, count: int) -> tuple[torch.Tensor, None]:
    index = blocks[:, :count].to(torch.int32)
    return torch.index_select(_byte_scales(kind, blocks.device), 0, index.view(-1)).view(index.shape), None


# IQ1 to IQ3: a code names a point of a grid, 4 or 8 numbers at once, and most have their signs beside it.


@cache
def _grid(name: str, device: torch.device) -> torch.Tensor:
    """Return the points of a type as whole numbers of 4 or 8 bytes; those of IQ1 with an eighth more, then less."""
    from gguf import quants

    source = getattr(quants, name)
    source.init_grid()
    points = source.grid.reshape(source.grid_shape)
    if name == "IQ1_S":
        points = np.concatenate((points * _IQ1_STEPS + 1, points * _IQ1_STEPS - 1))
    whole = np.int64 if points.shape[1] == _INT64_BYTES else np.int32
    return torch.from_numpy(np.ascontiguousarray(points.astype(np.int8)).view(whole).reshape(-1)).to(device)


@cache
def _bits(device: torch.device, one: int) -> torch.Tensor:
    """Return (256,) int64: entry b has `one`, a byte, for each bit of b that is set, the lowest first."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    return torch.from_numpy((bits * one).astype(np.uint8).view(np.int64).reshape(-1)).to(device)


@cache
def _even_signs(device: torch.device) -> torch.Tensor:
    """Return (128,) int64: eight signs of seven bits, the last one such that an even number is negative."""
    from gguf import quants

    names = torch.frombuffer(bytearray(quants.IQ2_XXS.ksigns), dtype=torch.uint8)
    return _bits(torch.device("cpu"), 0xFF)[names.to(torch.int64)].to(device)


def _points(name: str, index: torch.Tensor, work: Workspace) -> torch.Tensor:
    """Look points up by their int32 numbers: (1, B, elements) int8."""
    grid = _grid(name, index.device)
    found = work.take(index.numel(), dtype=grid.dtype)
    torch.index_select(grid, 0, index.reshape(-1), out=found)
    return found.view(torch.int8).view(1, len(index), -1)


def _with_signs(points: torch.Tensor, table: torch.Tensor, index: torch.Tensor, work: Workspace) -> torch.Tensor:
    """Negate points (1, B, E), in place, where the bytes that `table` has for int32 numbers (B, E / 8) are -1."""
    signs = work.take(index.numel(), dtype=torch.int64)
    torch.index_select(table, 0, index.reshape(-1), out=signs)
    points.view(torch.int64).bitwise_xor_(signs.view(1, len(index), -1))
    return points.sub_(signs.view(torch.int8).view(points.shape))


def _fields(words: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """Take several fields from each of (B, n) whole numbers, as int32: (B, n * len(shifts))."""
    wide = words.to(torch.int32)
    return torch.stack([wide >> shift for shift in shifts], dim=-1).bitwise_and_(mask).flatten(1)


def _words(blocks: torch.Tensor, start: int, stop: int, dtype: torch.dtype, work: Workspace) -> torch.Tensor:
    return work.copy(blocks[:, start:stop]).view(dtype)


_SIGN_SHIFTS = (0, 7, 14, 21)


def _codes_iq2_xxs(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    words = _words(blocks, 2, 66, torch.int32, work)  # (B, 16): four points, then their signs and a scale
    index = _fields(words[:, 0::2], (0, 8, 16, 24), 0xFF)
    signs = _fields(words[:, 1::2], _SIGN_SHIFTS, 0x7F)
    return _with_signs(_points("IQ2_XXS", index, work), _even_signs(blocks.device), signs, work)


def _codes_iq2_xs(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    words = _words(blocks, 2, 66, torch.int16, work)
    points = _points("IQ2_XS", _fields(words, (0,), 0x1FF), work)
    return _with_signs(points, _even_signs(blocks.device), _fields(words, (9,), 0x7F), work)


def _codes_iq2_s(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    upper = _fields(blocks[:, 66:74], (0, 2, 4, 6), 3).bitwise_left_shift_(8)
    points = _points("IQ2_S", upper.bitwise_or_(blocks[:, 2:34]), work)
    return _with_signs(points, _bits(blocks.device, 0xFF), blocks[:, 34:66].to(torch.int32), work)


def _codes_iq3_xxs(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    signs = _fields(_words(blocks, 66, 98, torch.int32, work), _SIGN_SHIFTS, 0x7F)
    points = _points("IQ3_XXS", blocks[:, 2:66].to(torch.int32), work)
    return _with_signs(points, _even_signs(blocks.device), signs, work)


def _codes_iq3_s(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    upper = _fields(blocks[:, 66:74], tuple(range(8)), 1).bitwise_left_shift_(8)
    points = _points("IQ3_S", upper.bitwise_or_(blocks[:, 2:66]), work)
    return _with_signs(points, _bits(blocks.device, 0xFF), blocks[:, 74:106].to(torch.int32), work)


def _codes_iq1_s(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    words = _words(
        blocks, 34, 50, torch.int16, work
    )  # (B, 8): three upper bits of four points, a scale, the eighth's sign
    upper = _fields(words, (0, 3, 6, 9), 7).view(-1, 8, 4)
    upper.bitwise_or_(_fields(words, (12,), 8)[:, :, None])
    return _points("IQ1_S", upper.bitwise_left_shift_(8).flatten(1).bitwise_or_(blocks[:, :34][:, 2:]), work)


def _codes_iq1_m(blocks: torch.Tensor, work: Workspace) -> torch.Tensor:
    upper = _fields(blocks[:, 32:48], (0, 4), 0xF).bitwise_left_shift_(8)
    return _points("IQ1_S", upper.bitwise_or_(blocks[:, :32]), work)


def _scales_in_words(
    blocks: torch.Tensor, work: Workspace, *, start: int, stop: int, factor: float
) -> tuple[torch.Tensor, None]:
    """Of IQ2_XXS and IQ3_XXS: 4 bits above the signs."""
    fields = _fields(_words(blocks, start, stop, torch.int32, work), (28,), 0xF)
    fields = fields[:, 1::2] if fields.shape[1] == 16 else fields
    return fields.to(torch.float32).add_(0.5).mul_(_halves(blocks, 0, work)[0]).mul_(factor), None


def _scales_iq2(blocks: torch.Tensor, work: Workspace, *, start: int) -> tuple[torch.Tensor, None]:
    fields = _fields(blocks[:, start : start + 8], (0, 4), 0xF)
    return fields.to(torch.float32).add_(0.5).mul_(_halves(blocks, 0, work)[0]).mul_(0.25), None


def _scales_iq3_s(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, None]:
    fields = _fields(blocks[:, 106:110], (0, 4), 0xF)
    return fields.to(torch.float32).mul_(2).add_(1).mul_(_halves(blocks, 0, work)[0]), None


def _scales_iq1_s(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, None]:
    fields = _fields(_words(blocks, 34, 50, torch.int16, work), (12,), 7).to(torch.float32)
    return fields.mul_(2).add_(1).mul_(_halves(blocks, 0, work)[0]).div_(_IQ1_STEPS), None


def _scales_iq1_m(blocks: torch.Tensor, work: Workspace) -> tuple[torch.Tensor, None]:
    """The float16 scale of a block is the upper nibbles of four words, the lowest first."""
    words = _words(blocks, 48, 56, torch.int16, work)
    fields = _fields(words, (0, 3, 6, 9), 7).to(torch.float32)
    upper = words.to(torch.int32)
    nibbles = torch.stack([(upper[:, index] >> 12 & 0xF) << 4 * index for index in range(4)], dim=1)
    factors = nibbles.sum(1, dtype=torch.int32).to(torch.int16).view(torch.float16).to(torch.float32)[:, None]
    return fields.mul_(2).add_(1).mul_(factors).div_(_IQ1_STEPS), None


_nl = partial(_codes_levels, half=16, levels=IQ4_LEVELS)
_fp4 = partial(_codes_levels, levels=FP4_LEVELS)
_READINGS: Mapping[str, tuple[Codes, Scales]] = {
    "Q4_0": (partial(_codes_nibbles, start=2, zero=8), _scales_plain),
    "Q4_1": (partial(_codes_nibbles, start=4), _scales_offset),
    "Q5_0": (partial(_codes_q5, start=2, zero=16), _scales_plain),
    "Q5_1": (partial(_codes_q5, start=4), _scales_offset),
    "Q8_0": (_codes_q8_0, _scales_plain),
    "Q2_K": (_codes_q2_k, _scales_q2_k),
    "Q3_K": (_codes_q3_k, _scales_q3_k),
    "Q4_K": (_codes_q4_k, _scales_k4),
    "Q5_K": (_codes_q5_k, _scales_k4),
    "Q6_K": (_codes_q6_k, _scales_q6_k),
    "IQ2_XXS": (_codes_iq2_xxs, partial(_scales_in_words, start=2, stop=66, factor=0.25)),
    "IQ2_XS": (_codes_iq2_xs, partial(_scales_iq2, start=66)),
    "IQ3_XXS": (_codes_iq3_xxs, partial(_scales_in_words, start=66, stop=98, factor=0.5)),
    "IQ1_S": (_codes_iq1_s, _scales_iq1_s),
    "IQ4_NL": (partial(_nl, start=2), _scales_plain),
    "IQ3_S": (_codes_iq3_s, _scales_iq3_s),
    "IQ2_S": (_codes_iq2_s, partial(_scales_iq2, start=74)),
    "IQ4_XS": (partial(_nl, start=8), _scales_iq4_xs),
    "IQ1_M": (_codes_iq1_m, _scales_iq1_m),
    "MXFP4": (partial(_fp4, start=1, half=16), partial(_scales_byte, kind="e8m0", count=1)),
    "NVFP4": (partial(_fp4, start=4, half=8), partial(_scales_byte, kind="ue4m3", count=4)),
}
BLOCK_TYPES = {name: BlockType(name, *GGML_BLOCKS[name], *reading) for name, reading in _READINGS.items()}
"""By name."""
