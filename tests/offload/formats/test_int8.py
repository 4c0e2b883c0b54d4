import bitsandbytes.functional as bnb
import pytest
import torch
import torch.nn.functional as F

from offload.formats import int8
from offload.formats.int8 import (
    Int8RowsFormat,
    Int8RowsWeight,
    PackedInt8Weight,
    measure_bfloat16_max_rows,
    measure_is_packed_faster,
)
from offload.formats.weight_format import UpcastScratch

CPU = torch.device("cpu")


@pytest.fixture
def scratch() -> UpcastScratch:
    return UpcastScratch(torch.float32, CPU)


def random_matrix(num_outputs: int, num_inputs: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_outputs, num_inputs, generator=generator).to(dtype)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(40, 24), (3, 129), (700, 3000)])
def test_quantizing_equals_bitsandbytes_own_bit_for_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """The last shape is quantized in several chunks."""
    matrix = random_matrix(*shape, dtype)
    rows, absmax, _ = bnb.int8_vectorwise_quant(matrix)
    weight = Int8RowsWeight.quantize(matrix)
    assert torch.equal(weight.rows, rows)
    assert torch.equal(weight.absmax, absmax)


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 16, 70])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_an_exact_product_equals_that_of_bitsandbytes_dequantized_matrix(num_tokens: int, compute: torch.dtype) -> None:
    """No activation is rounded: a target's logits must not depend on the width of its pass."""
    weight = Int8RowsWeight.quantize(random_matrix(300, 200))
    matrix = bnb.int8_vectorwise_dequant(weight.rows, weight.absmax)
    inputs, bias = torch.randn(2, num_tokens, 200).to(compute), torch.randn(300).to(compute)
    product = weight.linear(inputs, bias, UpcastScratch(compute, CPU))
    assert product.dtype == compute
    expected = F.linear(inputs.float(), matrix, bias.float())
    assert relative_error(product, expected) < (1e-6 if compute == torch.float32 else 4e-3)


def test_a_rows_product_is_the_same_alone_and_among_others(scratch: UpcastScratch) -> None:
    weight = Int8RowsWeight.quantize(random_matrix(300, 200))
    inputs = torch.randn(16, 200)
    together = weight.linear(inputs, None, scratch)
    for row in range(16):
        torch.testing.assert_close(weight.linear(inputs[row], None, scratch), together[row], rtol=1e-5, atol=1e-4)


def test_a_row_of_zeros_stays_zero(scratch: UpcastScratch) -> None:
    """An absmax of zero must not divide: padding rows of real checkpoints are zero."""
    matrix = random_matrix(32, 16)
    matrix[5] = 0
    for is_fast in (False, True):
        product = Int8RowsWeight.quantize(matrix, is_fast=is_fast).linear(torch.randn(2, 16), None, scratch)
        assert product.isfinite().all()
        assert (product[:, 5] == 0).all() and (product[:, 4] != 0).all()


def test_quantizing_leaves_the_matrix_as_it_was() -> None:
    matrix = random_matrix(8, 16)
    before = matrix.clone()
    Int8RowsWeight.quantize(matrix)
    assert torch.equal(matrix, before)


def test_a_bound_weight_views_the_slab() -> None:
    rows, absmax = torch.ones(4, 6, dtype=torch.int8), torch.ones(4)
    layout = Int8RowsFormat((4, 6))
    weight = layout.bind({"": rows, ".SCB": absmax}, is_fast=True)
    assert layout.part_suffixes == ("", ".SCB")
    assert weight.rows.data_ptr() == rows.data_ptr() and weight.absmax.data_ptr() == absmax.data_ptr()
    assert weight.is_fast
    assert weight.to(CPU).rows.data_ptr() == rows.data_ptr()


@pytest.mark.parametrize("num_tokens", [1, 8, 64, 200])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_fast_product_is_within_the_rounding_of_bfloat16(num_tokens: int, compute: torch.dtype) -> None:
    matrix = random_matrix(64, 256)
    weight = Int8RowsWeight.quantize(matrix, is_fast=True)
    inputs, bias = torch.randn(1, num_tokens, 256).to(compute), torch.randn(64).to(compute)
    product = weight.linear(inputs, bias, UpcastScratch(compute, CPU))
    assert product.dtype == compute and product.shape == (1, num_tokens, 64)
    assert relative_error(product, F.linear(inputs.float(), matrix, bias.float())) < 0.02


def test_the_crossover_is_measured_and_bounded() -> None:
    assert measure_bfloat16_max_rows(CPU, torch.float32) in {0, 1, 4, 8, 16, 64}
    assert measure_bfloat16_max_rows(torch.device("meta"), torch.float32) == 0


