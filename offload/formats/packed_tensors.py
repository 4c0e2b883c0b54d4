"""A packed matrix as the tensors of a safetensors file, and back, bit for bit.

Of a matrix `X.weight` (O, I) stand in the file
- `X.weight`, I16 (O, 3 I / 4): the words, see `packed`;
- `X.weight.escapes`, I32 (N,), and `X.weight.escape_values`, BF16 (N,): where in the flat matrix the elements without a
  code are, ascending, and what they are. Zeros follow up to a multiple of ESCAPE_MULTIPLE, so that the tensors of a
  layer are multiples of 16 bytes and cross a link in one piece;
- `X.weight.packed`, U8: JSON with `format` (FORMAT_NAME), `shape` [O, I], `base`, `escape_counts` (one for each block
  of CHUNK_ROW_MULTIPLE rows) and `sha256`, that of the matrix's own bytes.
A matrix with more escapes than MAX_ESCAPE_SHARE is left as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

from offload.formats.packed import PackedFormat, pack_matrix
from offload.formats.stored_sizes import MAX_ESCAPE_SHARE

FORMAT_NAME = "bfloat16 in 12 bits"
STATE_SUFFIX = ".packed"
PART_SUFFIXES = (".escapes", ".escape_values", STATE_SUFFIX)
"""Of the names of the tensors beside a packed matrix's own."""
ESCAPE_MULTIPLE = 8


def pack_to_tensors(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a matrix (O, I) of bfloat16 in host memory, by their suffix; itself where it packs badly.

    I is a multiple of PACKED_COLUMNS.
    """
    with ThreadPoolExecutor(1) as hashing:
        digest = hashing.submit(sha256_of, matrix)
        packed = pack_matrix(matrix)
        sha256 = digest.result()
    if len(packed.escapes) > MAX_ESCAPE_SHARE * matrix.numel():
        return {"": matrix}
    more = -len(packed.escapes) % ESCAPE_MULTIPLE
    state = {
        "format": FORMAT_NAME,
        "shape": list(matrix.shape),
        "base": packed.format.base,
        "escape_counts": np.diff(packed.format.escape_ends, prepend=0).tolist(),
        "sha256": sha256,
    }
    return {
        "": packed.words,
        ".escapes": F.pad(packed.escapes, (0, more)),
        ".escape_values": F.pad(packed.escape_values, (0, more)),
        STATE_SUFFIX: torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8),
    }


def unpack_tensors(found: PackedFormat, parts: Mapping[str, torch.Tensor], *, sha256: str) -> torch.Tensor:
    """Return the matrix (O, I) of these parts, by suffix. Raises ValueError if it is not the one that was packed."""
    matrix = found.bind(parts).unpack()
    if sha256_of(matrix) != sha256:
        raise ValueError("its bytes are not those that were packed")
    return matrix


def sha256_of(matrix: torch.Tensor) -> str:
    """Return the digest of the bytes of a matrix in host memory, row by row."""
    return hashlib.sha256(matrix.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
