import ctypes
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from offload.formats import split_product
from offload.formats.int8 import Int8RowsWeight
from offload.formats.packed import pack_matrix
from offload.formats.split_product import has_split_products, is_exact, product_rows, split_terms
from offload.formats.stored_sizes import CHUNK_ELEMENTS
from offload.formats.weight_format import DenseWeight, UpcastScratch

CPU = torch.device("cpu")
needs_split_products = pytest.mark.skipif(
    not has_split_products(), reason="no product of bfloat16 with float32 sums: it needs MKL and bfloat16 instructions"
)


def split() -> UpcastScratch:
    return UpcastScratch(torch.float32, CPU, max_split_rows=1 << 30)


def widened() -> UpcastScratch:
    return UpcastScratch(torch.float32, CPU, max_split_rows=0)


def random_rows(num_rows: int, num_columns: int, *, exponents: float = 0.0) -> torch.Tensor:
    """Return normal numbers, each times a power of two of its own of up to so many doublings or halvings."""
    generator = torch.Generator().manual_seed(num_rows)
    powers = (2 * torch.rand(num_rows, num_columns, generator=generator) - 1).mul_(exponents).round_()
    return torch.randn(num_rows, num_columns, generator=generator).mul_(powers.exp2_())


@pytest.fixture
def forgotten() -> Iterator[None]:
    split_product._find_multiply.cache_clear()
    yield
    split_product._find_multiply.cache_clear()


def test_three_terms_are_exactly_the_number() -> None:
    for rows in (random_rows(300, 700), random_rows(3, 5000, exponents=90.0), torch.zeros(2, 8), torch.empty(0, 8)):
        terms = split_terms(rows)
        assert terms.dtype == torch.bfloat16
        assert torch.equal(terms.double().sum(0), rows.double())
        assert torch.equal(terms[0].double() + terms[1].double() + terms[2].double(), rows.double())


def test_the_largest_numbers_do_not_overflow_and_infinities_stay_alone() -> None:
    largest, infinity = torch.finfo(torch.float32).max, float("inf")
    terms = split_terms(torch.tensor([[largest, -largest, infinity, -infinity, float("nan")]]))
    assert terms[:, 0, :2].double().sum(0).tolist() == [largest, -largest]
    assert terms[0, 0, 2:4].tolist() == [infinity, -infinity] and terms[0, 0, 4].isnan()
    assert not terms[1:, 0, 2:].any()


@needs_split_products
def test_products_are_as_near_as_those_of_float32() -> None:
    """Compared with what rounding can do at all: a share of the sum of magnitudes."""
    for num_outputs, num_inputs in ((40, 24), (257, 1536), (96, 8960)):
        matrix = random_rows(num_outputs, num_inputs, exponents=4.0).to(torch.bfloat16)
        for num_rows in (1, 3, 16, 65):
            inputs = random_rows(num_rows, num_inputs, exponents=20.0)
            inputs[:, 5] = 1e5  # an outlier in every row, as models have
            exact = inputs.double() @ matrix.double().t()
            magnitudes = inputs.double().abs() @ matrix.double().abs().t()
            errors = [
                ((DenseWeight(matrix).linear(inputs, None, scratch) - exact).abs() / magnitudes).max()
                for scratch in (split(), widened())
            ]
            assert errors[0] < max(2 * errors[1], 1e-7) and errors[0] < 1e-6


@needs_split_products
def test_two_terms_would_not_be_enough() -> None:
    """The third is what a float32 has beyond 16 bits: without it errors are ten times those of float32."""
    matrix, inputs = random_rows(64, 1536).to(torch.bfloat16), random_rows(4, 1536)
    exact = inputs.double() @ matrix.double().t()
    two = split_terms(inputs)[:2].double().sum(0) @ matrix.double().t()
    found = DenseWeight(matrix).linear(inputs, None, split())
    assert (two - exact).abs().max() > 4 * (found - exact).abs().max()


