"""bfloat16 matrices in 12 bits an element, bit for bit.

The 8 bits of a trained weight's exponent say little: in a matrix, 15 neighbouring exponents and zero cover 99.98 % of
the weights (three models measured). So an element is a code of 12 bits: the sign, 4 bits that count the exponent from a
base the matrix shares, the mantissa. What has no code, an escape, has that of zero and stands in a list.

A block of CHUNK_ROW_MULTIPLE rows, the last perhaps of fewer, is E elements in 3 E / 4 words of 16 bits. A code lies
where a bfloat16 has its bits, the sign at bit 15 and the rest at bits 10 to 0, so that one operation unpacks three
quarters of a block: its words hold the codes of its first 3 E / 4 elements. With words w in three parts of E / 4, the
codes of its last quarter are, in whole numbers of 16 bits with signs,

    ((((w[2] >> 4) ^ w[1]) >> 3) + 2 w[0]) >> 4,

which bits 14 to 11 of the words are chosen for; only the bits of a code count. A code read as a bfloat16 lacks only the
base, which a product with a power of two gives back exactly, zero staying zero; then escapes are written over.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch

from offload.formats.stored_sizes import CHUNK_ROW_MULTIPLE, PACKED, PACKED_COLUMNS, chunk_rows
from offload.formats.weight_format import (
    MEASURED_SIDE,
    DenseWeight,
    StoredWeight,
    UpcastScratch,
    chunk_elements,
    fastest_seconds,
    from_columns,
)

NUM_EXPONENTS = 15
"""Exponents that have a code, besides that of zero."""
MAX_BASE = 127
"""Of a matrix: the power of two that it stands for is a bfloat16 as well. Larger weights than 2^15 are escapes."""
_SAMPLE_ELEMENTS, _PIECE_ELEMENTS, _GROUP_ELEMENTS = 1 << 16, 1 << 21, 128
_MEASURED_ROWS, _MEASURED_REPEATS = 8192, 4
_SIGN, _MAGNITUDE, _CODE, _SPARE = -0x8000, 0x7FFF, 0x87FF - (1 << 16), 0x7800
"""Bits, in int16."""
_ONE_EXPONENT = 1 << 7
"""A step of the exponent, in the bits of a bfloat16."""

Bits = npt.NDArray[np.uint16]
"""Elements of type bfloat16, as unsigned numbers."""
Codes = npt.NDArray[np.int16]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PackedFormat:
    """How a packed matrix is to be read; known on the host, so that nothing is fetched from a device."""

    shape: tuple[int, int]
    """(O, I); I is a multiple of PACKED_COLUMNS."""
    base: int
    """What is added to every exponent, 0 to MAX_BASE; 0 also gives denormals their codes."""
    escape_ends: npt.NDArray[np.int64]
    """(B,) escapes up to the end of each block of CHUNK_ROW_MULTIPLE rows."""
    name: str = PACKED
    is_exact: bool = True
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
        # Multiplied by the base in float32, codes are not rounded: on a processor that is 3 times as fast.
        is_scaled_wide = not is_narrow and scratch.dtype == torch.float32

        def widen(start: int, stop: int) -> torch.Tensor:
            rows = scratch.narrow_view(stop - start, num_columns)
            _unpack_codes(self.words[start:stop], rows)
            if is_scaled_wide:
                rows = scratch.view(stop - start, num_columns).copy_(rows)
            self._complete(start, stop, rows)
            return rows if rows.dtype == scratch.dtype or is_narrow else scratch.view(*rows.shape).copy_(rows)

        columns = scratch.multiply(inputs, num_outputs, widen, row_multiple=CHUNK_ROW_MULTIPLE)
        product = from_columns(columns, inputs)
        return product if bias is None else product.add_(bias)

    def unpack(self) -> torch.Tensor:
        """Return the whole matrix, (O, I) bfloat16, in memory of its own."""
        num_rows, num_columns = self.format.shape
        matrix = torch.empty(num_rows, num_columns, dtype=torch.bfloat16, device=self.words.device)
        step = chunk_rows(
            self.format.shape,
            most_elements=chunk_elements(matrix.device),
            row_multiple=CHUNK_ROW_MULTIPLE,
            is_host=matrix.device.type == "cpu",
        )
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            self.unpack_rows(start, stop, matrix[start:stop])
        return matrix

    def unpack_rows(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Write whole blocks of CHUNK_ROW_MULTIPLE rows, the matrix's last perhaps short, to `out`, bfloat16."""
        _unpack_codes(self.words[start:stop], out)
        self._complete(start, stop, out)

    def _complete(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Make the codes in `out`, read as bfloat16 and perhaps widened to float32, the numbers they stand for."""
        if self.format.base:
            out.mul_(2.0**self.format.base)
        ends, block = self.format.escape_ends, start // CHUNK_ROW_MULTIPLE
        first, last = int(ends[block - 1]) if block else 0, int(ends[-(-stop // CHUNK_ROW_MULTIPLE) - 1])
        if first < last:
            places = self.escapes[first:last].to(torch.int64).sub_(start * self.format.shape[1])
            places.clamp_(0, out.numel() - 1)  # a damaged file must not write elsewhere, nor end a device's context
            out.view(-1).index_copy_(0, places, self.escape_values[first:last].to(out.dtype))


def _blocks_of(rows: torch.Tensor) -> list[torch.Tensor]:
    """Return whole blocks of CHUNK_ROW_MULTIPLE rows, (B, elements), and a short one at the end, (1, elements)."""
    num_whole = len(rows) // CHUNK_ROW_MULTIPLE * CHUNK_ROW_MULTIPLE
    blocks = [rows[:num_whole].view(-1, CHUNK_ROW_MULTIPLE * rows.shape[1]), rows[num_whole:].view(1, -1)]
    return [part for part in blocks if part.numel()]


def _unpack_codes(words: torch.Tensor, out: torch.Tensor) -> None:
    """Write the codes of `words` (O, 3 I / 4) int16 to `out` (O, I) bfloat16, in its bits; takes no memory."""
    for block, codes in zip(_blocks_of(words), _blocks_of(out.view(torch.int16)), strict=True):
        num_words = block.shape[1]
        parts, last = torch.chunk(block, 3, dim=1), codes[:, num_words:]
        torch.bitwise_and(block, _CODE, out=codes[:, :num_words])
        torch.bitwise_right_shift(parts[2], 4, out=last)
        last.bitwise_xor_(parts[1]).bitwise_right_shift_(3)
        last.add_(parts[0], alpha=2).bitwise_right_shift_(4).bitwise_and_(_CODE)


def pack_matrix(matrix: torch.Tensor, *, words: torch.Tensor | None = None) -> PackedWeight:
    """Pack a matrix (O, I) of bfloat16 in host memory, I a multiple of PACKED_COLUMNS.

    Its words go to `words`, (O, 3 I / 4) int16, if that is given, else to memory of their own; its escapes always do.
    The base is that of fewest escapes in a sample.
    """
    num_rows, num_columns = matrix.shape
    assert num_columns % PACKED_COLUMNS == 0
    if words is None:
        words = torch.empty(num_rows, 3 * num_columns // 4, dtype=torch.int16)
    matrix = matrix.contiguous().view(torch.int16)
    base = _choose_base(matrix.view(torch.uint16).numpy())
    found, first = [], 0
    for bits, target in zip(_blocks_of(matrix), _blocks_of(words), strict=True):
        step = min(len(bits), max(1, _PIECE_ELEMENTS // bits.shape[1]))
        packer = _BlockPacker(base, (step, bits.shape[1]))
        for blocks, goal in zip(torch.split(bits, step), torch.split(target, step), strict=True):
            places, values = packer.pack(blocks, goal)
            found.append((places + first, values))
            first += blocks.numel()
    escapes, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    block_ends = np.arange(CHUNK_ROW_MULTIPLE, num_rows + CHUNK_ROW_MULTIPLE, CHUNK_ROW_MULTIPLE) * num_columns
    return PackedWeight(
        PackedFormat((num_rows, num_columns), base, np.searchsorted(escapes, block_ends)),
        words,
        torch.from_numpy(escapes.astype(np.int32)),
        torch.from_numpy(values).view(torch.bfloat16),
    )


class _BlockPacker:
    """Packs so many blocks of one size at a time, or fewer, in memory that it keeps: new one costs more than the work.

    These are torch's operations on many elements, which all cores share. NumPy's in a thread for each core were no
    faster than in one, since they wait for each other at every call.
    """

    def __init__(self, base: int, shape: tuple[int, int]) -> None:
        least = (base + 1) * _ONE_EXPONENT if base else 0
        self._base, self._least = base * _ONE_EXPONENT, least
        self._lift = torch.tensor(_SIGN - 2 * least).to(torch.int16)
        """Added to twice an element: the least that has a code then is int16's lowest, what lies below wraps around."""
        self._least_outside = _SIGN + 2 * ((base + NUM_EXPONENTS + 1) * _ONE_EXPONENT - least)
        self._ranks, self._zeros = torch.empty(2, *shape, dtype=torch.int16)
        self._quarters = torch.empty(4, shape[0], shape[1] // 4, dtype=torch.int16)

    def pack(self, bits: torch.Tensor, words: torch.Tensor) -> tuple[Places, Codes]:
        """Write the words (B, 3 E / 4) of blocks (B, E), in int16; return where escapes are, and their bits."""
        num_elements, num_words = bits.shape[1], words.shape[1]
        zeros, last = self._zeros[: len(bits)], self._quarters[0, : len(bits)]
        torch.bitwise_and(bits, _MAGNITUDE, out=zeros).sub_(1).bitwise_right_shift_(15)  # -1 for a zero, else 0
        places = self._find_escapes(bits, zeros)
        values = bits.view(-1).numpy()[places]
        torch.sub(bits[:, :num_words], self._base, out=words).add_(zeros[:, :num_words], alpha=-self._base)
        torch.sub(bits[:, num_words:], self._base, out=last).add_(zeros[:, num_words:], alpha=-self._base)
        block, place = np.divmod(places, num_elements)
        is_last = place >= num_words
        words.numpy()[block[~is_last], place[~is_last]] = 0
        last.numpy()[block[is_last], place[is_last] - num_words] = 0
        self._hide(last, words)
        return places, values

    def _find_escapes(self, bits: torch.Tensor, zeros: torch.Tensor) -> Places:
        ranks = self._ranks[: len(bits)]
        torch.add(self._lift, bits, alpha=2, out=ranks)  # twice is without the sign
        ranks.add_(zeros, alpha=-2 * self._least)
        groups = ranks.view(-1, math.gcd(ranks.numel(), _GROUP_ELEMENTS))
        found = np.flatnonzero(groups.amax(1).numpy() >= self._least_outside)
        group, place = np.divmod(np.flatnonzero(groups.numpy()[found] >= self._least_outside), groups.shape[1])
        places: Places = found[group] * groups.shape[1] + place
        return places

    def _hide(self, last: torch.Tensor, words: torch.Tensor) -> None:
        """Choose the spare bits of words (B, 3 E / 4), zero so far, for the codes (B, E / 4) of a last quarter.

        Before its last shift the expression of the module's docstring is to be `wanted` in bits 15 to 4: the spare bits
        of w[1] and w[2] come to stand in bits 11 to 4 of `hidden`, to which those of w[0] are added in bits 15 to 12.
        """
        first, second, third = torch.chunk(words, 3, dim=1)
        wanted, hidden, others = (quarter[: len(last)] for quarter in self._quarters[1:])
        torch.bitwise_and(last, _SIGN, out=wanted).add_(last, alpha=16)
        torch.bitwise_right_shift(third, 4, out=hidden).bitwise_xor_(second).bitwise_right_shift_(3)
        torch.bitwise_and(hidden, ~0x0FF0, out=others).add_(first, alpha=2).bitwise_and_(~0x000F)
        wanted.sub_(others)
        hidden.bitwise_xor_(wanted)
        first.add_(wanted.bitwise_right_shift_(1).bitwise_and_(_SPARE))
        second.add_(torch.bitwise_and(hidden, 0x0F00, out=others), alpha=8)
        third.add_(torch.bitwise_and(hidden, 0x00F0, out=others), alpha=128)


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
