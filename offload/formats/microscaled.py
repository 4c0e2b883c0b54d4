"""Matrices of 4-bit floats (e2m1) with a scale per 16 or 32 of a row: NVFP4 and MXFP4 as published.

MXFP4 (OCP Microscaling Formats 1.0): 32 numbers share a power of two (e8m0). NVFP4 (NVIDIA): 16 share an e4m3 scale,
and the matrix has a float32 scale besides, which compressed-tensors stores so that it divides, and ModelOpt so that it
multiplies. Two codes a byte, the first in the low bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from offload.formats.stored_sizes import CHUNK_ROW_MULTIPLE
from offload.formats.weight_format import WidenedWeight
from offload.formats.widened_codes import E2M1_FACTOR, pieces, scale_groups, wide_scales, write_e2m1


@dataclass(frozen=True, slots=True)
class MicroscaledFormat:
    """A matrix of e2m1 codes with scales along its rows."""

    shape: tuple[int, int]
    """(O, I)."""
    name: str
    """"nvfp4" or "mxfp4"."""
    group_size: int
    """Columns that share a scale; a row is a whole number of them."""
    global_scale: Literal["divides", "multiplies"] | None = None
    """What the matrix's own scale does to those of its groups; None where it has none."""
    is_exact: bool = False
    row_multiple: int = CHUNK_ROW_MULTIPLE

    @property
    def part_suffixes(self) -> tuple[str, ...]:
        return ("", ".scales", ".global_scale") if self.global_scale else ("", ".scales")

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> WidenedWeight:
        """Return the weight of codes uint8, scales e4m3 or (e8m0) uint8, and global scale float32, of any shapes."""
        return WidenedWeight(self, parts)

    def widen(self, parts: Mapping[str, torch.Tensor], start: int, stop: int, out: torch.Tensor) -> None:
        num_rows, num_columns = self.shape
        codes = parts[""].view(num_rows, num_columns // 2)
        scales = parts[".scales"].view(num_rows, num_columns // self.group_size)
        for first, end, rows in pieces(start, stop, out):
            write_e2m1(codes[first:end], rows)
            wide = wide_scales(scales[first:end])
            if self.global_scale == "divides":
                wide = wide / parts[".global_scale"].view(())
            elif self.global_scale == "multiplies":
                wide = wide * parts[".global_scale"].view(())
            scale_groups(rows, wide * E2M1_FACTOR, self.group_size)
