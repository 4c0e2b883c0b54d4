from itertools import pairwise, product

import bitsandbytes.functional as bnb
import pytest
import torch

from offload.formats import four_bit
from offload.formats.weight_quantizer import WeightQuantizer

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def reading(matrix):
    flat = matrix.reshape(-1)
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return flat[start:stop]

    return read, asked


def random_matrix(shape, dtype, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)
    matrix[shape[0] // 2] = 0
    return matrix.to(dtype)


@pytest.mark.parametrize("shape", [(96, 64), (40, 128), (130, 192), (5, 40), (7, 9), (1, 64)])
def test_nf4_made_in_pieces_is_bitsandbytes_of_the_whole_matrix(shape, monkeypatch) -> None:
    monkeypatch.setattr(four_bit, "PIECE_ELEMENTS", 640)
    for dtype, is_double in product(DTYPES, (False, True)):
        matrix = random_matrix(shape, dtype)
        read, asked = reading(matrix)
        found = WeightQuantizer("nf4", is_double).quantize(read, shape, dtype)
        packed, state = bnb.quantize_4bit(matrix, quant_type="nf4", compress_statistics=is_double)
        expected = {"weight": packed} | {f"weight.{name}": item for name, item in state.as_dict(packed=True).items()}
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name
        assert max(stop - start for start, stop in asked) <= 640
        assert asked[0][0] == 0 and asked[-1][1] == matrix.numel()
        assert all(left[1] == right[0] for left, right in pairwise(asked))


def test_nf4_agrees_on_values_right_at_and_beside_the_boundaries() -> None:
    """Where counting boundaries and searching for them could part: ties, and the neighbouring floats."""
    levels = bnb.get_4bit_type("nf4", device="cpu")
    middles = (levels[:-1] + levels[1:]) / 2
    near = torch.cat(
        [torch.nextafter(middles, torch.tensor(-2.0)), middles, torch.nextafter(middles, torch.tensor(2.0)), levels]
    )
    values = torch.cat([near, torch.full((64 - near.numel() % 64,), -1.0)])
    values[::64] = 1.0
    read, _ = reading(values)
    packed, _ = bnb.quantize_4bit(values, quant_type="nf4")
    assert torch.equal(WeightQuantizer("nf4").quantize(read, (1, values.numel()), values.dtype)["weight"], packed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96, 64), (7, 9), (1, 3000), (130, 192)])
def test_int8_made_in_pieces_is_bitsandbytes_of_the_whole_matrix(shape, dtype, monkeypatch) -> None:
    monkeypatch.setattr(four_bit, "PIECE_ELEMENTS", 640)
    matrix = random_matrix(shape, dtype) + 0.01
    read, _ = reading(matrix)
    found = WeightQuantizer("int8").quantize(read, shape, dtype)
    rows, scales, _ = bnb.int8_vectorwise_quant(matrix.to(torch.float16))
    assert torch.equal(found["weight"], rows)
    assert torch.equal(found["SCB"], scales)
    assert (found["weight_format"].dtype, found["weight_format"].item()) == (torch.uint8, 0)


@pytest.mark.parametrize(
    ("quantizer", "bad"),
    [
        (WeightQuantizer("nf4"), float("nan")),
        (WeightQuantizer("nf4", True), float("inf")),
        (WeightQuantizer("int8"), float("nan")),
        (WeightQuantizer("int8"), 1e5),  # finite, but not in the float16 that bitsandbytes converts to
    ],
)
def test_a_value_that_cannot_be_scaled_is_refused(quantizer, bad) -> None:
    matrix = torch.ones(4, 64)
    matrix[2, 3] = bad
    read, _ = reading(matrix)
    with pytest.raises(ValueError, match="not finite"):
        quantizer.quantize(read, (4, 64), matrix.dtype)


@pytest.mark.parametrize("shape", [(96, 64), (7, 9), (2048, 512)])
@pytest.mark.parametrize("quantizer", [WeightQuantizer("int8"), WeightQuantizer("nf4"), WeightQuantizer("nf4", True)])
def test_the_announced_bytes_are_enough_and_not_many_too_many(quantizer, shape) -> None:
    read, _ = reading(random_matrix(shape, torch.bfloat16))
    tensors = quantizer.quantize(read, shape, torch.bfloat16).values()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert num_bytes <= quantizer.max_bytes(shape) <= num_bytes + 256
