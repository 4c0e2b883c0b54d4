"""Writes a safetensors file piece by piece, so that no tensor has to be in memory whole.

Tensors that lie on disk are copied through a small buffer, those in memory are written from where they are. The file
is on the disk when writing ends, and gone when it fails. Knows nothing of models and nothing of the file's final name.
Format: 8 bytes little-endian header length, a JSON header padded with spaces to 8 bytes, then the data.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from offload.checkpoint.checkpoint import ITEM_BYTES
from offload.errors import WriteError

DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""safetensors names of torch's types."""


@dataclass(frozen=True, slots=True)
class OutgoingTensor:
    """A tensor on its way into a file."""

    name: str
    """Its name in the file."""
    dtype: str
    """Storage type in safetensors' spelling."""
    shape: tuple[int, ...]
    """Row-major."""
    read_pieces: Callable[[], Iterable[memoryview]]
    """Its bytes in order; called once, while the file is written."""

    @classmethod
    def from_tensor(cls, name: str, tensor: torch.Tensor) -> "OutgoingTensor":
        """A tensor that is in memory."""
        flat = tensor.detach().contiguous().reshape(-1)
        return cls(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), lambda: [as_bytes(flat)])

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A safetensors file that is complete and on the disk."""

    num_bytes: int
    """Size of the file."""
    sha256: str
    """Digest of the file, hexadecimal."""
    tensor_names: tuple[str, ...]
    """What it holds, in the file's order."""
    tensor_bytes: int
    """All tensors together, without the header."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "WrittenFile":
        """From what `dataclasses.asdict` makes of it, also after a way through JSON. Raises TypeError or KeyError."""
        return cls(**{**record, "tensor_names": tuple(record["tensor_names"])})


def write_safetensors(file: Path, tensors: Sequence[OutgoingTensor]) -> Generator[int, None, WrittenFile]:
    """Write and flush `file`; yields the bytes written so far after every piece.

    Tensors with wider items come first and names decide among equals, as in the safetensors library, so that every
    tensor is aligned to its items. Abandoned or failed half way, the file is removed.

    Raises:
        WriteError: the disk is full, or the file cannot be written.
    """
    in_order = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        with create_file(file) as opened:
            for piece in _pieces(in_order):
                opened.write(piece)
                digest.update(piece)
                num_bytes += len(piece)
                yield num_bytes
            opened.flush()
            os.fsync(opened.fileno())
    except BaseException as error:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_failure(file, error) from error
        raise
    tensor_bytes = sum(tensor.num_bytes for tensor in in_order)
    return WrittenFile(num_bytes, digest.hexdigest(), tuple(tensor.name for tensor in in_order), tensor_bytes)


def create_file(file: Path) -> BinaryIO:
    """Open a new file for writing; the one place where files of a folder being made are opened."""
    return file.open("wb")


def write_failure(file: Path, error: OSError) -> WriteError:
    """The sentence that a failed write becomes."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cure = "make room" if is_full else "mend that"
    return WriteError(
        f"{file} cannot be written: {error.strerror or error}; {cure} and run the same command again to go on "
        "(what is finished is kept)"
    )


def as_bytes(flat: torch.Tensor) -> memoryview:
    """The bytes of a contiguous one-dimensional tensor, without a copy."""
    return flat.view(torch.uint8).numpy().data


def _pieces(tensors: Sequence[OutgoingTensor]) -> Iterator[memoryview]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    yield memoryview(len(raw).to_bytes(8, "little") + raw)
    for tensor in tensors:
        num_bytes = 0
        for piece in tensor.read_pieces():
            num_bytes += len(piece)
            yield piece
        assert num_bytes == tensor.num_bytes, f"{tensor.name} has {num_bytes} bytes, announced {tensor.num_bytes}"
