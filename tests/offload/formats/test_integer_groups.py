from typing import Any

import pytest
import torch

from offload.formats import widened_codes
from offload.formats.integer_groups import AwqFormat, GptqFormat, PackedIntegersFormat
from offload.formats.weight_format import UpcastScratch, WidenedFormat
from tests.support.published_weights import Tensors, awq, gptq, packed_integers

SHAPE = (104, 128)
"""More than three chunks of rows, the last of which is no whole one."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def assert_widened(found: WidenedFormat, parts: Tensors, expected: torch.Tensor) -> None:
    assert parts.keys() == set(found.part_suffixes)
    for start, stop in ((0, 104), (32, 64), (64, 104), (96, 104)):
        for dtype in DTYPES:
            out = torch.empty(stop - start, SHAPE[1], dtype=dtype)
            found.widen(parts, start, stop, out)
            assert torch.equal(out, expected[start:stop].to(dtype)), (start, stop, dtype)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("options", [{}, {"has_zeros": True}, {"has_zeros": True, "has_order": True}])
def test_integers_packed_along_rows(bits: int, group_size: int, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors, expected = packed_integers(SHAPE, generator, bits=bits, group_size=group_size, **options)
    found = PackedIntegersFormat(SHAPE, bits, group_size, "has_zeros" in options, "has_order" in options)
    names = {"weight_packed": "", "weight_scale": ".scales", "weight_zero_point": ".zeros", "weight_g_idx": ".g_idx"}
    assert found.name == f"w{bits}a16"
    assert_widened(found, {names[name]: tensors[name] for name in tensors if name != "weight_shape"}, expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("options", [{}, {"has_order": True}, {"is_second": True}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_integers_packed_down_the_inputs(
    bits: int, group_size: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(2)
    tensors, expected = gptq(SHAPE, generator, bits=bits, group_size=group_size, dtype=dtype, **options)
    found = GptqFormat(SHAPE, bits, group_size, 0 if "is_second" in options else 1, "has_order" in options)
    parts = {".qzeros": tensors["qzeros"], ".scales": tensors["scales"], "": tensors["qweight"]}
    assert_widened(found, parts | ({".g_idx": tensors["g_idx"]} if "has_order" in options else {}), expected)


@pytest.mark.parametrize("group_size", [32, 128])
def test_integers_packed_along_the_outputs(group_size: int) -> None:
    tensors, expected = awq(SHAPE, torch.Generator().manual_seed(3), group_size=group_size)
    parts = {"": tensors["qweight"], ".qzeros": tensors["qzeros"], ".scales": tensors["scales"]}
    assert_widened(AwqFormat(SHAPE, group_size), parts, expected)


def test_an_accelerators_pieces_make_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened_codes, "piece_elements", lambda is_host: 64 * SHAPE[1])
    tensors, expected = awq(SHAPE, torch.Generator().manual_seed(4))
    parts = {"": tensors["qweight"], ".qzeros": tensors["qzeros"], ".scales": tensors["scales"]}
    assert_widened(AwqFormat(SHAPE, 32), parts, expected)


def test_a_zero_point_of_the_first_gptq_wraps_as_it_was_written() -> None:
    """A zero point of 0 was stored as 15: less one, in four bits."""
    parts = {
        "": torch.tensor([[0x76543210] * 8], dtype=torch.int32),
        ".qzeros": torch.tensor([[-1]], dtype=torch.int32),
        ".scales": torch.full((1, 8), 0.5),
    }
    out = torch.empty(8, 8)
    GptqFormat((8, 8), 4, 8, 1).widen(parts, 0, 8, out)
    assert out.tolist() == [[0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]] * 8


def test_awq_written_down() -> None:
    """The nibbles 0 to 7 of a word belong to the outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    parts = {
        "": torch.tensor([[0x76543210]], dtype=torch.int32),
        ".qzeros": torch.tensor([[0x11111111]], dtype=torch.int32),
        ".scales": torch.full((1, 8), 2.0),
    }
    out = torch.empty(8, 1)
    AwqFormat((8, 1), 1).widen(parts, 0, 8, out)
    assert out.view(-1).tolist() == [2.0 * (nibble - 1) for nibble in (0, 4, 1, 5, 2, 6, 3, 7)]


def test_the_product_is_that_of_the_unpacked_matrix() -> None:
    tensors, expected = awq(SHAPE, torch.Generator().manual_seed(5))
    weight = AwqFormat(SHAPE, 32).bind(
        {"": tensors["qweight"], ".qzeros": tensors["qzeros"], ".scales": tensors["scales"]}
    )
    inputs, bias = torch.randn(2, 3, SHAPE[1]), torch.randn(SHAPE[0])
    scratch = UpcastScratch(torch.float32, torch.device("cpu"), num_elements=32 * SHAPE[1])
    product = weight.to(torch.device("cpu"), copy=True).linear(inputs, bias, scratch)
    torch.testing.assert_close(product, inputs @ expected.t() + bias, rtol=1e-5, atol=1e-5)
