"""How many bytes a matrix takes in each storage format, from its shape alone, and how much of it is widened at a time.

Exact: int8 rows as this project keeps them, NF4 as bitsandbytes writes it into safetensors. Only matrices of decoder
layers are quantized; vectors stay as they are. Imports no torch: `plan` answers faster than torch is imported.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

QuantizedFormat = Literal["int8", "nf4"]
QUANTIZED_FORMATS: tuple[str, ...] = get_args(QuantizedFormat)
"""Those that a matrix loses bits in, the larger one first."""
DEFAULT_BLOCK_SIZE = 64
"""4-bit weights that share one scale, unless a folder says otherwise."""
NESTED_BLOCK_SIZE = 256
"""Scales that share one scale of their own, with double quantization; bitsandbytes writes no other."""
PreparedFormat = Literal["int8", "nf4", "packed"]
PACKED: PreparedFormat = "packed"
PREPARED_FORMATS: tuple[str, ...] = get_args(PreparedFormat)
"""What `overstory prepare` writes: the quantized ones, and bfloat16 in 12 bits an element, bit for bit."""
NF4_CODE_BYTES = 16 * 4
"""quant_map: the 16 levels, float32."""
NF4_NESTED_CODE_BYTES = 256 * 4
"""nested_quant_map: the 256 levels of a scale, float32."""

GGML_BLOCKS: Mapping[str, tuple[int, int]] = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ3_XXS": (256, 98),
    "IQ1_S": (256, 50),
    "IQ4_NL": (32, 18),
    "IQ3_S": (256, 110),
    "IQ2_S": (256, 82),
    "IQ4_XS": (256, 136),
    "IQ1_M": (256, 56),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}
"""(elements, bytes) of a block of each type that GGUF files have (llama.cpp, `ggml-common.h`)."""

CHUNK_ELEMENTS = 1 << 20
"""Elements widened at a time: 4 MB in float32 stay in the processor's cache between being written and multiplied.

Measured on two cores, 8960 x 1536 bf16, 1 / 8 / 64 rows: whole matrix 6.4 / 10.7 / 25.7 ms, chunks 2.4 / 5.4 / 13 ms.
"""
ACCELERATOR_CHUNK_ELEMENTS = 1 << 26
"""The same on any other device, where each chunk costs launches, and its product should fill the processors.

Arithmetic, a layer of 70B: chunks of 8 M are 103 products, of 32 M 28, of 64 M 16. A tile of a product is 128 x 128, so
at 256 rows a chunk of the widest matrices is 16, 64 or 112 tiles, for 128 (RTX 4090) or 142 (L40) processors. In two
bytes the chunk takes 17, 67 or 134 MB, of which the last is 0.3 of such a layer in 4 bits.
"""
PIECE_BYTES = 16
"""What quantized formats make of an element on its way to a number, at most, for the elements of a piece."""
_DEVICE_PIECE_ELEMENTS = 1 << 23
CHUNK_ROW_MULTIPLE = 32
"""Rows of dense and packed matrices are widened by multiples of this, so that both multiply in the same steps."""
FEWEST_COLUMNS, COLUMN_MULTIPLE = 4, 8
"""What the columns of a processor's float32 product are filled up to: half a vector's numbers, or whole vectors'.

