"""Matrices as bitsandbytes stores them: 4-bit NormalFloat blocks (QLoRA) or LLM.int8 rows, made piece by piece.

The tensors are those that transformers saves for a model it quantized itself, to the last bit. A matrix is asked for
in pieces of a few hundred thousand elements, so only its quantized form is ever whole in memory. Reads no files.
Sources: Dettmers et al., arXiv 2305.14314 (NF4, double quantization) and arXiv 2208.07339 (LLM.int8).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import bitsandbytes.functional as bnb
import numpy as np
import numpy.typing as npt
import torch

QuantizedFormat = Literal["int8", "nf4"]
QUANTIZED_FORMATS: tuple[str, ...] = get_args(QuantizedFormat)
BLOCK_ELEMENTS = 64
"""Elements that share a scale in NF4."""
_NESTED_BLOCK_ELEMENTS = 256
_PIECE_ELEMENTS = 1 << 18  # 1 MB in float32; a multiple of BLOCK_ELEMENTS
_STATE_BYTES = 256  # room for the JSON that describes a matrix; its length depends on a number in it

ReadElements = Callable[[int, int], torch.Tensor]
"""Elements `start` to `stop` of a row-major matrix, flat, in the model's dtype."""


@dataclass(frozen=True, slots=True)
class WeightQuantizer:
    """Turns a matrix into the tensors of one quantized linear layer."""

    format: QuantizedFormat
    """What is made of it."""
    is_double: bool = False
    """NF4 only: whether the blocks' scales are quantized again, to 8 bits."""

    def quantize(self, read: ReadElements, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        """The tensors by their names below the layer; `shape` is (O, I).

        Raises:
            ValueError: a value is not finite (for int8: in float16, which bitsandbytes converts to first).
        """
        tensors = self._quantize_rows(read, shape) if self.format == "int8" else self._quantize_blocks(read, shape)
        return tensors

    def max_bytes(self, shape: tuple[int, int]) -> int:
        """An upper bound of the bytes that `quantize` makes, at most a few hundred too large."""
        num_elements = math.prod(shape)
        if self.format == "int8":
            return num_elements + 4 * shape[0] + 1
        num_blocks = -(-num_elements // BLOCK_ELEMENTS)
        packed = -(-num_elements // 2) + 4 * 16 + _STATE_BYTES
        if not self.is_double:
            return packed + 4 * num_blocks
        return packed + num_blocks + 4 * -(-num_blocks // _NESTED_BLOCK_ELEMENTS) + 4 * 256

    def _quantize_rows(self, read: ReadElements, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        num_rows, num_columns = shape
        rows = torch.empty(shape, dtype=torch.int8)
        scales = torch.empty(num_rows)
        step = max(1, _PIECE_ELEMENTS // num_columns)
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            half = read(start * num_columns, stop * num_columns).view(-1, num_columns).to(torch.float16)
            rows[start:stop], scales[start:stop], _ = bnb.int8_vectorwise_quant(half)
        _require_finite(scales)
        return {"weight": rows, "SCB": scales, "weight_format": torch.tensor(0, dtype=torch.uint8)}  # 0: row-major

    def _quantize_blocks(self, read: ReadElements, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        num_elements = math.prod(shape)
        packed = torch.empty(-(-num_elements // 2), 1, dtype=torch.uint8)
        scales = torch.empty(-(-num_elements // BLOCK_ELEMENTS))
        dtype = torch.float32
        for start in range(0, num_elements, _PIECE_ELEMENTS):
            piece = read(start, min(start + _PIECE_ELEMENTS, num_elements))
            dtype = piece.dtype
            codes, piece_scales = _quantize_piece(piece)
            packed[start // 2 : start // 2 + codes.numel(), 0] = codes
            scales[start // BLOCK_ELEMENTS : start // BLOCK_ELEMENTS + piece_scales.numel()] = piece_scales
        _require_finite(scales)
        state = self._describe(scales, shape, dtype)
        return {"weight": packed} | {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}

    def _describe(self, scales: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype) -> bnb.QuantState:
        code = bnb.get_4bit_type("nf4", device="cpu")
        fields = {
            "shape": torch.Size(shape),
            "dtype": dtype,
            "code": code,
            "blocksize": BLOCK_ELEMENTS,
            "quant_type": "nf4",
        }
        if not self.is_double:
            return bnb.QuantState(absmax=scales, **fields)
        offset = scales.mean()
        bytes_per_block, nested = bnb.quantize_blockwise(scales - offset, blocksize=_NESTED_BLOCK_ELEMENTS)
        return bnb.QuantState(absmax=bytes_per_block, offset=offset, state2=nested, **fields)


def _quantize_piece(piece: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two codes a byte, and one scale a block: the nearest of 16 levels after division by the block's largest.

    bitsandbytes searches the levels for every element (30 million elements a second on one core); counting the
    boundaries below all elements at once gives the same codes at ten times that speed.
    """
    if piece.numel() % BLOCK_ELEMENTS:  # an odd tail, which bitsandbytes rounds in its own way
        codes, state = bnb.quantize_4bit(piece, blocksize=BLOCK_ELEMENTS, quant_type="nf4")
        return codes.view(-1), state.absmax
    wide = piece.to(torch.float32, copy=True).view(-1, BLOCK_ELEMENTS)
    scales = wide.abs().amax(dim=1)
    wide.mul_((1.0 / scales.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
    values = wide.view(-1).numpy()
    codes = np.zeros(values.shape, dtype=np.uint8)
    is_above = np.empty(values.shape, dtype=np.bool_)
    for boundary in _boundaries():
        np.greater(values, boundary, out=is_above)
        np.add(codes, is_above.view(np.uint8), out=codes)
    return torch.from_numpy((codes[::2] << 4) | codes[1::2]), scales


@cache
def _boundaries() -> npt.NDArray[np.float32]:
    """Half way between neighbouring levels."""
    levels = bnb.get_4bit_type("nf4", device="cpu")
    middles: npt.NDArray[np.float32] = ((levels[:-1] + levels[1:]) / 2).numpy()
    return middles


def _require_finite(scales: torch.Tensor) -> None:
    if not bool(scales.isfinite().all()):
        raise ValueError("a value that is not finite")
