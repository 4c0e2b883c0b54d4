"""Weights as int8 rows with one absmax each: matrix = rows * absmax / 127 (LLM.int8, arXiv 2208.07339, row-wise).

The storage of bitsandbytes' 8-bit folders (`X.weight` int8, `X.SCB` float32), viewed in place, and what drafts are made
of. A product widens the rows, exactly in every compute dtype, and scales its own rows.

Packed, the same rows lie as torch's quantized CPU kernels read them, the fastest product of few rows on processors
without wide types. The kernels multiply unsigned 8-bit activations, and without VNNI they saturate unless 7 bits are
used. An activation is therefore split into two digits of 7 bits, as two rows of one product: 14 bits together, finer
than bfloat16, and each row has its own scale, which outliers of other rows do not touch. For drafts only, as it rounds.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from offload.formats.stored_sizes import CHUNK_ELEMENTS
from offload.formats.weight_format import (
    DRAFT_ROWS,
    MEASURED_SIDE,
    UpcastScratch,
    draft_seconds,
    from_columns,
    measure_max_rows,
    num_rows,
)
from offload.memory import allocate_slab

KERNEL_COLUMNS = 32
"""torch's product of bfloat16 with int8 rows reads and writes past rows that are no whole number of its vectors."""
LEVELS = 127.0
"""The largest magnitude of a row's integers."""
_DIGIT = 63
"""Largest magnitude of a digit: 7 bits with sign, since 127 * 127 * 2 is the most that 16 bits hold."""
_ZERO_POINT = 64
PACKED_BYTES_PER_ROW = 12
"""The kernels keep a scale, a zero point and a sum for every row."""


@dataclass(frozen=True, slots=True)
class Int8RowsFormat:
    """A matrix stored as int8 rows."""

    shape: tuple[int, int]
    """(O, I)."""
    name: str = "int8"
    is_exact: bool = False
    part_suffixes: tuple[str, ...] = ("", ".SCB")
    """What is appended to the matrix's name to name each of its tensors; "" is the matrix itself."""

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> "Int8RowsWeight":
        """Return the weight whose tensors are `parts`, by suffix; they are viewed, not copied."""
        return Int8RowsWeight(parts[""], parts[".SCB"], is_fast)


