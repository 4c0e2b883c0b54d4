from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from offload.formats import weight_format
from offload.formats.stored_sizes import ACCELERATOR_CHUNK_ELEMENTS, CHUNK_ELEMENTS
from offload.formats.weight_format import (
    DRAFT_WIDTHS,
    DenseWeight,
    UpcastScratch,
    chunk_elements,
    fastest_seconds,
    from_columns,
    measure_direct_max_rows,
    measure_split_max_rows,
    multiply_to_float32,
    multiply_widened_rows,
)

CPU, META = torch.device("cpu"), torch.device("meta")


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
    assert scratch.view(0, 0).untyped_storage().nbytes() == 4 * CHUNK_ELEMENTS


def test_only_a_fast_weight_rounds_and_only_few_rows(scratch: UpcastScratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_format, "measure_direct_max_rows", lambda device, compute: 2)
    matrix = random_matrix(40, 24, torch.bfloat16)
    weight = DenseWeight(matrix, is_fast=True)
    few, many = torch.randn(2, 24), torch.randn(3, 24)
    rounded = F.linear(few.bfloat16(), matrix).float()
    assert torch.equal(weight.linear(few, None, scratch), rounded)
    torch.testing.assert_close(weight.linear(many, None, scratch), F.linear(many, matrix.float()), rtol=1e-5, atol=1e-5)
    assert not torch.equal(DenseWeight(matrix).linear(few, None, scratch), rounded)


def test_the_crossover_is_measured_and_bounded() -> None:
    assert measure_direct_max_rows(torch.device("meta"), torch.float32) == 0
    assert measure_direct_max_rows(CPU, torch.float32) in {0, 1, 4, 16, 64, 1 << 30}


def test_inputs_are_split_by_their_number_on_a_processor_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_format, "measure_split_max_rows", lambda: 4)
    scratch, meta = UpcastScratch(torch.float32, CPU), UpcastScratch(torch.float32, META)
    assert [scratch.splits(torch.empty(1, num_rows, 8)) for num_rows in (0, 1, 4, 5)] == [False, True, True, False]
    assert not UpcastScratch(torch.float32, CPU, max_split_rows=0).splits(torch.empty(1, 8))
    assert not UpcastScratch(torch.bfloat16, CPU).splits(torch.empty(1, 8, dtype=torch.bfloat16))
    assert not meta.splits(torch.empty(1, 8, device=META))


def test_the_widest_products_that_are_faster_split_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """By turns and with one thread: two threads of which others delay one say little."""
    measure, lost_from = measure_split_max_rows.__wrapped__, [256]
    monkeypatch.setattr(weight_format, "has_split_products", lambda: True)
    ran = []

    def seconds(product: Any, *, repeats: int) -> float:
        assert torch.get_num_threads() == 1
        inputs, _, scratch = product.args
        is_split = scratch.splits(inputs)
        ran.append((len(inputs), is_split))
        is_disturbed = is_split and ran.count(ran[-1]) == 2
        return 9.0 if is_disturbed else 1.0 + (is_split == (len(inputs) >= lost_from[0]))

    monkeypatch.setattr(weight_format, "fastest_seconds", seconds)
    num_threads = torch.get_num_threads()
    assert measure() == 128 and torch.get_num_threads() == num_threads
    assert ran[:4] == [(1, True), (1, False), (1, True), (1, False)]
    lost_from[0] = 1
    assert measure() == 0
    lost_from[0] = 1000
    assert measure() > 4096
    monkeypatch.setattr(weight_format, "has_split_products", lambda: False)
    assert measure() == 0


