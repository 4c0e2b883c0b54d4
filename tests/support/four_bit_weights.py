"""Weights of every 4-bit kind, made by bitsandbytes itself."""

import bitsandbytes.functional as bnb
import torch

from offload.formats.four_bit import FourBitFormat, FourBitWeight


def four_bit_weight(matrix: torch.Tensor, *, quant_type: str, is_nested: bool, is_fast: bool = False) -> FourBitWeight:
    codes, state = bnb.quantize_4bit(matrix, quant_type=quant_type, compress_statistics=is_nested)
    parts, offset = {"": codes.view(-1), ".absmax": state.absmax}, None
    if is_nested:
        offset = state.offset.item()
        parts |= {".nested_absmax": state.state2.absmax, ".nested_quant_map": state.state2.code}
    shape = (matrix.shape[0], matrix.shape[1])
    return FourBitWeight(FourBitFormat(shape, quant_type, nested_offset=offset), parts, is_fast)


def dequantized(weight: FourBitWeight, dtype: torch.dtype) -> torch.Tensor:
    """The whole matrix (O, I), widened as a product widens it."""
    out = torch.empty(weight.format.shape, dtype=dtype)
    return weight._widen_rows(0, out.shape[0], weight._wide_absmax(), out)
