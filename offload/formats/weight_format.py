"""How a stored weight becomes a matrix product: what all formats share, and bf16/fp16/fp32 as they are.

Storage dtype is not compute dtype. A `StoredWeight` keeps the bytes of the file (or narrower ones made from them) and
multiplies activations in the compute dtype. Where storage is narrower, the matrix is widened into one reused scratch
buffer, a single cheap stream of memory, or multiplied as it is: exactly in terms of the activations (`split_product`),
or in a narrower dtype where it `is_fast`.
The quantized formats are modules of their own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from offload.device import has_float32_products, one_thread, wait_for_device
from offload.formats.split_product import has_split_products, multiply_terms, split_terms
from offload.formats.stored_sizes import (
    ACCELERATOR_CHUNK_ELEMENTS,
    CHUNK_ELEMENTS,
    CHUNK_ROW_MULTIPLE,
    COLUMN_MULTIPLE,
    chunk_rows,
    num_spare_columns,
)

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
}
"""safetensors names of the storage dtypes that can be streamed."""
_WITHIN_BFLOAT16 = (torch.bfloat16, torch.int8)
"""Storage dtypes all of whose numbers a bfloat16 holds exactly."""
_CPU = torch.device("cpu")
DRAFT_WIDTHS = (1, 4, 8, 16)
"""Rows of the products that a draft step makes; what is fastest over these is the fastest for drafts."""
MEASURED_SIDE = 1024
"""Rows and columns of the matrices that kernels are compared with."""
DRAFT_ROWS = 4 * MEASURED_SIDE
"""Rows of those that are compared for drafts, 4 M weights as a layer's are: in one of 1 M, what a product costs besides
weighs most (two AVX2 cores, int8 rows and packed ones: 0.10 and 0.17 ms for 1 M, 0.23 and 0.22 ms for 4 M)."""
LEAST_BLOCK_ROWS = 16
"""Of a batched product with one column: with 12 rows or fewer a processor with AVX-512 sums in another order."""
_CHOICE_REPEATS = 12
"""Runs behind a choice that is kept: the fastest of them is steady even while others use the processor."""
_SPLIT_WIDTHS = (1, 16, 64, 128, 256)
_TURNS = 4
"""Runs of each of the two products at a width."""


def chunk_elements(device: torch.device) -> int:
    """Return how many elements are widened on `device` at a time where nothing is known of the matrices."""
    return CHUNK_ELEMENTS if device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS


class UpcastScratch:
    """One buffer in the compute dtype, a chunk large, reused by every product of a model."""

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        *,
        num_elements: int | None = None,
        max_split_rows: int | None = None,
    ) -> None:
        """`num_elements`: of a chunk, unless a single row is longer (see `scratch_elements`).

        `max_split_rows`: most activations that are split (see `split_product`); by default what is measured here.
        """
        self.dtype = dtype
        self._device = device
        self._max_split_rows = max_split_rows
        self._num_elements = chunk_elements(device) if num_elements is None else num_elements
        self._buffer = torch.empty(0, dtype=dtype, device=device)
        self._narrow: UpcastScratch | None = None

    def view(self, num_rows: int, num_columns: int) -> torch.Tensor:
        """Return an uninitialised (num_rows, num_columns) matrix; valid until the next call."""
        num_elements = num_rows * num_columns
        if self._buffer.numel() < num_elements:
            is_first = self._buffer.numel() == 0
            assert is_first or self._device.type == "cpu", "a recorded pass would write where the scratch was before"
            self._buffer = torch.empty(max(num_elements, self._num_elements), dtype=self.dtype, device=self._device)
        return self._buffer[:num_elements].view(num_rows, num_columns)

    def narrow_view(self, num_rows: int, num_columns: int) -> torch.Tensor:
        """Return an uninitialised (num_rows, num_columns) matrix of bfloat16; valid as `view` is."""
        if self.dtype == torch.bfloat16:
            return self.view(num_rows, num_columns)
        if self._narrow is None:
            self._narrow = UpcastScratch(torch.bfloat16, self._device, num_elements=self._num_elements)
        return self._narrow.view(num_rows, num_columns)

    def splits(self, inputs: torch.Tensor) -> bool:
        """Return whether `inputs` (..., I) are split for their products, which then take rows of bfloat16."""
        if inputs.device.type != "cpu" or self._device.type != "cpu" or inputs.dtype != torch.float32:
            return False
        most = measure_split_max_rows() if self._max_split_rows is None else self._max_split_rows
        return 0 < num_rows(inputs) <= most

    def multiply_widened(self, inputs: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """Multiply `matrix` (O, I), which is widened in chunks, by `inputs` (..., I) as columns: (O, T).

        Rows of bfloat16 are multiplied where they lie if the inputs are split, and int8 rows are widened to bfloat16.
        """
        is_split = matrix.dtype in _WITHIN_BFLOAT16 and self.splits(inputs)
        if is_split and matrix.dtype == torch.bfloat16:
            return self.multiply(inputs, len(matrix), lambda start, stop: matrix[start:stop], row_multiple=len(matrix))
        view = self.narrow_view if is_split else self.view

        def widen(start: int, stop: int) -> torch.Tensor:
            return view(stop - start, matrix.shape[1]).copy_(matrix[start:stop])

        return self.multiply(inputs, matrix.shape[0], widen, row_multiple=CHUNK_ROW_MULTIPLE)

    def multiply(
        self,
        inputs: torch.Tensor,
        num_outputs: int,
        widen: Callable[[int, int], torch.Tensor],
        *,
        row_multiple: int = 1,
    ) -> torch.Tensor:
        """Multiply a matrix (O, I) by `inputs` (..., I) as columns: (O, T).

        `widen(start, stop)` returns rows of the matrix, (stop - start, I), in the compute dtype, or in bfloat16 if this
        `splits` the inputs, valid until its next call; every `start` is a multiple of `row_multiple`.
        """
        num_columns, is_host = inputs.shape[-1], self._device.type == "cpu"
        flat = inputs.reshape(-1, num_columns)
        num_inputs = len(flat)  # T
        if is_host and not self.splits(inputs):
            flat = F.pad(flat, (0, 0, 0, num_spare_columns(num_inputs)))
            flat = flat.contiguous() if num_inputs <= COLUMN_MULTIPLE else flat
        flat = flat.t()  # (I, T or more)
        terms: torch.Tensor | None = None
        if is_host:
            products = inputs.new_empty(num_outputs, flat.shape[1])
        else:  # (O, T) too, but as it lies in the result: there is nothing to transpose at the end
            products = inputs.new_empty(flat.shape[1], num_outputs).t()
        step = chunk_rows(
            (num_outputs, num_columns),
            most_elements=self._num_elements,
            row_multiple=row_multiple,
            is_host=is_host,
        )
        for start in range(0, num_outputs, step):
            stop = min(start + step, num_outputs)
            rows = widen(start, stop)
            if rows.dtype == inputs.dtype:
                multiply_widened_rows(rows, flat, products[start:stop])
                continue
            terms = split_terms(flat.t()) if terms is None else terms
            multiply_terms(rows, terms, products[start:stop], self.view)
        return products[:, :num_inputs] if is_host else products


def multiply_widened_rows(matrix: torch.Tensor, columns: torch.Tensor, products: torch.Tensor) -> None:
    """Multiply a just widened `matrix` (O, I) by `columns` (I, T) into `products` (O, T), where the cores hold it.

    A product with one column divides a matrix among threads otherwise than the copy did that widened it, and half of it
    then crosses from one core's cache to another's: 1536 x 576 took 307 us on two virtual cores that happened to share
    no cache, and 87 us in a batch of one block of rows per thread. A batch of two or more blocks gives the same bits
    whatever their number and that of the threads, if each has LEAST_BLOCK_ROWS.
    """
    if columns.shape[1] != 1 or matrix.device.type != "cpu" or matrix.dtype != torch.float32:
        torch.mm(matrix, columns, out=products)
        return
    num_rows, num_columns = matrix.shape
    most = min(max(2, torch.get_num_threads()), num_rows // LEAST_BLOCK_ROWS)
    num_blocks = next((blocks for blocks in range(most, 1, -1) if num_rows % blocks == 0), None)
    if num_blocks is None:  # twice the same, side by side
        products.copy_(torch.bmm(matrix.expand(2, -1, -1), columns.expand(2, -1, -1))[0])
        return
    blocks = (num_blocks, num_rows // num_blocks)
    torch.bmm(matrix.view(*blocks, num_columns), columns.expand(num_blocks, -1, -1), out=products.view(*blocks, 1))


def multiply_to_float32(
    stored: "StoredWeight", inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch
) -> torch.Tensor:
    """Multiply as `stored.linear` does, but return the float32 that the sums are made in: (..., O), unrounded.

    Where the device has no such product, all is widened first, to `scratch` of float32.
    """
    if (
        isinstance(stored, DenseWeight)
        and stored.matrix.dtype == inputs.dtype
        and has_float32_products(inputs.device, inputs.dtype)
    ):
        flat = inputs.reshape(-1, inputs.shape[-1])
        product = torch.mm(flat, stored.matrix.t(), out_dtype=torch.float32)
        product = product.view(*inputs.shape[:-1], product.shape[1])
        return product if bias is None else product.add_(bias)
    wide_bias = None if bias is None else bias.to(torch.float32)
    return stored.linear(inputs.to(torch.float32), wide_bias, scratch)


def from_columns(products: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return products (O, T) in the shape of the `inputs` (..., I) that they belong to: (..., O)."""
    return products.t().reshape(*inputs.shape[:-1], products.shape[0])


