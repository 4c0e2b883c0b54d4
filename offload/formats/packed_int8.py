"""int8 rows packed for torch's quantized CPU kernels, the fastest product of few rows on processors without wide types.

The kernels multiply unsigned 8-bit activations, and without VNNI they saturate unless 7 bits are used. An activation is
therefore split into two digits of 7 bits, as two rows of one product: 14 bits together, finer than bfloat16, and each
row has its own scale, which outliers of other rows do not touch. Rounds activations, so it is for drafts only.
"""

import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from offload.formats.int8_rows import LEVELS, Int8RowsWeight
from offload.formats.kernel_timing import CHOICE_REPEATS, DRAFT_WIDTHS, fastest_seconds
from offload.formats.weight_format import MatmulPolicy, UpcastScratch

_DIGIT = 63
"""Largest magnitude of a digit: 7 bits with sign, since 127 * 127 * 2 is the most that 16 bits hold."""
_ZERO_POINT = 64
_BYTES_PER_ROW = 12
"""The kernels keep a scale, a zero point and a sum for every row."""


@dataclass(frozen=True, slots=True)
class PackedInt8Weight:
    """A matrix of int8 rows in the order that torch's quantized kernels read it."""

    packed: Any
    """What torch made of the rows and scales."""
    shape: tuple[int, int]
    """(O, I)."""

    @classmethod
    def pack(cls, weight: Int8RowsWeight) -> "PackedInt8Weight":
        """The same matrix in memory of its own; `weight` is on the CPU.

        torch says that tensors of this kind will be removed some day, once a session. Nothing else multiplies int8 this
        fast here: until then it is used, and without it `measure_is_packed_faster` is False.
        """
        scales = torch.where(weight.absmax > 0, weight.absmax / LEVELS, 1.0).double()
        zero_points = torch.zeros(weight.rows.shape[0], dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rows = torch._make_per_channel_quantized_tensor(weight.rows, scales, zero_points, 0)
        packed = torch.ops.quantized.linear_prepack(rows, None)
        return cls(packed, (weight.rows.shape[0], weight.rows.shape[1]))

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed form, without padding to the kernels' blocks."""
        return self.shape[0] * (self.shape[1] + _BYTES_PER_ROW)

    def copy_to(self, device: torch.device) -> "PackedInt8Weight":
        """See `StoredWeight.copy_to`: nothing changes a packed matrix, and it cannot leave the CPU, so it is itself."""
        assert device.type == "cpu"
        return self

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        """See `StoredWeight.linear`."""
        flat = inputs.reshape(-1, self.shape[1]).to(torch.float32)  # (T, I)
        num_rows = flat.shape[0]
        scales = flat.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30).div_(_DIGIT)
        digits = flat.new_empty(2 * num_rows, self.shape[1])
        exact = torch.div(flat, scales, out=digits[num_rows:])
        high = torch.round(exact, out=digits[:num_rows])
        exact.sub_(high).mul_(2 * _DIGIT)  # the rest is at most half a step: one more digit
        products: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            digits, 1.0, _ZERO_POINT, self.packed
        )
        product = products[:num_rows].add_(products[num_rows:], alpha=1 / (2 * _DIGIT)).mul_(scales)
        product = product.to(inputs.dtype).view(*inputs.shape[:-1], self.shape[0])
        return product if bias is None else product.add_(bias)


@cache
def measure_is_packed_faster(compute: torch.dtype, *, side: int = 1024) -> bool:
    """Whether these kernels exist here, multiply rightly, and beat the others over the widths of a draft's levels.

    Two AVX2 cores, 8960 x 1536, 1 / 4 / 8 / 16 rows: bfloat16 activations 0.9 / 2.0 / 3.8 / 6.4 ms, these 0.4 / 0.9 /
    1.8 / 3 ms.
    """
    generator = torch.Generator().manual_seed(0)
    weight = Int8RowsWeight.quantize(torch.randn(side, side, generator=generator), MatmulPolicy(is_fast=True))
    scratch = UpcastScratch(compute, torch.device("cpu"))
    try:
        packed = PackedInt8Weight.pack(weight)
        inputs = torch.full((2, side), 3.0)  # every digit is the largest: what saturates would show
        expected = inputs @ (weight.rows * (weight.absmax[:, None] / LEVELS)).t()
        if (packed.linear(inputs, None, scratch) - expected).norm() > 0.01 * expected.norm():
            return False
    except (RuntimeError, AttributeError):  # a build of torch without quantized kernels
        return False
    packed_seconds = other_seconds = 0.0
    for width in DRAFT_WIDTHS:
        inputs = torch.randn(width, side, generator=generator).to(compute)
        packed_seconds += fastest_seconds(partial(packed.linear, inputs, None, scratch), repeats=CHOICE_REPEATS)
        other_seconds += fastest_seconds(partial(weight.linear, inputs, None, scratch), repeats=CHOICE_REPEATS)
    return packed_seconds < other_seconds
