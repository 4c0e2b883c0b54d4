import pytest
import torch

from offload.formats.int8_rows import Int8RowsWeight
from offload.formats.packed_int8 import PackedInt8Weight, measure_is_packed_faster
from offload.formats.weight_format import UpcastScratch

CPU = torch.device("cpu")


@pytest.fixture
def scratch() -> UpcastScratch:
    return UpcastScratch(torch.float32, CPU)


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
    assert torch.equal(packed.copy_to(CPU).linear(inputs, None, scratch), before)
    assert packed.num_bytes == 96 * (136 + 12)


def test_kernels_that_are_missing_or_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: Int8RowsWeight) -> PackedInt8Weight:
        raise RuntimeError("Didn't find engine for operation")

    def saturating(self: PackedInt8Weight, inputs: torch.Tensor, *args: object) -> torch.Tensor:
        return torch.zeros(*inputs.shape[:-1], self.shape[0])

    measure = measure_is_packed_faster.__wrapped__
    assert measure(torch.float32, side=64) in {True, False}
    with monkeypatch.context() as patch:
        patch.setattr(PackedInt8Weight, "linear", saturating)
        assert measure(torch.float32, side=64) is False
    monkeypatch.setattr(PackedInt8Weight, "pack", missing)
    assert measure(torch.float32, side=64) is False
