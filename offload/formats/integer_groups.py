"""Matrices of integers of 4 or 8 bits with a scale and a zero point per group: compressed-tensors, GPTQ, AWQ.

All of them mean matrix = (codes - zeros) * scales, and differ in where the codes lie in their int32 words:
- compressed-tensors (`pack-quantized`, W4A16 and W8A16): along a row of the matrix, lowest bits first;
- GPTQ (arXiv 2210.17323): the same down the inputs, words of inputs by outputs, so that a chunk's words are transposed,
  an eighth or a quarter of its numbers; zero points are stored less one, except in `gptq_v2`;
- AWQ (arXiv 2306.00978, `gemm`): along the outputs, the even ones of eight in the lower half of a word.
With act order the columns of a group are scattered: an index names the group of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from offload.formats.stored_sizes import CHUNK_ROW_MULTIPLE
from offload.formats.weight_format import WidenedWeight
from offload.formats.widened_codes import (
    interleaved_shifts,
    pieces,
    scale_integers,
    unpack_words,
    wide_scales,
    write_integers,
)

AWQ_BITS = 4
_AWQ_OUTPUTS = 32 // AWQ_BITS
"""Outputs in a word."""


@dataclass(frozen=True, slots=True)
class PackedIntegersFormat:
    """A matrix of integers packed along its rows."""

    shape: tuple[int, int]
    """(O, I)."""
    bits: int
    """4 or 8."""
    group_size: int
    """Columns that share a scale; a row is a whole number of groups."""
    has_zeros: bool
    """Whether groups have zero points; without them the middle of the range is zero."""
    has_order: bool = False
    """Whether an index names each column's group."""
    is_exact: bool = False
    row_multiple: int = CHUNK_ROW_MULTIPLE

    @property
    def name(self) -> str:
        return f"w{self.bits}a16"

    @property
    def part_suffixes(self) -> tuple[str, ...]:
        zeros = (".zeros",) if self.has_zeros else ()
        return ("", ".scales", *zeros, *((".g_idx",) if self.has_order else ()))

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> WidenedWeight:
        """Return the weight of codes int32 (O, I * bits / 32), scales (O, G) of any float dtype, and where it has them
        zeros int32 (O * bits / 32, G) and g_idx int32 (I,)."""
        return WidenedWeight(self, parts)

    def widen(self, parts: Mapping[str, torch.Tensor], start: int, stop: int, out: torch.Tensor) -> None:
        num_groups = self.shape[1] // self.group_size
        codes, scales = parts[""], parts[".scales"].view(-1, num_groups)
        for first, end, rows in pieces(start, stop, out):
            write_integers(codes[first:end].view(torch.uint8), self.bits, rows)
            zeros: torch.Tensor | float = float(1 << (self.bits - 1))
            if self.has_zeros:
                per_word = 32 // self.bits
                words = parts[".zeros"][first // per_word : -(-end // per_word)].t()
                zeros = unpack_words(words, self.bits)[:, : end - first].t().to(torch.float32)
            scale_integers(
                rows,
                zeros,
                wide_scales(scales[first:end]),
                group_size=self.group_size,
                groups=parts.get(".g_idx"),
            )


@dataclass(frozen=True, slots=True)
class GptqFormat:
    """A matrix of integers packed down its inputs."""

    shape: tuple[int, int]
    """(O, I)."""
    bits: int
    """4 or 8."""
    group_size: int
    """Inputs that share a scale; the inputs are a whole number of groups."""
    zero_offset: int
    """What is added to a stored zero point, modulo the number of codes: 1, or 0 in `gptq_v2`."""
    has_order: bool = False
    """Whether an index names each input's group."""
    name: str = "gptq"
    is_exact: bool = False
    row_multiple: int = CHUNK_ROW_MULTIPLE

    @property
    def part_suffixes(self) -> tuple[str, ...]:
        return ("", ".qzeros", ".scales", ".g_idx") if self.has_order else ("", ".qzeros", ".scales")

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> WidenedWeight:
        """Return the weight of codes int32 (I * bits / 32, O), qzeros int32 (G, O * bits / 32), scales (G, O) of any
        float dtype and, with act order, g_idx int32 (I,)."""
        return WidenedWeight(self, parts)

    def widen(self, parts: Mapping[str, torch.Tensor], start: int, stop: int, out: torch.Tensor) -> None:
        per_word = 32 // self.bits
        for first, end, rows in pieces(start, stop, out):
            # Of one chunk, words are few to a row: laid together first, they are transposed in half the time.
            words = parts[""][:, first:end].contiguous().t().contiguous()  # (R, I * bits / 32)
            write_integers(words.view(-1).view(torch.uint8).view(len(rows), -1), self.bits, rows)
            zeros = unpack_words(parts[".qzeros"][:, first // per_word : -(-end // per_word)], self.bits)
            if self.zero_offset:
                zeros = zeros.add_(self.zero_offset).bitwise_and_((1 << self.bits) - 1)
            scale_integers(
                rows,
                zeros[:, : end - first].t().to(torch.float32),
                wide_scales(parts[".scales"][:, first:end]).t(),
                group_size=self.group_size,
                groups=parts.get(".g_idx"),
            )


@dataclass(frozen=True, slots=True)
class AwqFormat:
    """A matrix of 4-bit integers packed along its outputs."""

    shape: tuple[int, int]
    """(O, I); O a multiple of 8."""
    group_size: int
    """Inputs that share a scale; the inputs are a whole number of groups."""
    name: str = "awq"
    is_exact: bool = False
    part_suffixes: tuple[str, ...] = ("", ".qzeros", ".scales")
    row_multiple: int = CHUNK_ROW_MULTIPLE

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> WidenedWeight:
        """Return the weight of codes int32 (I, O / 8), qzeros int32 (G, O / 8) and scales (G, O) of any float dtype."""
        return WidenedWeight(self, parts)

    def widen(self, parts: Mapping[str, torch.Tensor], start: int, stop: int, out: torch.Tensor) -> None:
        for first, end, rows in pieces(start, stop, out):
            words_of = slice(first // _AWQ_OUTPUTS, end // _AWQ_OUTPUTS)
            words = parts[""][:, words_of].contiguous().t().contiguous()  # (R / 8, I)
            _write_interleaved(words, rows)
            zeros = unpack_words(parts[".qzeros"][:, words_of], AWQ_BITS, interleaved=True)
            scale_integers(
                rows,
                zeros.t().to(torch.float32),
                wide_scales(parts[".scales"][:, first:end]).t(),
                group_size=self.group_size,
            )


def _write_interleaved(words: torch.Tensor, out: torch.Tensor) -> None:
    """Write the codes of int32 words (R / 8, I), each of eight rows, to `out` (R, I)."""
    by_parity = (len(words), 4, 2, words.shape[1])
    shifts = interleaved_shifts(out.device)[:, :, None]  # (4, 2, 1): of outputs 0, 1; 2, 3; 4, 5; 6, 7
    if out.dtype == torch.float32:  # numbers as wide as words: made where they are converted
        codes = out.view(torch.int32).view(by_parity)
        torch.bitwise_right_shift(words[:, None, None], shifts, out=codes)
        out.view(by_parity).copy_(codes.bitwise_and_(15))
    else:
        out.view(by_parity).copy_((words[:, None, None] >> shifts).bitwise_and_(15))
