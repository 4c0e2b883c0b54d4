"""Matrices in the block formats of GGUF, as they lie in the file: Q4_K, Q6_K, Q8_0, IQ4_XS, MXFP4, ...

A row is whole blocks, a block some codes and their scales (`ggml_codes`). Rows are widened a piece at a time, so that
what a piece takes stays in the processor's cache: its codes are brought out as bytes, converted, and multiplied by
their scales, by operations on whole pieces. The numbers are float32 as transformers' and gguf's own, to the bit.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from offload.formats.ggml_codes import BLOCK_TYPES, BlockType, Workspace
from offload.formats.stored_sizes import piece_elements
from offload.formats.weight_format import WidenedWeight

_WORD_BYTES = 4
"""What blocks of whole words are read by: they then begin at a multiple of it in their storage."""
_BYTES_PER_ELEMENT = 9
"""Of a piece: its bytes, its codes once or twice, the numbers in float32; what IQ types take besides is torch's."""


@dataclass(frozen=True, slots=True)
class GgmlFormat:
    """How a matrix of blocks is to be read."""

    shape: tuple[int, int]
    """(O, I); I is a multiple of the type's `num_elements`."""
    name: str
    """The type's: a key of BLOCK_TYPES."""

    def __post_init__(self) -> None:
        """Raise ValueError if rows are no whole numbers of blocks."""
        if self.shape[1] % self.type.num_elements:
            raise ValueError(
                f"rows of {self.shape[1]} elements cannot be {self.name}, whose blocks have {self.type.num_elements}"
            )

    @property
    def type(self) -> BlockType:
        return BLOCK_TYPES[self.name]

    @property
    def is_exact(self) -> bool:
        return False

    @property
    def part_suffixes(self) -> tuple[str, ...]:
        return ("",)

    @property
    def row_bytes(self) -> int:
        return self.shape[1] // self.type.num_elements * self.type.num_bytes

    @property
    def num_bytes(self) -> int:
        return self.shape[0] * self.row_bytes

    @property
    def row_multiple(self) -> int:
        return 1

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> WidenedWeight:
        """Return the weight whose bytes are the part "", uint8; they are viewed, not copied."""
        return WidenedWeight(self, parts)

    def widen(self, parts: Mapping[str, torch.Tensor], start: int, stop: int, out: torch.Tensor) -> None:
        """Write rows start..stop to `out`, (stop - start, I) of any float dtype and on the device of the parts."""
        first, end = start * self.row_bytes, stop * self.row_bytes
        self._widen(parts[""].view(-1)[first:end].view(-1, self.type.num_bytes), out)

    def gather(self, parts: Mapping[str, torch.Tensor], ids: torch.Tensor, out: torch.Tensor) -> None:
        """Write the rows of `ids` (T,) to `out`, (T, I) of any float dtype."""
        rows = parts[""].view(self.shape[0], self.row_bytes).index_select(0, ids)
        self._widen(rows.view(-1, self.type.num_bytes), out)

    def _widen(self, blocks: torch.Tensor, out: torch.Tensor) -> None:
        """Write the numbers of blocks (B, bytes) to contiguous memory of as many elements.

        In inference mode, whoever calls: what is kept from one call for the next is memory of that mode.
        """
        if not len(blocks):
            return
        kind, is_host = self.type, out.device.type == "cpu"
        if blocks.storage_offset() % math.gcd(kind.num_bytes, _WORD_BYTES):
            blocks = blocks.clone()
        work = _host_workspaces().workspace if is_host else Workspace(out.device)
        step = max(1, piece_elements(is_host=is_host) // kind.num_elements)
        flat = out.view(-1, kind.num_elements)
        finish = _finish_on_host if is_host else _finish_on_device
        with torch.inference_mode():
            for rows, numbers in zip(torch.split(blocks, step), torch.split(flat, step), strict=True):
                work.clear(_BYTES_PER_ELEMENT * numbers.numel())
                scales, offsets = kind.scales(rows, work)
                finish(kind.codes(rows, work), scales, offsets, numbers, work)


def _finish_on_host(
    codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, out: torch.Tensor, work: Workspace
) -> None:
    """Write `scales * codes + offsets` to `out` (B, elements), from planes (P, R, W) and scales (B, G).

    In steps that torch's loops for a processor have vector instructions for: with a conversion and a product at once
    it would take memory for the converted codes.
    """
    wide = out if out.dtype == torch.float32 else work.take(*out.shape, dtype=torch.float32)
    num_planes, num_rows, width = codes.shape
    placed = wide.view(num_rows, num_planes, width)
    for plane in range(num_planes):
        placed[:, plane].copy_(codes[plane])
    groups = wide.view(scales.numel(), -1)
    groups.mul_(scales.reshape(-1, 1))
    if offsets is not None:
        groups.add_(offsets.reshape(-1, 1))
    if wide is not out:
        out.copy_(wide)


def _finish_on_device(
    codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, out: torch.Tensor, work: Workspace
) -> None:
    """Do the same in one launch, or in two with offsets: kernels convert what they read and write."""
    num_planes, num_rows, width = codes.shape
    group, row = out.numel() // scales.numel(), num_planes * width
    # The dimension that groups are parts of: rows, the planes of a row, or a plane's part of it.
    dim, size = (0, group // row) if group >= row else (1, group // width) if group >= width else (2, group)
    shape = [num_rows, num_planes, width]
    shape[dim : dim + 1] = [shape[dim] // size, size]
    placed, numbers = codes.transpose(0, 1).view(shape), out.view(shape)
    scales = scales.reshape(*shape[: dim + 1], *[1] * (3 - dim))
    if offsets is None:
        torch.mul(placed, scales, out=numbers)
        return
    wide = torch.mul(placed, scales, out=work.take(*shape, dtype=torch.float32))
    torch.add(wide, offsets.reshape(scales.shape), out=numbers)


class _HostWorkspaces(threading.local):
    """One workspace for each thread that widens."""

    def __init__(self) -> None:
        self.workspace = Workspace(torch.device("cpu"))


@cache
def _host_workspaces() -> _HostWorkspaces:
    return _HostWorkspaces()