class StoredWeight(Protocol):
    """A matrix of shape (O, I) in some storage format."""

    def to(self, device: torch.device, *, copy: bool = False) -> "StoredWeight":
        """Return the same weight on `device`, with `copy` in memory of its own even if it is there already."""

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        """Multiply `inputs` (..., I) by the transposed matrix, plus bias (O,): (..., O) in the dtype of `inputs`."""


class WeightFormat(Protocol):
    """How a matrix of one or several tensors is to be read: known on the host before any of it is on a device."""

    @property
    def name(self) -> str:
        """What people call it: "int8", "nf4", "packed", ..."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""

    @property
    def is_exact(self) -> bool:
        """Whether it holds the bits of the model as it was trained, so that nothing was rounded."""

    @property
    def part_suffixes(self) -> tuple[str, ...]:
        """What is appended to the matrix's name to name each of its tensors; "" is the one that has the name itself."""

    def bind(self, parts: Mapping[str, torch.Tensor], *, is_fast: bool = False) -> StoredWeight:
        """Return the weight whose tensors are `parts`, by suffix; they are viewed, not copied."""


@runtime_checkable
class WidenedFormat(WeightFormat, Protocol):
    """A format that is multiplied by widening rows."""

    @property
    def row_multiple(self) -> int:
        """How many rows are a whole number of its blocks; 1 where rows are."""

    def widen(self, parts: Mapping[str, torch.Tensor], start: int, stop: int, out: torch.Tensor) -> None:
        """Write rows start..stop, `start` a multiple of `row_multiple`, to `out`, (stop - start, I) of any float dtype.

        The values are rounded once, to the dtype of `out`.
        """


