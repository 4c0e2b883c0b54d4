import pytest
import torch

from offload.formats.eight_bit import EightBitFormat
from offload.formats.weight_format import UpcastScratch, WidenedWeight
from tests.support.published_weights import float8, int8

CPU = torch.device("cpu")
SHAPE = (200, 300)
"""Neither rows nor columns are whole blocks."""


@pytest.mark.parametrize("block", [(128, 128), (200, 300), (1, 300), (1, 32), (16, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_float8_equals_its_unpacking_number_by_number(block: tuple[int, int], dtype: torch.dtype) -> None:
    tensors, expected = float8(SHAPE, torch.Generator().manual_seed(1), block=block, dtype=dtype)
    found = EightBitFormat(SHAPE, "fp8", block)
    parts = {"": tensors["weight"], ".scales": tensors["weight_scale_inv"]}
    for start, stop in ((0, 200), (32, 96), (160, 200), (96, 97)):
        for out_dtype in (torch.float32, torch.bfloat16):
            out = torch.empty(stop - start, SHAPE[1], dtype=out_dtype)
            found.widen(parts, start, stop, out)
            assert torch.equal(out, expected[start:stop].to(out_dtype))


@pytest.mark.parametrize("scale_shape", [(), (1,), (1, 1)])
def test_one_scale_may_have_any_shape(scale_shape: tuple[int, ...]) -> None:
    tensors, expected = float8(SHAPE, torch.Generator().manual_seed(2), block=SHAPE, scale_shape=scale_shape)
    out = torch.empty(SHAPE)
    parts = {"": tensors["weight"], ".scales": tensors["weight_scale_inv"]}
    EightBitFormat(SHAPE, "fp8", SHAPE).widen(parts, 0, SHAPE[0], out)
    assert torch.equal(out, expected)


def test_int8_rows_and_the_product_with_them() -> None:
    tensors, expected = int8(SHAPE, torch.Generator().manual_seed(3))
    weight = EightBitFormat(SHAPE, "int8", (1, SHAPE[1])).bind(
        {"": tensors["weight"], ".scales": tensors["weight_scale"]}
    )
    assert isinstance(weight, WidenedWeight)
    inputs = torch.randn(3, SHAPE[1], generator=torch.Generator().manual_seed(4))
    product = weight.linear(inputs, None, UpcastScratch(torch.float32, CPU, num_elements=64 * SHAPE[1]))
    torch.testing.assert_close(product, inputs @ expected.t(), rtol=1e-5, atol=1e-5)


def test_the_scales_of_a_chunk_are_those_of_its_rows_alone() -> None:
    found = EightBitFormat((300, 64), "fp8", (128, 64))
    assert found.grid == (3, 1)
    assert found.row_multiple == 32 and not found.is_exact
    scales = torch.tensor([[1.0], [2.0], [3.0]])
    parts = {"": torch.ones(300, 64).to(torch.float8_e4m3fn), ".scales": scales}
    out = torch.empty(64, 64)
    found.widen(parts, 96, 160, out)
    assert out[:, 0].tolist() == [1.0] * 32 + [2.0] * 32
