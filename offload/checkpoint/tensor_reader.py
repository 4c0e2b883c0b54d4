"""Reads parts of stored tensors through ordinary files: for one pass over a checkpoint in little memory.

The streaming path has its own reader; this one is for tools that convert a checkpoint. Counts what it has read, and
knows no models. Values in the file are never trusted to be as many as the index says: lengths are checked.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch

from offload.checkpoint.checkpoint import ITEM_BYTES, TensorEntry
from offload.errors import CheckpointError
from offload.formats.weight_format import TORCH_DTYPES
from profiles.errors import quote


class TensorReader:
    """Keeps the files open that it reads from; a context manager."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self._files: dict[Path, BinaryIO] = {}
        self._stack = ExitStack()

    def read_elements(self, entry: TensorEntry, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor, flat, in its storage dtype. Raises CheckpointError."""
        elements = torch.empty(stop - start, dtype=TORCH_DTYPES[entry.dtype])
        item_bytes = ITEM_BYTES[entry.dtype]
        self._fill(elements.view(torch.uint8).numpy().data, entry, start * item_bytes)
        return elements

    def _fill(self, buffer: memoryview, entry: TensorEntry, start_bytes: int) -> None:
        where = f"the tensor {quote(entry.name)} in {entry.file}"
        try:
            if entry.file not in self._files:
                self._files[entry.file] = self._stack.enter_context(entry.file.open("rb", buffering=0))
            file = self._files[entry.file]
            file.seek(entry.offset_bytes + start_bytes)
            num_read = 0
            while num_read < len(buffer):
                num_more = file.readinto(buffer[num_read:])  # type: ignore[attr-defined]
                if not num_more:
                    raise CheckpointError(f"{where} ends early; the file was changed or cut off while it was read")
                num_read += num_more
        except OSError as error:
            raise CheckpointError(f"{where} cannot be read: {quote(str(error))}") from error
        self.bytes_read += len(buffer)

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._files.clear()