@runtime_checkable
class GatheredFormat(WidenedFormat, Protocol):
    """One whose rows can be widened one by one, as looking tokens up needs."""

    def gather(self, parts: Mapping[str, torch.Tensor], ids: torch.Tensor, out: torch.Tensor) -> None:
        """Write the rows of `ids` (T,), on the device of the parts, to `out`, (T, I) of any float dtype."""


@dataclass(frozen=True, slots=True)
class WidenedWeight:
    """A matrix of a format that widens rows chunk by chunk."""

    format: WidenedFormat
    parts: Mapping[str, torch.Tensor]
    """By suffix; usually views of a slab."""

    def to(self, device: torch.device, *, copy: bool = False) -> "WidenedWeight":
        return replace(self, parts={suffix: part.to(device, copy=copy) for suffix, part in self.parts.items()})

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        num_outputs, num_columns = self.format.shape

        def widen(start: int, stop: int) -> torch.Tensor:
            rows = scratch.view(stop - start, num_columns)
            self.format.widen(self.parts, start, stop, rows)
            return rows

        columns = scratch.multiply(inputs, num_outputs, widen, row_multiple=self.format.row_multiple)
        product = from_columns(columns, inputs)
        return product if bias is None else product.add_(bias)

    def widen_rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows start..stop, (stop - start, I) in float32, on the processor and in memory of their own."""
        device = next(iter(self.parts.values())).device
        rows = torch.empty((stop - start, self.format.shape[1]), device=device)
        self.format.widen(self.parts, start, stop, rows)
        return rows.cpu()

    def widen(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the whole matrix, (O, I), where the weight lies and in memory of its own."""
        device = next(iter(self.parts.values())).device
        matrix = torch.empty(self.format.shape, dtype=dtype, device=device)
        step = chunk_rows(
            self.format.shape,
            most_elements=chunk_elements(device),
            row_multiple=self.format.row_multiple,
            is_host=device.type == "cpu",
        )
        for start in range(0, len(matrix), step):
            rows = matrix[start : start + step]
            self.format.widen(self.parts, start, start + len(rows), rows)
        return matrix


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A matrix stored as bf16, fp16 or fp32."""

    matrix: torch.Tensor
    """(O, I) in the storage dtype; usually a view of a slab."""
    is_fast: bool = False
    """Whether it may use any kernel that was measured to be faster here, those that round activations included.

    Rounding makes a token's logits depend on the width of its pass, so that a target's matrices are widened to the
    compute dtype; a draft may be fast.
    """

    def to(self, device: torch.device, *, copy: bool = False) -> "DenseWeight":
        return replace(self, matrix=self.matrix.to(device, copy=copy))

    def linear(self, inputs: torch.Tensor, bias: torch.Tensor | None, scratch: UpcastScratch) -> torch.Tensor:
        if self.matrix.dtype == inputs.dtype:
            return F.linear(inputs, self.matrix, bias)
        if self.is_fast and num_rows(inputs) <= measure_direct_max_rows(inputs.device, inputs.dtype):
            product = F.linear(inputs.to(self.matrix.dtype), self.matrix).to(inputs.dtype)
        else:
            product = from_columns(scratch.multiply_widened(inputs, self.matrix), inputs)
        return product if bias is None else product.add_(bias)


def num_rows(inputs: torch.Tensor) -> int:
    """Return how many vectors `inputs` (..., I) holds."""
    return inputs.numel() // max(inputs.shape[-1], 1)


def fastest_seconds(action: Callable[[], object], *, repeats: int = 4, device: torch.device = _CPU) -> float:
    """Return the seconds of the fastest of `repeats` runs, each until the device has done its work.

    Which kernel wins depends on the processor by more than ten times, so nothing is decided by its name.
    """
    seconds = []
    for _ in range(repeats):
        wait_for_device(device)
        start = time.perf_counter()
        action()
        wait_for_device(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def draft_seconds(weight: StoredWeight, compute: torch.dtype, device: torch.device) -> float:
    """Return how long a draft's products with a weight (O, MEASURED_SIDE) take, one of each width."""
    scratch = UpcastScratch(compute, device)
    inputs = (torch.ones(width, MEASURED_SIDE, dtype=compute, device=device) for width in DRAFT_WIDTHS)
    products = (partial(weight.linear, each, None, scratch) for each in inputs)
    return sum(fastest_seconds(product, repeats=_CHOICE_REPEATS, device=device) for product in products)