@dataclass(frozen=True, slots=True)
class Int8RowsWeight:
    """A matrix stored as int8 rows with one absmax per output row."""

    rows: torch.Tensor
    """(O, I) int8."""
    absmax: torch.Tensor
    """(O,) float32."""
    is_fast: bool = False
    """Whether activations may be rounded to bfloat16 where a kernel of the device is then faster."""

    @classmethod
    def quantize(cls, matrix: torch.Tensor, *, is_fast: bool = False) -> "Int8RowsWeight":
        """Round (O, I) of any float dtype to the nearest of 255 levels per row, as bitsandbytes does.

        Works in chunks and keeps the rows in memory of their own: whole float32 matrices from the heap left holes
        between the rows, and a draft of 0.36 GB then held 1.5 GB.
        """
        return cls.quantize_rows(
            (matrix.shape[0], matrix.shape[1]),
            lambda start, stop: matrix[start:stop].to("cpu", torch.float32, copy=True),
            is_fast=is_fast,
        )

    @classmethod
    def quantize_rows(
        cls,
        shape: tuple[int, int],
        widen: Callable[[int, int], torch.Tensor],
        *,
        row_multiple: int = 1,
        is_fast: bool = False,
    ) -> "Int8RowsWeight":
        """Do the same to a matrix (O, I) whose rows start..stop `widen` gives, float32 and on the processor.

        Both are multiples of `row_multiple`, but the last; so the whole matrix is never there in float32.
        """
        num_outputs, num_columns = shape
        num_elements = num_outputs * num_columns
        rows = allocate_slab(num_elements)[:num_elements].view(torch.int8).view(shape)
        absmax = torch.empty(num_outputs)
        step = max(1, CHUNK_ELEMENTS // (num_columns * row_multiple)) * row_multiple
        for start in range(0, num_outputs, step):
            wide = widen(start, min(start + step, num_outputs))
            largest = wide.abs().amax(dim=1)
            absmax[start : start + step] = largest
            rows[start : start + step] = wide.mul_((LEVELS / largest.clamp_min(1e-36))[:, None]).round_()
        return cls(rows, absmax, is_fast)

    def to(self, device: torch.device, *, copy: bool = False) -> "Int8RowsWeight":
        return replace(self, rows=self.rows.to(device, copy=copy), absmax=self.absmax.to(device, copy=copy))

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        scales = self.absmax / LEVELS
        is_whole = self.rows.shape[1] % KERNEL_COLUMNS == 0
        if self.is_fast and is_whole and num_rows(inputs) <= measure_bfloat16_max_rows(inputs.device, inputs.dtype):
            product = _bfloat16_product(inputs, self.rows, scales)
        else:
            product = from_columns(scratch.multiply_widened(inputs, self.rows).mul_(scales[:, None]), inputs)
        return product if bias is None else product.add_(bias)


def _bfloat16_product(inputs: torch.Tensor, rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiply by torch's own product of bfloat16 activations with int8 rows, which are widened in registers."""
    flat = inputs.reshape(-1, inputs.shape[-1]).to(torch.bfloat16)
    product = torch._weight_int8pack_mm(flat, rows, scales.to(torch.bfloat16))
    return product.to(inputs.dtype).view(*inputs.shape[:-1], rows.shape[0])


@cache
def measure_bfloat16_max_rows(device: torch.device, compute: torch.dtype) -> int:
    """Return the most rows for which the bfloat16 kernel beats widening here; 0 where it does not exist.

    Two AVX2 cores, 8960 x 1536, 1 / 4 / 8 / 16 rows: widening 2.8 / 4.1 / 6.0 / 5.9 ms, this 0.9 / 2.0 / 3.8 / 6.4 ms.
    """
    if device.type != "cpu":
        return 0
    weight = Int8RowsWeight(torch.ones(MEASURED_SIDE, MEASURED_SIDE, dtype=torch.int8), torch.ones(MEASURED_SIDE))
    narrow = partial(_bfloat16_product, rows=weight.rows, scales=weight.absmax)
    return measure_max_rows((1, 4, 8, 16, 64), narrow, weight, compute)


@dataclass(frozen=True, slots=True)
class PackedInt8Weight:
    """A matrix of int8 rows in the order that torch's quantized kernels read it."""

    packed: Any
    """What torch made of the rows and scales."""
    shape: tuple[int, int]
    """(O, I)."""

    @classmethod
    def pack(cls, weight: Int8RowsWeight) -> "PackedInt8Weight":
        """Pack a weight on the CPU into memory of its own; where nobody else holds it, its rows are freed meanwhile.

        torch says that tensors of this kind will be removed some day, once a session. Nothing else multiplies int8 this
        fast here: until then it is used, and without it `measure_is_packed_faster` is False.
        """
        scales = torch.where(weight.absmax > 0, weight.absmax / LEVELS, 1.0).double()
        zero_points = torch.zeros(weight.rows.shape[0], dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rows = torch._make_per_channel_quantized_tensor(weight.rows, scales, zero_points, 0)
        shape = (weight.rows.shape[0], weight.rows.shape[1])
        del weight  # the head of a large vocabulary would be there three times
        return cls(torch.ops.quantized.linear_prepack(rows, None), shape)

    def to(self, device: torch.device, *, copy: bool = False) -> "PackedInt8Weight":
        """Return the weight itself: nothing changes a packed matrix, and it cannot leave the CPU."""
        assert device.type == "cpu"
        return self

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        flat = inputs.reshape(-1, self.shape[1]).to(torch.float32)  # (T, I)
        num_inputs = flat.shape[0]
        scales = flat.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30).div_(_DIGIT)
        digits = flat.new_empty(2 * num_inputs, self.shape[1])
        exact = torch.div(flat, scales, out=digits[num_inputs:])
        high = torch.round(exact, out=digits[:num_inputs])
        exact.sub_(high).mul_(2 * _DIGIT)  # the rest is at most half a step: one more digit
        products: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            digits, 1.0, _ZERO_POINT, self.packed
        )
        product = products[:num_inputs].add_(products[num_inputs:], alpha=1 / (2 * _DIGIT)).mul_(scales)
        product = product.to(inputs.dtype).view(*inputs.shape[:-1], self.shape[0])
        return product if bias is None else product.add_(bias)


@cache
def measure_is_packed_faster(compute: torch.dtype) -> bool:
    """Return whether these kernels exist, multiply rightly, and beat the others over the widths of a draft's levels.

    Two AVX2 cores, 8960 x 1536, 1 / 4 / 8 / 16 rows: bfloat16 activations 0.9 / 2.0 / 3.8 / 6.4 ms, these 0.4 / 0.9 /
    1.8 / 3 ms.
    """
    matrix = torch.randn(DRAFT_ROWS, MEASURED_SIDE, generator=torch.Generator().manual_seed(0))
    weight, cpu = Int8RowsWeight.quantize(matrix, is_fast=True), torch.device("cpu")
    try:
        packed = PackedInt8Weight.pack(weight)
        inputs = torch.full((2, MEASURED_SIDE), 3.0)  # every digit is the largest: what saturates would show
        expected = inputs @ (weight.rows * (weight.absmax[:, None] / LEVELS)).t()
        if (packed.linear(inputs, None, UpcastScratch(compute, cpu)) - expected).norm() > 0.01 * expected.norm():
            return False
    except (RuntimeError, AttributeError):  # a build of torch without quantized kernels
        return False
    return draft_seconds(packed, compute, cpu) < draft_seconds(weight, compute, cpu)
