"""Reads JSON and file headers that may have been damaged, or written by somebody who means harm.

Stricter than the standard parser: an object with no key twice and nothing that is not finite, from a regular file of
bounded size. Whatever is wrong becomes one sentence that is safe to print. Knows nothing of models.
"""

import json
import math
import os
import reprlib
import stat
from pathlib import Path
from typing import Any

from offload.errors import CheckpointError

_quoter = reprlib.Repr()
_quoter.maxstring = _quoter.maxother = 80


def quote(value: object) -> str:
    """`value` as a short single line that is safe to print, whatever a file put into it."""
    return _quoter.repr(value)


def read_start(file: Path, *, num_bytes: int) -> tuple[int, bytes]:
    """The file's size and its first `num_bytes` bytes, of a regular file only: opening a pipe would wait for ever.

    Raises CheckpointError if there is no such file or it cannot be read.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{file} is not a regular file; expected the file that the model's publisher offers")
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_size, opened.read(num_bytes)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; download the model again") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {quote(str(error))}") from error


def read_json(file: Path, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object in `file`. Raises CheckpointError, also if the file is larger than `max_bytes`."""
    file_bytes, raw = read_start(file, num_bytes=max_bytes)
    if file_bytes > max_bytes:
        raise CheckpointError(f"{file} has {file_bytes} bytes; expected at most {max_bytes}")
    return parse_json(raw, where=str(file))


def parse_json(raw: bytes, *, where: str) -> dict[str, Any]:
    """The JSON object in `raw`; `where` names it in the CheckpointError that any damage becomes."""
    try:
        parsed = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_finite_float,
            parse_float=_finite_float,
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {quote(str(error))}; download it again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where} holds {quote(parsed)}; expected a JSON object")
    return parsed


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"the key {quote(name)} stands twice")
        unique[name] = value
    return unique


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{quote(text)} is not a finite number")
    return number
