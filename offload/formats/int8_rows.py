"""Weights as int8 rows with one absmax each: matrix = rows * absmax / 127 (LLM.int8, arXiv 2208.07339, row-wise).

The storage of bitsandbytes' 8-bit folders (`X.weight` int8, `X.SCB` float32), viewed in place, and what drafts are made
of. A product widens the rows, exactly in every compute dtype, and scales its own rows. Knows no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch

from offload.checkpoint.stored_sizes import CHUNK_ELEMENTS
from offload.formats.kernel_timing import fastest_seconds
from offload.formats.weight_format import EXACT, MatmulPolicy, UpcastScratch, from_columns, num_rows
from offload.pinning.slab_memory import allocate_slab

LEVELS = 127.0
"""The largest magnitude of a row's integers."""


@dataclass(frozen=True, slots=True)
class Int8RowsFormat:
    """A matrix stored as int8 rows."""

    shape: tuple[int, int]
    """(O, I)."""

    @property
    def part_suffixes(self) -> tuple[str, ...]:
        """See `WeightFormat.part_suffixes`."""
        return ("", ".SCB")

    def bind(self, parts: Mapping[str, torch.Tensor], policy: MatmulPolicy) -> "Int8RowsWeight":
        """See `WeightFormat.bind`."""
        return Int8RowsWeight(parts[""], parts[".SCB"], policy)


@dataclass(frozen=True, slots=True)
class Int8RowsWeight:
    """A matrix stored as int8 rows with one absmax per output row."""

    rows: torch.Tensor
    """(O, I) int8."""
    absmax: torch.Tensor
    """(O,) float32."""
    policy: MatmulPolicy = EXACT
    """Whether activations may be rounded to bfloat16 where a kernel of the device is then faster."""

    @classmethod
    def quantize(cls, matrix: torch.Tensor, policy: MatmulPolicy = EXACT) -> "Int8RowsWeight":
        """Round (O, I) of any float dtype to the nearest of 255 levels per row, as bitsandbytes does.

        Works in chunks and keeps the rows in memory of their own: whole float32 matrices from the heap left holes
        between the rows, and a draft of 0.36 GB then held 1.5 GB.
        """
        num_outputs, num_columns = matrix.shape
        rows = allocate_slab(matrix.numel())[: matrix.numel()].view(torch.int8).view(matrix.shape)
        absmax = torch.empty(num_outputs)
        step = max(1, CHUNK_ELEMENTS // num_columns)
        for start in range(0, num_outputs, step):
            wide = matrix[start : start + step].to("cpu", torch.float32, copy=True)
            largest = wide.abs().amax(dim=1)
            absmax[start : start + step] = largest
            rows[start : start + step] = wide.mul_((LEVELS / largest.clamp_min(1e-36))[:, None]).round_()
        return cls(rows, absmax, policy)

    @property
    def num_bytes(self) -> int:
        """Bytes of rows and absmax."""
        return self.rows.numel() + 4 * self.absmax.numel()

    def to(self, device: torch.device) -> "Int8RowsWeight":
        """The same weight on `device`; itself if it is there."""
        return replace(self, rows=self.rows.to(device), absmax=self.absmax.to(device))

    def copy_to(self, device: torch.device) -> "Int8RowsWeight":
        """See `StoredWeight.copy_to`."""
        return replace(self, rows=self.rows.to(device, copy=True), absmax=self.absmax.to(device, copy=True))

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        """See `StoredWeight.linear`."""
        scales = self.absmax / LEVELS
        if self.policy.is_fast and num_rows(inputs) <= measure_bfloat16_max_rows(inputs.device, inputs.dtype):
            product = _bfloat16_product(inputs, self.rows, scales)
        else:
            product = from_columns(self._wide_product(inputs, scales, scratch), inputs)
        return product if bias is None else product.add_(bias)

    def _wide_product(self, inputs: torch.Tensor, scales: torch.Tensor, scratch: UpcastScratch) -> torch.Tensor:
        rows = self.rows

        def widen(start: int, stop: int) -> torch.Tensor:
            return scratch.view(stop - start, rows.shape[1]).copy_(rows[start:stop])

        return scratch.multiply(inputs, rows.shape[0], widen).mul_(scales[:, None])  # (O, T)


def _bfloat16_product(inputs: torch.Tensor, rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """torch's own product of bfloat16 activations with int8 rows, widened in registers."""
    flat = inputs.reshape(-1, inputs.shape[-1]).to(torch.bfloat16)
    product = torch._weight_int8pack_mm(flat, rows, scales.to(torch.bfloat16))
    return product.to(inputs.dtype).view(*inputs.shape[:-1], rows.shape[0])


@cache
def measure_bfloat16_max_rows(device: torch.device, compute: torch.dtype, *, side: int = 1024) -> int:
    """The most rows for which the bfloat16 kernel beats widening on this device; 0 where it does not exist.

    Two AVX2 cores, 8960 x 1536, 1 / 4 / 8 / 16 rows: widening 2.8 / 4.1 / 6.0 / 5.9 ms, this 0.9 / 2.0 / 3.8 / 6.4 ms.
    """
    if device.type != "cpu":
        return 0
    weight = Int8RowsWeight(torch.ones(side, side, dtype=torch.int8), torch.ones(side))
    scratch = UpcastScratch(compute, device)
    best = 0
    for width in (1, 4, 8, 16, 64):
        inputs = torch.ones(width, side, dtype=compute)

        def multiply_narrow(inputs: torch.Tensor = inputs) -> None:
            _bfloat16_product(inputs, weight.rows, weight.absmax)

        def multiply_wide(inputs: torch.Tensor = inputs) -> None:
            weight.linear(inputs, None, scratch)

        if fastest_seconds(multiply_narrow) > fastest_seconds(multiply_wide):
            break
        best = width
    return best
