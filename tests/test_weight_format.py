import pytest
import torch
import torch.nn.functional as F

from offload.weight_format import (
    CHUNK_ELEMENTS,
    DenseWeight,
    Int8RowsWeight,
    MatmulPolicy,
    UpcastScratch,
    measure_direct_max_rows,
)

CPU = torch.device("cpu")


@pytest.fixture
def scratch() -> UpcastScratch:
    return UpcastScratch(torch.float32, CPU)


def random_matrix(num_outputs: int, num_inputs: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_outputs, num_inputs, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("num_rows", [1, 7])
def test_a_dense_product_equals_the_widened_matrix_product(
    dtype: torch.dtype, num_rows: int, scratch: UpcastScratch
) -> None:
    matrix = random_matrix(40, 24, dtype)
    inputs, bias = torch.randn(2, num_rows, 24), torch.randn(40)
    expected = F.linear(inputs, matrix.float(), bias)
    torch.testing.assert_close(DenseWeight(matrix).linear(inputs, bias, scratch), expected, rtol=1e-5, atol=1e-5)


def test_a_matrix_larger_than_the_scratch_is_widened_in_chunks(scratch: UpcastScratch) -> None:
    """The scratch must not grow with the matrix: a 70B layer's is 940 MB in float32."""
    num_inputs = 1 << 14
    matrix = random_matrix(3 * CHUNK_ELEMENTS // num_inputs + 5, num_inputs, torch.bfloat16)
    inputs = torch.randn(2, num_inputs)
    product = DenseWeight(matrix).linear(inputs, None, scratch)
    torch.testing.assert_close(product, F.linear(inputs, matrix.float()), rtol=1e-4, atol=1e-3)
    assert scratch.num_bytes == 4 * CHUNK_ELEMENTS


def test_the_policy_decides_from_how_many_rows_on_a_product_is_exact(scratch: UpcastScratch) -> None:
    matrix = random_matrix(40, 24, torch.bfloat16)
    weight = DenseWeight(matrix, MatmulPolicy(direct_max_rows=2))
    few, many = torch.randn(2, 24), torch.randn(3, 24)
    rounded = F.linear(few.bfloat16(), matrix).float()
    assert torch.equal(weight.linear(few, None, scratch), rounded)
    torch.testing.assert_close(weight.linear(many, None, scratch), F.linear(many, matrix.float()), rtol=1e-5, atol=1e-5)


def test_int8_rows_are_within_half_a_step_of_the_matrix() -> None:
    matrix = random_matrix(40, 24, torch.bfloat16)
    weight = Int8RowsWeight.quantize(matrix)
    restored = weight.rows.float() * weight.scales[:, None]
    assert ((restored - matrix.float()).abs() <= 0.5 * weight.scales[:, None] * 1.0001).all()
    assert weight.num_bytes == 40 * 24 + 4 * 40


def test_an_int8_product_is_close_to_the_dense_one(scratch: UpcastScratch) -> None:
    matrix, bias = random_matrix(64, 256, torch.float32), torch.randn(64)
    inputs = torch.randn(1, 5, 256)
    product = Int8RowsWeight.quantize(matrix).linear(inputs, bias, scratch)
    expected = F.linear(inputs, matrix, bias)
    assert product.shape == expected.shape
    assert (product - expected).norm() / expected.norm() < 0.02


def test_a_row_of_zeros_stays_zero(scratch: UpcastScratch) -> None:
    """An absmax of zero must not divide: padding rows of real checkpoints are zero."""
    product = Int8RowsWeight.quantize(torch.zeros(32, 16)).linear(torch.zeros(1, 16), None, scratch)
    assert torch.equal(product, torch.zeros(1, 32))


def test_the_crossover_is_measured_and_bounded() -> None:
    assert measure_direct_max_rows(torch.float32, torch.float32) == 0
    measured = measure_direct_max_rows(torch.bfloat16, torch.float32, side=64)
    assert measured in {0, 1, 4, 16, 64, 1 << 30}


def test_quantizing_leaves_the_matrix_as_it_was() -> None:
    matrix = random_matrix(8, 16, torch.float32)
    before = matrix.clone()
    Int8RowsWeight.quantize(matrix)
    assert torch.equal(matrix, before)


def test_an_int8_product_of_bfloat16_inputs_does_not_wrap(scratch: UpcastScratch) -> None:
    """A scale rounded down to bfloat16 made the largest activation 128, which wrapped to -128: drafts were noise."""
    matrix = random_matrix(64, 256, torch.float32)
    inputs = torch.randn(32, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    product = Int8RowsWeight.quantize(matrix).linear(inputs, None, scratch)
    expected = F.linear(inputs.float(), matrix)
    assert product.dtype == torch.bfloat16
    assert (product.float() - expected).norm() / expected.norm() < 0.02