Others cost up to twice as much: 8960 x 1536 on two AVX2 cores, 31 and 32 columns 14.2 and 7.7 ms.
Up to COLUMN_MULTIPLE columns are also laid out each in one piece: MKL multiplies interleaved ones by another kernel,
with twice the rounding.
"""
PACKED_COLUMNS = 64
"""A packed matrix has a multiple of so many columns: a quarter of a row then is whole vectors."""
ESCAPE_BYTES = 6
"""Of an element that has no code: four for its place, two for itself."""
MAX_ESCAPE_SHARE = 0.01
"""Of a packed matrix; with more it would take over 0.78 of its bytes, and unpacking would mostly write escapes."""
_MAX_PACKED_ELEMENTS = 1 << 31  # places of escapes are numbers of 32 bits
TILE_ROWS = 128
"""Rows of a tile: chunks of an accelerator are even numbers of them, so that none is a remainder."""
WIDE_HEAD_ELEMENTS = 1 << 23
"""Elements of a head that are widened to float32 at a time where the device cannot multiply to float32 by itself."""


def scratch_elements(matrices: Iterable[Sequence[int]], *, is_host: bool) -> int:
    """Return how many elements products with matrices (O, I) widen at a time, at most; a longer row alone is more."""
    largest = max((math.prod(shape) for shape in matrices), default=0)
    return CHUNK_ELEMENTS if is_host else min(ACCELERATOR_CHUNK_ELEMENTS, max(CHUNK_ELEMENTS, largest))


def chunk_rows(shape: Sequence[int], *, most_elements: int, row_multiple: int, is_host: bool) -> int:
    """Return how many rows of a matrix (O, I) are widened at a time: a multiple of `row_multiple`, 1 chunk at least.

    An accelerator's chunks are of equal size, in whole tiles where there is room for that.
    """
    num_rows, num_columns = shape
    most = max(1, most_elements // (num_columns * row_multiple)) * row_multiple
    if is_host or most >= num_rows:
        return most
    unit = math.lcm(TILE_ROWS, row_multiple)
    equal = -(-num_rows // -(-num_rows // most))
    return min(most, -(-equal // unit) * unit)


def piece_elements(*, is_host: bool) -> int:
    """Return how many elements of a chunk are brought out of a quantized format at a time.

    A step costs some microseconds besides its work on a processor: quarters of a chunk, which would stay in a core's
    own cache, take twice the time there (Q4_K, two AVX2 cores). Elsewhere its memory is taken from the layers.
    """
    return CHUNK_ELEMENTS if is_host else _DEVICE_PIECE_ELEMENTS


def num_spare_columns(num_columns: int) -> int:
    """Return how many columns of zeros make a processor's product with so many a quick one."""
    if num_columns <= 1:
        return 0
    return -num_columns % (FEWEST_COLUMNS if num_columns <= FEWEST_COLUMNS else COLUMN_MULTIPLE)


def int8_rows_bytes(shape: Sequence[int]) -> int:
    """Return the bytes of a matrix (O, I) as int8 rows: one byte an element and one float32 scale a row."""
    return math.prod(shape) + 4 * shape[0]


def int8_token_bytes(num_heads: int, num_elements: int) -> int:
    """Return the bytes of what a layer's cache keeps of one token, as int8: the elements, then a float32 scale a head.

    Rounded up, so that rows begin at multiples of 16 bytes.
    """
    scales_begin = -(-num_elements // 4) * 4
    return -(-(scales_begin + 4 * num_heads) // 16) * 16


def can_be_packed(dtype: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor is a matrix of a type ("BF16") and shape that packs; its exponents are another matter."""
    is_matrix = dtype == "BF16" and len(shape) == 2
    return is_matrix and shape[1] % PACKED_COLUMNS == 0 and 0 < math.prod(shape) < _MAX_PACKED_ELEMENTS


def packed_bytes(shape: Sequence[int]) -> int:
    """Return the bytes of a matrix (O, I) of bfloat16 packed, without its escapes; of one that cannot be, its own."""
    num_elements = math.prod(shape)
    return num_elements * 3 // 2 if can_be_packed("BF16", shape) else 2 * num_elements


def nf4_bytes(shape: Sequence[int], *, is_double: bool = True) -> int:
    """Return the bytes of a matrix as bitsandbytes NF4, without its JSON state (some 160 bytes).

    Two weights a byte; per 64 weights one scale, float32, or one byte with double quantization, which then has one
    float32 per 256 scales; and the tables of levels.
    """
    num_elements = math.prod(shape)
    num_blocks = -(-num_elements // DEFAULT_BLOCK_SIZE)
    scale_bytes = 4 * num_blocks
    if is_double:
        scale_bytes = num_blocks + 4 * -(-num_blocks // NESTED_BLOCK_SIZE) + NF4_NESTED_CODE_BYTES
    return -(-num_elements // 2) + scale_bytes + NF4_CODE_BYTES
