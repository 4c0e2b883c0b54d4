import bitsandbytes.functional
import pytest
import torch

from offload.formats.int8 import Int8RowsWeight
from offload.formats.stored_sizes import int8_rows_bytes, nf4_bytes

SHAPES = [(1, 64), (5, 7), (64, 64), (129, 130), (300, 1000), (257, 64)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_double", [False, True])
def test_nf4_is_what_bitsandbytes_stores(shape, is_double):
    """The oracle is bitsandbytes itself, as it would write the matrix into a safetensors file."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed, state = bitsandbytes.functional.quantize_4bit(matrix, quant_type="nf4", compress_statistics=is_double)
    stored = state.as_dict(packed=True)
    json_state = stored.pop("quant_state.bitsandbytes__nf4")
    tensors = [packed, *stored.values()]
    assert nf4_bytes(shape, is_double=is_double) == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert json_state.numel() < 256


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_rows_are_what_the_weight_holds(shape):
    weight = Int8RowsWeight.quantize(torch.ones(shape))
    assert int8_rows_bytes(shape) == weight.rows.nbytes + weight.absmax.nbytes


def test_double_quantization_saves_three_bytes_of_four_per_block():
    shape = (8192, 8192)
    blocks = 8192 * 8192 // 64
    assert nf4_bytes(shape, is_double=False) - nf4_bytes(shape) == 3 * blocks - 4 * blocks // 256 - 1024
