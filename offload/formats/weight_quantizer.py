"""Matrices as bitsandbytes stores them, 4-bit NormalFloat blocks (QLoRA) or LLM.int8 rows, or packed bit for bit.

bitsandbytes' tensors are those that transformers saves for a model it quantized itself, to the last bit. Such a matrix
is asked for in pieces of a few hundred thousand elements, so only its quantized form is ever whole in memory.
Sources: Dettmers et al., arXiv 2305.14314 (NF4, double quantization) and arXiv 2208.07339 (LLM.int8).
"""

import math
from dataclasses import dataclass

import bitsandbytes.functional as bnb
import torch

from offload.formats import four_bit
from offload.formats.four_bit import ReadElements, quantize_blocks
from offload.formats.packed_tensors import pack_to_tensors
from offload.formats.stored_sizes import (
    DEFAULT_BLOCK_SIZE,
    NESTED_BLOCK_SIZE,
    PACKED,
    PreparedFormat,
    int8_rows_bytes,
    nf4_bytes,
)

_STATE_BYTES = 256  # room for the JSON that describes a matrix; its length depends on a number in it


@dataclass(frozen=True, slots=True)
class WeightQuantizer:
    """Turns a matrix into the tensors of one quantized or packed linear layer."""

    format: PreparedFormat
    is_double: bool = False
    """NF4 only: whether the blocks' scales are quantized again, to 8 bits."""

    @property
    def is_exact(self) -> bool:
        """Whether every bit comes back; then only matrices that `can_be_packed` are taken."""
        return self.format == PACKED

    def quantize(self, read: ReadElements, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the tensors by their names below the layer, each in memory of its own.

        `shape` is (O, I); `dtype` is that of the elements that `read` returns.

        Raises ValueError if a value is not finite (for int8: in float16, which bitsandbytes converts to first).
        """
        if self.is_exact:
            parts = pack_to_tensors(read(0, math.prod(shape)).view(shape))
            return {f"weight{suffix}": part for suffix, part in parts.items()}
        return self._quantize_rows(read, shape) if self.format == "int8" else self._quantize_blocks(read, shape, dtype)

    def max_bytes(self, shape: tuple[int, int]) -> int:
        """Return an upper bound of the bytes that `quantize` makes, at most a few hundred too large."""
        if self.is_exact:
            return 2 * math.prod(shape)  # one that packs badly stays as it is
        if self.format == "int8":
            return int8_rows_bytes(shape) + 1
        return nf4_bytes(shape, is_double=self.is_double) + _STATE_BYTES

    def _quantize_rows(self, read: ReadElements, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        num_rows, num_columns = shape
        rows = torch.empty(shape, dtype=torch.int8)
        scales = torch.empty(num_rows)
        step = max(1, four_bit.PIECE_ELEMENTS // num_columns)
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            half = read(start * num_columns, stop * num_columns).view(-1, num_columns).to(torch.float16)
            rows[start:stop], scales[start:stop], _ = bnb.int8_vectorwise_quant(half)
        _require_finite(scales)
        return {"weight": rows, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}  # 0: row-major

    def _quantize_blocks(
        self, read: ReadElements, shape: tuple[int, int], dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        codes, scales = quantize_blocks(read, math.prod(shape))
        _require_finite(scales)
        offset = nested = None
        if self.is_double:
            offset = scales.mean()
            scales, nested = bnb.quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK_SIZE)
        state = bnb.QuantState(
            absmax=scales,
            shape=torch.Size(shape),
            code=bnb.get_4bit_type("nf4", device="cpu"),
            blocksize=DEFAULT_BLOCK_SIZE,
            quant_type="nf4",
            dtype=dtype,
            offset=offset,
            state2=nested,
        )
        tensors = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        # bitsandbytes hands the same tables of levels to every matrix, and a file holds no memory twice.
        return {"weight": codes.view(-1, 1)} | {name: tensor.clone() for name, tensor in tensors.items()}


def _require_finite(scales: torch.Tensor) -> None:
    if not bool(scales.isfinite().all()):
        raise ValueError("a value that is not finite")
