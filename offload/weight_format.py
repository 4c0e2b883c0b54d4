"""How a stored weight becomes a matrix product: bf16/fp16/fp32 as they are, or int8 rows with one scale each.

Storage dtype is not compute dtype. A `StoredWeight` keeps the bytes of the file (or int8 rows made from them) and
multiplies activations in the compute dtype. Where storage is narrower, the matrix is widened into one reused scratch
buffer, a single cheap stream of memory, or multiplied directly in its storage dtype where a `MatmulPolicy` allows that.
Knows nothing of layers, slabs or models.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F

from offload.slab_memory import allocate_slab

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""safetensors names of the storage dtypes that can be streamed."""


CHUNK_ELEMENTS = 1 << 20
"""Elements widened at a time: 4 MB in float32 stay in the processor's cache between being written and multiplied.

Measured on two cores, 8960 x 1536 bf16, 1 / 8 / 64 rows: whole matrix 6.4 / 10.7 / 25.7 ms, chunks 2.4 / 5.4 / 13 ms.
"""


class UpcastScratch:
    """One buffer in the compute dtype, CHUNK_ELEMENTS large, reused by every product of a model."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._buffer = torch.empty(0, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return self._buffer.numel() * self._buffer.element_size()

    def chunk_rows(self, num_columns: int) -> int:
        """How many rows of a matrix with this many columns are widened at a time."""
        return max(1, CHUNK_ELEMENTS // num_columns)

    def view(self, num_rows: int, num_columns: int) -> torch.Tensor:
        """An uninitialised (num_rows, num_columns) matrix; valid until the next call."""
        num_elements = num_rows * num_columns
        if self._buffer.numel() < num_elements:
            self._buffer = torch.empty(max(num_elements, CHUNK_ELEMENTS), dtype=self._dtype, device=self._device)
        return self._buffer[:num_elements].view(num_rows, num_columns)

    def linear(self, inputs: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """`inputs` (..., I) times the transpose of `matrix` (O, I), which is widened in chunks: (..., O)."""
        num_outputs, num_columns = matrix.shape
        flat = inputs.reshape(-1, num_columns).t()  # (I, T)
        products = inputs.new_empty(num_outputs, flat.shape[1])  # (O, T)
        step = self.chunk_rows(num_columns)
        for start in range(0, num_outputs, step):
            rows = matrix[start : start + step]
            wide = self.view(rows.shape[0], num_columns).copy_(rows)
            torch.mm(wide, flat, out=products[start : start + step])
        return products.t().reshape(*inputs.shape[:-1], num_outputs)


@dataclass(frozen=True, slots=True)
class MatmulPolicy:
    """When a product may run in the weight's own, narrower dtype."""

    direct_max_rows: int = 0
    """Inputs of at most this many rows are rounded to the storage dtype; 0 keeps every product in the compute dtype.

    Rounding makes a token's logits depend on the width of its pass, so a target keeps 0; a draft may be fast.
    """


class StoredWeight(Protocol):
    """A matrix of shape (O, I) in some storage format."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored form."""

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        """`inputs` (..., I) times the transposed matrix, plus bias (O,): (..., O) in the dtype of `inputs`."""


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A matrix stored as bf16, fp16 or fp32."""

    matrix: torch.Tensor
    """(O, I) in the storage dtype; usually a view of a slab."""
    policy: MatmulPolicy = MatmulPolicy()
    """When the product may run in the storage dtype."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrix."""
        return self.matrix.numel() * self.matrix.element_size()

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        """See `StoredWeight.linear`."""
        if self.matrix.dtype == inputs.dtype:
            return F.linear(inputs, self.matrix, bias)
        if num_rows(inputs) <= self.policy.direct_max_rows:
            product = F.linear(inputs.to(self.matrix.dtype), self.matrix).to(inputs.dtype)
            return product if bias is None else product + bias
        product = scratch.linear(inputs, self.matrix)
        return product if bias is None else product.add_(bias)


@dataclass(frozen=True, slots=True)
class Int8RowsWeight:
    """A matrix stored as int8 rows with one scale per output row: matrix ≈ scales[:, None] * rows."""

    rows: torch.Tensor
    """(O, I) int8."""
    scales: torch.Tensor
    """(O,) float32."""

    @classmethod
    def quantize(cls, matrix: torch.Tensor) -> "Int8RowsWeight":
        """Round (O, I) of any float dtype to the nearest of 255 levels per row (absmax scaling).

        Works in chunks and keeps the rows in memory of their own: whole float32 matrices from the heap left holes
        between the rows, and a draft of 0.36 GB then held 1.5 GB.
        """
        num_outputs, num_columns = matrix.shape
        rows = allocate_slab(matrix.numel())[: matrix.numel()].view(torch.int8).view(matrix.shape)
        scales = torch.empty(num_outputs)
        step = max(1, CHUNK_ELEMENTS // num_columns)
        for start in range(0, num_outputs, step):
            wide = matrix[start : start + step].to(torch.float32, copy=True)
            scale = (wide.abs().amax(dim=1) / 127.0).clamp_min(torch.finfo(torch.float32).tiny)
            scales[start : start + step] = scale
            rows[start : start + step] = wide.div_(scale[:, None]).round_().clamp_(-127, 127)
        return cls(rows, scales)

    @property
    def num_bytes(self) -> int:
        """Bytes of rows and scales."""
        return self.rows.numel() + 4 * self.scales.numel()

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        """See `StoredWeight.linear`; activations are rounded to int8 per row where the device multiplies int8 fast."""
        if inputs.device.type == "cpu":
            product = self._int8_product(inputs)
        else:
            product = scratch.linear(inputs, self.rows) * self.scales.to(inputs.dtype)
        return product if bias is None else product + bias

    def _int8_product(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)  # (T, I); a bfloat16 scale would let 128 wrap
        input_scales = (flat.abs().amax(dim=1, keepdim=True) / 127.0).clamp_min(1e-30)
        quantized = (flat / input_scales).round_().to(torch.int8)
        product = torch._int_mm(quantized, self.rows.t()).to(torch.float32)  # (T, O)
        product *= input_scales
        product *= self.scales
        return product.view(*inputs.shape[:-1], -1).to(inputs.dtype)


def num_rows(inputs: torch.Tensor) -> int:
    """How many vectors `inputs` (..., I) holds."""
    return inputs.numel() // max(inputs.shape[-1], 1)


@cache
def measure_direct_max_rows(storage: torch.dtype, compute: torch.dtype, *, side: int = 1024) -> int:
    """The most rows for which a product in `storage` beats widening to `compute`, measured on this CPU (about 0.1 s).

    Processors differ by more than ten times here: with AVX512-BF16 the narrow product wins at every width, without
    it the wide product wins from 8 to 32 rows on.
    """
    if storage == compute:
        return 0
    matrix = torch.ones(side, side, dtype=storage)
    scratch = UpcastScratch(compute, torch.device("cpu"))
    best = 0
    for rows in (1, 4, 16, 64, 256):
        inputs = torch.ones(rows, side, dtype=compute)

        def multiply_direct(inputs: torch.Tensor = inputs) -> None:
            F.linear(inputs.to(storage), matrix).to(compute)

        def multiply_wide(inputs: torch.Tensor = inputs) -> None:
            scratch.linear(inputs, matrix)

        if _fastest_seconds(multiply_direct) > _fastest_seconds(multiply_wide):
            break
        best = rows
    return 1 << 30 if best == 256 else best


def _fastest_seconds(action: Callable[[], None], *, repeats: int = 4) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