@needs_split_products
def test_infinities_nan_and_zeros_give_what_they_give_widened() -> None:
    inputs = random_rows(6, 64)
    inputs[0, 3], inputs[1, 4], inputs[2, 5], inputs[3] = float("inf"), float("-inf"), float("nan"), 0.0
    inputs[4, 6] = torch.finfo(torch.float32).max
    inputs[5] *= 1e-42  # denormal
    matrix = random_rows(33, 64).to(torch.bfloat16)
    found, expected = (DenseWeight(matrix).linear(inputs, None, scratch) for scratch in (split(), widened()))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-35, equal_nan=True)


@needs_split_products
def test_the_bits_depend_neither_on_threads_nor_on_how_many_rows_are_multiplied_at_a_time() -> None:
    """So a packed matrix, which is unpacked in chunks, has those of a dense one."""
    num_threads = torch.get_num_threads()
    try:
        for num_outputs, num_inputs in ((1056, 1024), (70, 4480), (12, 64)):
            matrix = random_rows(num_outputs, num_inputs).to(torch.bfloat16)
            for num_rows in (1, 2, 5, 16, 64):
                inputs, products = random_rows(num_rows, num_inputs), []
                for used in (1, 2, 3, 8):
                    torch.set_num_threads(used)
                    products.append(DenseWeight(matrix).linear(inputs, None, split()))
                products.append(pack_matrix(matrix).linear(inputs, None, split()))
                assert all(torch.equal(product, products[0]) for product in products)
    finally:
        torch.set_num_threads(num_threads)


@needs_split_products
def test_a_row_has_the_same_product_alone_and_among_others() -> None:
    matrix, inputs = random_rows(96, 1536).to(torch.bfloat16), random_rows(40, 1536)
    among = DenseWeight(matrix).linear(inputs, None, split())
    alone = torch.cat([DenseWeight(matrix).linear(row[None], None, split()) for row in inputs])
    torch.testing.assert_close(alone, among, rtol=1e-6, atol=3e-5)


@needs_split_products
def test_rows_of_int8_are_split_too() -> None:
    weight, inputs, bias = Int8RowsWeight.quantize(random_rows(70, 192)), random_rows(5, 192), torch.randn(70)
    found, expected = (weight.linear(inputs, bias, scratch) for scratch in (split(), widened()))
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_split_products
def test_products_take_no_memory_beyond_the_scratch_and_the_terms() -> None:
    """Many outputs at once would need three times their products: 17 MB for 8960 outputs and 160 rows."""
    matrix, inputs, scratch = random_rows(8960, 64).to(torch.bfloat16), random_rows(160, 64), split()
    DenseWeight(matrix).linear(inputs, None, scratch)
    assert scratch.view(0, 0).untyped_storage().nbytes() == 4 * CHUNK_ELEMENTS
    assert product_rows(160) * 3 * 160 <= CHUNK_ELEMENTS and product_rows(1 << 20) == split_product.ROW_MULTIPLE


def test_a_product_that_rounds_or_depends_on_threads_is_not_taken() -> None:
    def rounded(matrix: torch.Tensor, rows: torch.Tensor, products: torch.Tensor) -> None:
        products.copy_(matrix @ rows.t())

    def exact(matrix: torch.Tensor, rows: torch.Tensor, products: torch.Tensor) -> None:
        products.copy_(matrix.double() @ rows.double().t())

    def unsteady(matrix: torch.Tensor, rows: torch.Tensor, products: torch.Tensor) -> None:
        exact(matrix, rows, products)
        products[0, 0] += 1e-5 * torch.get_num_threads()

    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert [is_exact(multiply) for multiply in (rounded, exact, unsteady)] == [False, True, False]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("forgotten")
def test_torch_without_the_product_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its libraries for Windows do not show MKL's functions, and those for macOS have none."""

    def missing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    for library in (missing, lambda name: SimpleNamespace()):
        split_product._find_multiply.cache_clear()
        monkeypatch.setattr(split_product.ctypes, "CDLL", library)
        assert not has_split_products()


@pytest.mark.usefixtures("forgotten")
def test_a_processor_without_bfloat16_instructions_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many with AVX512 have none; MKL's product is there too, and its bits depend on the shape."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    without = {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: without, raising=False)
    assert not has_split_products()


@pytest.mark.usefixtures("forgotten")
def test_a_processor_with_avx2_alone_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL's product is there too, slow, and its bits depend on the number of threads."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not has_split_products()