def measure_max_rows(
    widths: Sequence[int], narrow: Callable[[torch.Tensor], object], weight: StoredWeight, compute: torch.dtype
) -> int:
    """Return the last of the ascending widths up to which `narrow` multiplies so many rows no slower than the weight.

    Both get ones (width, MEASURED_SIDE) in the compute dtype, on the CPU. 0 if the weight's own product always wins.
    """
    best, scratch = 0, UpcastScratch(compute, _CPU)
    for width in widths:
        inputs = torch.ones(width, MEASURED_SIDE, dtype=compute)
        if fastest_seconds(partial(narrow, inputs)) > fastest_seconds(partial(weight.linear, inputs, None, scratch)):
            break
        best = width
    return best


@cache
def measure_direct_max_rows(device: torch.device, compute: torch.dtype) -> int:
    """Return the most rows for which a product in bfloat16 beats widening to `compute` on this CPU (takes 0.1 s).

    Processors differ by more than ten times here: with AVX512-BF16 the narrow product wins at every width, without
    it the wide product wins from 8 to 32 rows on. 0 on other devices.
    """
    if device.type != "cpu" or compute == torch.bfloat16:
        return 0
    matrix = torch.ones(MEASURED_SIDE, MEASURED_SIDE, dtype=torch.bfloat16)
    best = measure_max_rows(
        (1, 4, 16, 64, 256),
        lambda inputs: F.linear(inputs.to(matrix.dtype), matrix).to(compute),
        DenseWeight(matrix),
        compute,
    )
    return 1 << 30 if best == 256 else best


@cache
def measure_split_max_rows() -> int:
    """Return the most float32 activations whose products are faster split than with rows widened (takes 0.1 s).

    Timed with one thread, and by turns: others who use the processor then slow no run, or both. Each run has a matrix
    of its own, since those of a pass come from memory, and the cache helps widening more. Two cores with AMX, 1536 x
    8960, 1 / 16 / 64 rows: widening 12.7 / 9.4 / 15.0 ms, this 2.2 / 3.9 / 5.8 ms. 0 where the processor or its library
    has no such product.
    """
    if not has_split_products():
        return 0
    best, turns = 0, range(_TURNS)
    weights = [DenseWeight(torch.ones(MEASURED_SIDE, MEASURED_SIDE, dtype=torch.bfloat16)) for _ in range(2 * _TURNS)]
    scratches = [UpcastScratch(torch.float32, _CPU, max_split_rows=most) for most in (1 << 30, 0)]
    with one_thread():
        for width in _SPLIT_WIDTHS:
            inputs = torch.ones(width, MEASURED_SIDE)
            seconds = [
                [
                    fastest_seconds(partial(weights[2 * turn + side].linear, inputs, None, scratch), repeats=1)
                    for side, scratch in enumerate(scratches)
                ]
                for turn in turns
            ]
            split_seconds, wide_seconds = map(min, zip(*seconds, strict=True))
            if split_seconds > wide_seconds:
                return best
            best = width
    return 1 << 30