def random_weight(num_outputs: int = 96, num_inputs: int = 136) -> Int8RowsWeight:
    matrix = torch.randn(num_outputs, num_inputs, generator=torch.Generator().manual_seed(3))
    matrix[5] = 0
    return Int8RowsWeight.quantize(matrix)


def row_errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)


@pytest.mark.parametrize("num_tokens", [1, 2, 8, 17, 64])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_product_is_finer_than_bfloat16_activations(num_tokens: int, compute: torch.dtype) -> None:
    weight = random_weight()
    inputs, bias = torch.randn(2, num_tokens, 136).to(compute), torch.randn(96).to(compute)
    product = PackedInt8Weight.pack(weight).linear(inputs, bias, UpcastScratch(compute, CPU))
    assert product.dtype == compute and product.shape == (2, num_tokens, 96)
    expected = weight.linear(inputs.float(), bias.float(), UpcastScratch(torch.float32, CPU))
    assert row_errors(product, expected).max() < (5e-4 if compute == torch.float32 else 4e-3)


def test_an_outlier_touches_its_own_row_only_and_that_one_little(scratch: UpcastScratch) -> None:
    """One scale for the whole tensor, as torch's dynamic kernels choose it, loses half of the other rows."""
    weight = random_weight()
    inputs = torch.randn(8, 136)
    packed = PackedInt8Weight.pack(weight)
    without = packed.linear(inputs, None, scratch)
    inputs[3, 7] = 300.0
    product = packed.linear(inputs, None, scratch)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(product[others], without[others])
    assert row_errors(product, weight.linear(inputs, None, scratch)).max() < 5e-3


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_largest_digits_do_not_saturate(sign: float, scratch: UpcastScratch) -> None:
    """Without VNNI the kernels add two products in 16 bits: 8-bit activations would come out far too small."""
    weight = Int8RowsWeight(torch.full((32, 128), 127, dtype=torch.int8), torch.full((32,), 127.0))
    inputs = torch.full((4, 128), sign)
    product = PackedInt8Weight.pack(weight).linear(inputs, None, scratch)
    torch.testing.assert_close(product, torch.full((4, 32), sign * 128 * 127.0), rtol=1e-4, atol=0)


def test_rows_and_inputs_of_zeros_give_zeros(scratch: UpcastScratch) -> None:
    packed = PackedInt8Weight.pack(random_weight())
    assert (packed.linear(torch.randn(3, 136), None, scratch)[:, 5] == 0).all()
    assert (packed.linear(torch.zeros(3, 136), None, scratch) == 0).all()


def test_a_packed_matrix_does_not_need_the_rows_it_came_from(scratch: UpcastScratch) -> None:
    weight = random_weight()
    packed = PackedInt8Weight.pack(weight)
    inputs = torch.randn(2, 136)
    before = packed.linear(inputs, None, scratch)
    weight.rows.fill_(1)
    weight.absmax.fill_(1)
    assert torch.equal(packed.to(CPU, copy=True).linear(inputs, None, scratch), before)


def test_kernels_that_are_missing_or_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: Int8RowsWeight) -> PackedInt8Weight:
        raise RuntimeError("Didn't find engine for operation")

    def saturating(self: PackedInt8Weight, inputs: torch.Tensor, *args: object) -> torch.Tensor:
        return torch.zeros(*inputs.shape[:-1], self.shape[0])

    measure = measure_is_packed_faster.__wrapped__
    assert measure(torch.float32) in {True, False}
    with monkeypatch.context() as patch:
        patch.setattr(PackedInt8Weight, "linear", saturating)
        assert measure(torch.float32) is False
    monkeypatch.setattr(PackedInt8Weight, "pack", missing)
    assert measure(torch.float32) is False


@pytest.mark.parametrize("num_inputs", [4, 8, 24, 32, 136, 576])
def test_torchs_kernel_gets_whole_vectors_only(
    num_inputs: int, scratch: UpcastScratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AVX-512 it reads and writes past rows that are no multiple of 16, which ends the process sooner or later."""
    asked, kernel = [], torch._weight_int8pack_mm

    def ask(inputs: torch.Tensor, rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        asked.append(rows.shape[1])
        return kernel(inputs, rows, scales)

    monkeypatch.setattr(torch, "_weight_int8pack_mm", ask)
    monkeypatch.setattr(int8, "measure_bfloat16_max_rows", lambda device, dtype: 64)
    matrix, inputs = random_matrix(16, num_inputs), torch.randn(2, num_inputs)
    product = Int8RowsWeight.quantize(matrix, is_fast=True).linear(inputs, None, scratch)
    assert asked == ([num_inputs] if num_inputs % 32 == 0 else [])
    assert relative_error(product, inputs @ matrix.T) < 0.03
