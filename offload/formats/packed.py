"""bfloat16 matrices in 12 bits an element, bit for bit.

The 8 bits of a trained weight's exponent say little: in a matrix, 15 neighbouring exponents and zero cover 99.98 % of
the weights (three models measured). So an element is a code of 12 bits: the sign, 4 bits that count the exponent from a
base the matrix shares, the mantissa. What has no code, an escape, has that of zero and stands in a list.

A code lies where a bfloat16 has its bits, the sign at bit 15 and the rest at bits 10 to 0, so that one operation
unpacks three quarters of a matrix: a row of I elements is 3 I / 4 words of 16 bits, which hold the codes of its first
3 I / 4 elements, and in their bits 14 to 11 those of the last quarter. Of its j-th code the sign and bits 10 to 8 are
in word j, bits 7 to 4 in word I / 4 + j, bits 3 to 0 in word I / 2 + j. A code read as a bfloat16 lacks only the base,
which a product with a power of two gives back exactly, zero staying zero; then escapes are written over.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch

from offload.formats.stored_sizes import CHUNK_ROW_MULTIPLE, PACKED_COLUMNS
from offload.formats.weight_format import (
    MEASURED_SIDE,
    DenseWeight,
    StoredWeight,
    UpcastScratch,
    fastest_seconds,
    from_columns,
)

NUM_EXPONENTS = 15
"""Exponents that have a code, besides that of zero."""
MAX_BASE = 127
"""Of a matrix: the power of two that it stands for is a bfloat16 as well. Larger weights than 2^15 are escapes."""
_SAMPLE_ELEMENTS, _PIECE_ELEMENTS = 1 << 16, 1 << 17
_MEASURED_ROWS, _MEASURED_REPEATS = 8192, 4
_SIGN, _MAGNITUDE, _CODE, _SPARE = (np.uint16(bits) for bits in (0x8000, 0x7FFF, 0x87FF, 0x7800))
_ONE_EXPONENT = 1 << 7
"""A step of the exponent, in the bits of a bfloat16."""

Bits = npt.NDArray[np.uint16]
"""Elements of type bfloat16, or codes, as unsigned numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedFormat:
    """How a packed matrix is to be read; known on the host, so that nothing is fetched from a device."""

    shape: tuple[int, int]
    """(O, I); I is a multiple of PACKED_COLUMNS."""
    base: int
    """What is added to every exponent, 0 to MAX_BASE; 0 also gives denormals their codes."""
    escape_ends: npt.NDArray[np.int64]
    """(B,) escapes up to the end of each block of CHUNK_ROW_MULTIPLE rows."""
    part_suffixes: tuple[str, ...] = ("", ".escapes", ".escape_values")

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> "PackedWeight":
        """Return the weight whose tensors are `parts`, by suffix; they are viewed, not copied."""
        return PackedWeight(self, parts[""], parts[".escapes"], parts[".escape_values"])


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix of bfloat16 in 12 bits an element."""

    format: PackedFormat
    words: torch.Tensor
    """(O, 3 I / 4) int16."""
    escapes: torch.Tensor
    """(N,) int32: where they are in the flat matrix, ascending."""
    escape_values: torch.Tensor
    """(N,) bfloat16."""

    def to(self, device: torch.device, *, copy: bool = False) -> "PackedWeight":
        return replace(
            self,
            words=self.words.to(device, copy=copy),
            escapes=self.escapes.to(device, copy=copy),
            escape_values=self.escape_values.to(device, copy=copy),
        )

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        num_outputs, num_columns = self.format.shape
        is_narrow = scratch.dtype == torch.bfloat16 or scratch.splits(inputs)

        def widen(start: int, stop: int) -> torch.Tensor:
            rows = scratch.narrow_view(stop - start, num_columns)
            self.unpack_rows(start, stop, rows)
            return rows if is_narrow else scratch.view(stop - start, num_columns).copy_(rows)

        columns = scratch.multiply(inputs, num_outputs, widen, row_multiple=CHUNK_ROW_MULTIPLE)
        product = from_columns(columns, inputs)
        return product if bias is None else product.add_(bias)

    def unpack(self) -> torch.Tensor:
        """Return the whole matrix, (O, I) bfloat16, in memory of its own."""
        matrix = torch.empty(self.format.shape, dtype=torch.bfloat16, device=self.words.device)
        self.unpack_rows(0, self.format.shape[0], matrix)
        return matrix

    def unpack_rows(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Write whole blocks of CHUNK_ROW_MULTIPLE rows, the matrix's last perhaps short, to `out`, bfloat16."""
        _unpack_codes(self.words[start:stop], out.view(torch.int16))
        if self.format.base:
            out.mul_(2.0**self.format.base)
        ends, block = self.format.escape_ends, start // CHUNK_ROW_MULTIPLE
        first, last = int(ends[block - 1]) if block else 0, int(ends[-(-stop // CHUNK_ROW_MULTIPLE) - 1])
        if first < last:
            places = self.escapes[first:last].to(torch.int64).sub_(start * self.format.shape[1])
            places.clamp_(0, out.numel() - 1)  # a damaged file must not write elsewhere, nor end a device's context
            out.view(-1).index_copy_(0, places, self.escape_values[first:last])


def _unpack_codes(words: torch.Tensor, out: torch.Tensor) -> None:
    """Write the codes of `words` (O, 3 I / 4) to `out` (O, I), both int16, in a bfloat16's bits; takes no memory."""
    num_words = words.shape[1]
    quarter = num_words // 3
    # The shifts keep the sign, which `code` takes away again where it does not belong.
    code, spare_of = int(_CODE.view(np.int16)), tuple(slice(part * quarter, (part + 1) * quarter) for part in range(3))
    torch.bitwise_and(words, code, out=out[:, :num_words])
    last = out[:, num_words:]
    torch.sub(words[:, spare_of[2]], out[:, spare_of[2]], out=last)  # what is not of the word's own code
    for part in (1, 0):
        last.bitwise_right_shift_(4).add_(words[:, spare_of[part]]).sub_(out[:, spare_of[part]])
    last.bitwise_left_shift_(1).bitwise_right_shift_(4).bitwise_and_(code)


def pack_matrix(
    matrix: torch.Tensor, *, words: torch.Tensor | None = None, num_threads: int | None = None
) -> PackedWeight:
    """Pack a matrix (O, I) of bfloat16 in host memory, I a multiple of PACKED_COLUMNS.

    Its words go to `words`, (O, 3 I / 4) int16, if that is given, else to memory of their own; its escapes always do.
    With `num_threads` threads, by default as many as there are cores. The base is that of fewest escapes in a sample.
    """
    num_rows, num_columns = matrix.shape
    assert num_columns % PACKED_COLUMNS == 0
    if words is None:
        words = torch.empty(num_rows, 3 * num_columns // 4, dtype=torch.int16)
    bits, target = matrix.contiguous().view(torch.uint16).numpy(), words.view(torch.uint16).numpy()
    base = _choose_base(bits)
    num_threads = num_threads or os.cpu_count() or 1
    share = -(-num_rows // num_threads)
    starts = range(0, num_rows, share)
    with ThreadPoolExecutor(num_threads) as threads:
        shares = (slice(start, start + share) for start in starts)
        found = list(threads.map(lambda rows: _pack_rows(bits[rows], base, target[rows]), shares))
    pieces = [(places + start * num_columns, values) for start, (places, values) in zip(starts, found, strict=True)]
    escapes = np.concatenate([places for places, _ in pieces])
    values = np.concatenate([found for _, found in pieces])
    block_ends = np.arange(CHUNK_ROW_MULTIPLE, num_rows + CHUNK_ROW_MULTIPLE, CHUNK_ROW_MULTIPLE) * num_columns
    return PackedWeight(
        PackedFormat((num_rows, num_columns), base, np.searchsorted(escapes, block_ends)),
        words,
        torch.from_numpy(escapes.astype(np.int32)),
        torch.from_numpy(values).view(torch.bfloat16),
    )


def _pack_rows(bits: Bits, base: int, words: Bits) -> tuple[npt.NDArray[np.int64], Bits]:
    """Write the words of some rows; return the places of their escapes in the flat rows, and their bits.

    A few rows at a time, in arrays that stay in the processor's cache.
    """
    num_rows, num_columns = bits.shape
    quarter, step = num_columns // 4, min(num_rows, max(1, _PIECE_ELEMENTS // num_columns))
    least = _ONE_EXPONENT if base else 0
    codes_of, others_of = (np.empty((step, num_columns), dtype=np.uint16) for _ in range(2))
    is_outside_of, spare_of = np.empty((step, num_columns), dtype=np.bool_), np.empty((step, quarter), dtype=np.uint16)
    found = []
    for start in range(0, num_rows, step):
        rows, target = bits[start : start + step], words[start : start + step]
        codes, others, is_outside, spare = (
            scratch[: len(rows)] for scratch in (codes_of, others_of, is_outside_of, spare_of)
        )
        np.bitwise_and(rows, _MAGNITUDE, out=codes)
        codes -= np.uint16(base * _ONE_EXPONENT)  # what lies below the base wraps around
        np.subtract(codes, np.uint16(least), out=others)
        np.greater_equal(others, np.uint16((NUM_EXPONENTS + 1) * _ONE_EXPONENT - least), out=is_outside)
        np.copyto(codes, 0, where=is_outside)
        np.bitwise_and(rows, _SIGN, out=others)
        codes |= others
        np.copyto(target, codes[:, : 3 * quarter])
        last = codes[:, 3 * quarter :]
        np.bitwise_and(last, np.uint16(0x07FF), out=spare)
        spare <<= 3
        last >>= 1
        last &= _SIGN >> 1
        spare |= last  # 12 bits, the highest at bit 14
        for part in range(3):
            np.bitwise_and(spare, _SPARE, out=last)
            target[:, part * quarter : (part + 1) * quarter] |= last
            spare <<= 4
        places = np.flatnonzero(is_outside)
        values = rows.reshape(-1)[places]
        is_escape = values & _MAGNITUDE != 0
        found.append((places[is_escape] + start * num_columns, values[is_escape]))
    return np.concatenate([places for places, _ in found]), np.concatenate([values for _, values in found])


@cache
def measure_rates() -> Mapping[str, float]:
    """Return how many weights a second a row is multiplied with in float32 here, by `bfloat16` and `packed`.

    Takes 0.1 s. Unpacking is plain arithmetic, which some processors do at the rate of a copy and others do not.
    """
    generator = torch.Generator().manual_seed(0)
    matrix = (torch.randn(_MEASURED_ROWS, MEASURED_SIDE, generator=generator) * 0.02).to(torch.bfloat16)
    inputs, scratch = torch.ones(1, MEASURED_SIDE), UpcastScratch(torch.float32, torch.device("cpu"))
    weights: dict[str, StoredWeight] = {"bfloat16": DenseWeight(matrix), "packed": pack_matrix(matrix)}
    return {
        name: matrix.numel() / fastest_seconds(partial(weight.linear, inputs, None, scratch), repeats=_MEASURED_REPEATS)
        for name, weight in weights.items()
    }


def escape_share(bits: Bits) -> float:
    """Return the share of these elements that would be escapes with the best base."""
    covered, num_others = _covered(bits.reshape(-1))
    return (num_others - int(covered.max())) / max(bits.size, 1)


def _choose_base(bits: Bits) -> int:
    flat = bits.reshape(-1)
    covered, _ = _covered(flat[:: max(1, flat.size // _SAMPLE_ELEMENTS)])
    return int(np.argmax(covered))


def _covered(sample: Bits) -> tuple[npt.NDArray[np.int64], int]:
    """Return how many elements that are not zero have a code with each base, and how many there are."""
    magnitudes = sample & _MAGNITUDE
    others = magnitudes[magnitudes != 0]
    counts = np.bincount(others >> 7, minlength=256)
    sums = np.concatenate(([0], np.cumsum(counts)))
    bases = np.arange(MAX_BASE + 1)
    covered = sums[bases + NUM_EXPONENTS + 1] - sums[bases + 1]
    covered[0] += counts[0]  # denormals
    return covered, others.size