def test_chunks_start_at_multiples_of_what_the_format_asks_for(scratch: UpcastScratch) -> None:
    """A row multiple that divides no chunk: blocks of a 4-bit matrix may span several rows."""
    num_inputs = 1 << 16
    matrix = random_matrix(37, num_inputs, torch.float32)
    starts = []

    def widen(start: int, stop: int) -> torch.Tensor:
        starts.append(start)
        return matrix[start:stop]

    inputs = torch.randn(1, 2, num_inputs)
    product = from_columns(scratch.multiply(inputs, 37, widen, row_multiple=5), inputs)
    assert starts == [0, 15, 30]
    torch.testing.assert_close(product.double(), F.linear(inputs.double(), matrix.double()), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("num_outputs", [1, 2, 12, 31, 96, 101, 192, 1530, 1536])
def test_one_column_gives_the_same_bits_with_any_number_of_threads(
    num_outputs: int, scratch: UpcastScratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are divided among threads by their number, which may change while a text grows."""
    matrix, inputs = random_matrix(num_outputs, 576, torch.bfloat16), torch.randn(1, 576)
    products = []
    for num_threads in (1, 2, 3, 4, 6, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda num_threads=num_threads: num_threads)
        products.append(DenseWeight(matrix).linear(inputs, None, scratch))
    torch.testing.assert_close(products[0], F.linear(inputs, matrix.float()), rtol=1e-5, atol=1e-4)
    assert all(torch.equal(product, products[0]) for product in products)


def test_one_column_is_multiplied_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread multiplies the rows that it has widened: else half of them crosses between the cores' caches."""
    batches = []
    bmm = torch.bmm

    def recorded(matrices: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        batches.append(tuple(matrices.shape))
        return bmm(matrices, *args, **kwargs)

    monkeypatch.setattr(torch, "bmm", recorded)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for num_rows in (96, 90, 7):
        multiply_widened_rows(torch.ones(num_rows, 8), torch.ones(8, 1), torch.empty(num_rows, 1))
    multiply_widened_rows(torch.ones(96, 8), torch.ones(8, 2), torch.empty(96, 2))
    assert batches == [(4, 24, 8), (3, 30, 8), (2, 7, 8)]


def test_the_scratch_of_an_accelerator_has_larger_chunks() -> None:
    assert chunk_elements(CPU) == CHUNK_ELEMENTS
    assert chunk_elements(META) == ACCELERATOR_CHUNK_ELEMENTS


def test_an_accelerators_scratch_is_allocated_once_and_never_moves() -> None:
    """A recorded pass would go on writing to where it was."""
    scratch = UpcastScratch(torch.bfloat16, META, num_elements=600)
    assert scratch.view(20, 10).untyped_storage().nbytes() == 1200
    assert scratch.view(60, 10).shape == (60, 10)
    with pytest.raises(AssertionError, match="recorded"):
        scratch.view(61, 10)
    on_host = UpcastScratch(torch.float32, CPU, num_elements=600)
    assert on_host.view(20, 10).shape == (20, 10) and on_host.view(61, 10).shape == (61, 10)


def test_an_accelerators_product_lies_as_its_result_does_and_is_not_transposed() -> None:
    matrix, inputs = torch.empty(300, 64, dtype=torch.int8, device=META), torch.empty(1, 9, 64, device=META)
    scratch = UpcastScratch(torch.float32, META, num_elements=100 * 64)
    columns = scratch.multiply_widened(inputs, matrix)
    assert columns.shape == (300, 9)
    result = from_columns(columns, inputs)
    assert result.shape == (1, 9, 300) and result.is_contiguous()
    assert result.untyped_storage()._cdata == columns.untyped_storage()._cdata


def test_products_to_float32_are_the_devices_own_where_it_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device here has them: a product in float64 stands in, whose rounding to float32 shows which one ran."""
    matrix, bias = random_matrix(40, 24, torch.bfloat16), torch.randn(40, dtype=torch.bfloat16)
    inputs, float32 = torch.randn(1, 7, 24).bfloat16(), UpcastScratch(torch.float32, CPU)
    exact = F.linear(inputs.double(), matrix.double(), bias.double()).float()
    rounded = DenseWeight(matrix).linear(inputs, bias, UpcastScratch(torch.bfloat16, CPU))
    widened = multiply_to_float32(DenseWeight(matrix), inputs, bias, float32)
    torch.testing.assert_close(widened, exact, rtol=1e-6, atol=1e-6)
    assert not torch.equal(rounded.float(), widened)
    asked = []

    def mm(left: torch.Tensor, right: torch.Tensor, *, out_dtype: torch.dtype) -> torch.Tensor:
        asked.append((left.dtype, right.dtype, out_dtype))
        return (left.double() @ right.double()).to(out_dtype)

    monkeypatch.setattr(weight_format, "has_float32_products", lambda device, dtype: True)
    monkeypatch.setattr(torch, "mm", mm)
    found = multiply_to_float32(DenseWeight(matrix), inputs, bias, float32)
    assert asked == [(torch.bfloat16, torch.bfloat16, torch.float32)] and found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def test_a_head_in_another_type_than_computed_is_widened_to_float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_format, "has_float32_products", lambda device, dtype: True)
    matrix, inputs = random_matrix(40, 24, torch.bfloat16), torch.randn(7, 24).half()
    found = multiply_to_float32(DenseWeight(matrix), inputs, None, UpcastScratch(torch.float32, CPU))
    torch.testing.assert_close(found, F.linear(inputs.float(), matrix.float()), rtol=1e-6, atol=1e-6)


def test_the_fastest_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0, 10.0, 10.5, 20.0, 23.0])
    monkeypatch.setattr(weight_format, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert fastest_seconds(lambda: None, repeats=3) == 0.5


def test_every_repeat_runs_the_action_once() -> None:
    calls = []
    fastest_seconds(lambda: calls.append(None), repeats=5, device=torch.device("cpu"))
    assert len(calls) == 5


def test_a_drafts_products_are_timed_once_for_each_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_format, "fastest_seconds", lambda product, **options: float(product().shape[0]))
    weight = DenseWeight(torch.ones(3, weight_format.MEASURED_SIDE))
    assert weight_format.draft_seconds(weight, torch.float32, CPU) == sum(DRAFT_WIDTHS)


def test_draft_widths_are_those_of_narrow_levels() -> None:
    assert min(DRAFT_WIDTHS) == 1 and max(DRAFT_WIDTHS) == 16


@pytest.mark.parametrize(("num_rows", "num_multiplied"), [(1, 1), (2, 4), (4, 4), (5, 8), (8, 8), (31, 32), (64, 64)])
def test_a_processors_products_have_whole_vectors_of_columns(
    num_rows: int, num_multiplied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """31 columns took twice as long as 32."""
    asked, multiply = [], weight_format.multiply_widened_rows

    def ask(matrix: torch.Tensor, columns: torch.Tensor, products: torch.Tensor) -> None:
        asked.append(columns.shape[1])
        multiply(matrix, columns, products)

    monkeypatch.setattr(weight_format, "multiply_widened_rows", ask)
    matrix, inputs = torch.randn(40, 24).to(torch.bfloat16), torch.randn(1, num_rows, 24)
    scratch = UpcastScratch(torch.float32, CPU, max_split_rows=0)
    product = DenseWeight(matrix).linear(inputs, torch.ones(40), scratch)
    assert set(asked) == {num_multiplied}
    torch.testing.assert_close(product, inputs @ matrix.to(torch.float32).t() + 1)


@pytest.mark.parametrize("num_rows", [4, 8])
def test_how_few_inputs_lie_in_memory_changes_no_bit(num_rows: int) -> None:
    """Interleaved ones, as a product leaves them, took twice as long and rounded twice as much."""
    matrix, inputs = torch.randn(64, 1536).to(torch.bfloat16), torch.randn(num_rows, 1536)
    interleaved = inputs.t().contiguous().t()
    weight, scratch = DenseWeight(matrix), UpcastScratch(torch.float32, CPU, max_split_rows=0)
    assert torch.equal(weight.linear(interleaved, None, scratch), weight.linear(inputs, None, scratch))
