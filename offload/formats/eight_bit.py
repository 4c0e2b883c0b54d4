"""Matrices of 8-bit numbers as published: FP8 (e4m3) or int8, with a scale per tensor, row, or block.

FP8 as DeepSeek-V3 introduced it with blocks of 128 x 128 (arXiv 2412.19437, section 3.3), per row as Meta publishes it
(fbgemm), per tensor, in blocks of a row with e8m0 scales (MXFP8), and int8 per row: matrix = codes * scales. Scales of
activations are not used, since activations stay in the compute dtype.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from offload.formats.stored_sizes import CHUNK_ROW_MULTIPLE
from offload.formats.weight_format import WidenedWeight
from offload.formats.widened_codes import pieces, scale_groups, wide_scales, write_float8


@dataclass(frozen=True, slots=True)
class EightBitFormat:
    """A matrix of float8_e4m3fn or int8, with scales that multiply blocks of it."""

    shape: tuple[int, int]
    """(O, I)."""
    name: str
    """"fp8" or "int8"."""
    block: tuple[int, int]
    """Rows and columns that share a scale; the last ones may be fewer."""
    is_exact: bool = False
    part_suffixes: tuple[str, ...] = ("", ".scales")
    row_multiple: int = CHUNK_ROW_MULTIPLE

    @property
    def grid(self) -> tuple[int, int]:
        """How many scales there are: one above another, and side by side."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> WidenedWeight:
        """Return the weight of codes (O, I) and scales of `grid`, of any shape, float or (e8m0) uint8."""
        return WidenedWeight(self, parts)

    def widen(self, parts: Mapping[str, torch.Tensor], start: int, stop: int, out: torch.Tensor) -> None:
        codes, scales = parts[""], parts[".scales"].view(self.grid)
        for first, end, rows in pieces(start, stop, out):
            factor = 1.0
            if self.name == "int8":
                rows.copy_(codes[first:end])
            else:
                factor = write_float8(codes[first:end], rows)
            scale_groups(rows, self._scales_of(scales, first, end) * factor, self.block[1])

    def _scales_of(self, scales: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return the scales of rows start..stop as float32: (stop - start, G), or (1, G) where all share them."""
        height = self.block[0]
        first = start // height
        found = wide_scales(scales[first : -(-stop // height)])
        if height == 1 or len(found) == 1:
            return found
        return found.repeat_interleave(height, dim=0)[start - first * height : stop - first * height]
