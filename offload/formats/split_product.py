"""Multiplies bfloat16 matrices by float32 activations in bfloat16, to the precision of float32.

The 24 bits of a float32 are three bfloat16 of 8 bits each, exactly, and a product of two bfloat16 is exact in float32.
So a matrix times three terms, with the sums in float32, is what the same matrix widened to float32 would give but for
the order of the sums; what is denormal counts as zero (bfloat16x3: Henry, Tang, Heinecke, arXiv 1904.06376).

torch rounds such products to bfloat16 on a processor. MKL's `cblas_gemm_bf16bf16f32`, which torch's libraries for Linux
hold and show, returns the sums. It uses AMX and AVX512-BF16; elsewhere it is slow, and its bits depend on the threads
and on the shape, so that it is not used there.
"""

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch

from offload.device import one_thread
from offload.formats.stored_sizes import CHUNK_ELEMENTS

NUM_TERMS = 3
ROW_MULTIPLE = 32
"""Rows that are multiplied at a time are a multiple of this, the last perhaps fewer."""
_TOP_HALF = -65536
"""Of the bits of a float32: sign, exponent and the first 7 bits of the mantissa, a bfloat16."""
_SPLIT_ELEMENTS = 1 << 17
"""Elements that are split at a time: with their remainder they stay in a core's cache."""
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112
_TOLERANCE = 1e-6
"""Largest error of a product against float64, as a share of its largest result; float32's own is 2e-7 to 6e-7."""

_Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def split_terms(rows: torch.Tensor) -> torch.Tensor:
    """Return three bfloat16 terms (3, T, I) whose sum is `rows` (T, I), float32, the largest first.

    Terms are cut off, not rounded, so that none overflows; infinities and NaN are in the first alone.
    """
    terms = torch.empty(NUM_TERMS, *rows.shape, dtype=torch.bfloat16)
    step = max(1, _SPLIT_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        first, second, third = terms[:, start : start + step]
        left = rows[start : start + step]
        first.copy_(_top_half(left))
        left = (left - first).nan_to_num_(0.0, 0.0, 0.0)
        second.copy_(_top_half(left))
        third.copy_(left.sub_(second))
    return terms


def _top_half(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32).bitwise_and(_TOP_HALF).view(torch.float32)


def multiply_terms(
    matrix: torch.Tensor, terms: torch.Tensor, products: torch.Tensor, view: Callable[[int, int], torch.Tensor]
) -> None:
    """Write the product of `matrix` (O, I), bfloat16, with the sum of `terms` (3, T, I) to `products` (O, T).

    `view(R, 3T)` lends a float32 matrix for the products of the terms; R is what keeps it within a chunk.
    """
    multiply = _find_multiply()
    assert multiply is not None
    num_terms, num_rows, num_columns = terms.shape
    flat = terms.view(num_terms * num_rows, num_columns)
    step = product_rows(num_rows)
    for start in range(0, matrix.shape[0], step):
        stop = min(start + step, matrix.shape[0])
        apart = view(stop - start, len(flat))
        multiply(matrix[start:stop], flat, apart)
        large, middle, small = apart.view(stop - start, num_terms, num_rows).unbind(1)
        torch.add(small, middle, out=products[start:stop]).add_(large)


def product_rows(num_rows: int) -> int:
    """Return how many rows of a matrix are multiplied at a time by `num_rows` activations, each in its terms."""
    return max(1, CHUNK_ELEMENTS // (NUM_TERMS * max(1, num_rows) * ROW_MULTIPLE)) * ROW_MULTIPLE


def has_split_products() -> bool:
    """Return whether this processor has them here; which widths they are faster at is another question."""
    return _find_multiply() is not None


@cache
def _find_multiply() -> _Multiply | None:
    """Return what writes `matrix` (O, I) times `rows` (N, I), transposed, to float32 (O, N); None if nothing does."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _may_have_instructions():
        return None
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).cblas_gemm_bf16bf16f32
    except (OSError, AttributeError):
        return None
    whole, real, place = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function.argtypes = [whole] * 6 + [real, place, whole, place, whole, real, place, whole]
    function.restype = None

    def multiply(matrix: torch.Tensor, rows: torch.Tensor, products: torch.Tensor) -> None:
        assert matrix.dtype == rows.dtype == torch.bfloat16 and products.dtype == torch.float32
        assert matrix.stride(1) == rows.stride(1) == products.stride(1) == 1
        assert products.shape == (len(matrix), len(rows)) and matrix.shape[1] == rows.shape[1]
        sizes = (len(matrix), len(rows), matrix.shape[1])
        left, right = (matrix.data_ptr(), matrix.stride(0)), (rows.data_ptr(), rows.stride(0))
        out = (products.data_ptr(), products.stride(0))
        function(_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED, *sizes, 1.0, *left, *right, 0.0, *out)

    return multiply if is_exact(multiply) else None


def _may_have_instructions() -> bool:
    """Return whether the processor multiplies bfloat16; True where this torch cannot tell."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities or bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def is_exact(multiply: _Multiply) -> bool:
    """Return whether products are as near as float32's, the same bits with one thread and a few rows at a time.

    On processors without bfloat16 instructions MKL's are not the same bits, at some shapes.
    """
    return all(_is_exact_at(multiply, *shape) for shape in ((64, 1), (1024, 1), (1024, 4), (1024, 64)))


def _is_exact_at(multiply: _Multiply, num_columns: int, num_rows: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(8 * ROW_MULTIPLE, num_columns, generator=generator).to(torch.bfloat16)
    rows = split_terms(torch.randn(num_rows, num_columns, generator=generator)).view(-1, num_columns)
    whole, parts = torch.empty(len(matrix), len(rows)), torch.empty(len(matrix), len(rows))
    multiply(matrix, rows, whole)
    with one_thread():
        for start in range(0, len(matrix), ROW_MULTIPLE):
            multiply(matrix[start : start + ROW_MULTIPLE], rows, parts[start : start + ROW_MULTIPLE])
    expected = matrix.double() @ rows.double().t()
    error = (whole - expected).abs().max() / expected.abs().max()
    return bool(error < _TOLERANCE) and torch.equal(whole, parts)
