"""How many bytes a matrix takes in each storage format, from its shape alone, and how much of it is widened at a time.

Exact: int8 rows as this project keeps them, NF4 as bitsandbytes writes it into safetensors. Only matrices of decoder
layers are quantized; vectors stay as they are. Imports no torch: `plan` answers faster than torch is imported.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

QuantizedFormat = Literal["int8", "nf4"]
QUANTIZED_FORMATS: tuple[str, ...] = get_args(QuantizedFormat)
"""What `overstory prepare` writes, the larger one first."""
DEFAULT_BLOCK_SIZE = 64
"""4-bit weights that share one scale, unless a folder says otherwise."""
NESTED_BLOCK_SIZE = 256
"""Scales that share one scale of their own, with double quantization; bitsandbytes writes no other."""
NF4_CODE_BYTES = 16 * 4
"""quant_map: the 16 levels, float32."""
NF4_NESTED_CODE_BYTES = 256 * 4
"""nested_quant_map: the 256 levels of a scale, float32."""

CHUNK_ELEMENTS = 1 << 20
"""Elements widened at a time: 4 MB in float32 stay in the processor's cache between being written and multiplied.

Measured on two cores, 8960 x 1536 bf16, 1 / 8 / 64 rows: whole matrix 6.4 / 10.7 / 25.7 ms, chunks 2.4 / 5.4 / 13 ms.
"""
ACCELERATOR_CHUNK_ELEMENTS = 1 << 23
"""The same on any other device, where each chunk costs kernel launches and no cache holds it anyway."""


def int8_rows_bytes(shape: Sequence[int]) -> int:
    """Return the bytes of a matrix (O, I) as int8 rows: one byte an element and one float32 scale a row."""
    return math.prod(shape) + 4 * shape[0]


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
