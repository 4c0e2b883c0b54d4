"""Read JSON and file headers that may have been damaged, or written by somebody who means harm.

Stricter than the standard parser: an object with no key twice and nothing that is not finite, from a regular file of
bounded size. Whatever is wrong becomes one sentence that is safe to print.
"""

import os
import stat
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from offload.closing import PATIENCE_SECONDS
from offload.errors import CheckpointError
from profiles.errors import quote
from profiles.files import parse_json_text


def read_start(file: Path, *, num_bytes: int) -> tuple[int, bytes]:
    """Return the file's size and its first `num_bytes` bytes; only of a regular file, as opening a pipe would block.

    Raises CheckpointError if there is no such file, it cannot be read, or the disk does not answer.
    """
    outcome: Future[tuple[int, bytes]] = Future()

    def read() -> None:
        try:
            outcome.set_result(_read_start(file, num_bytes=num_bytes))
        except BaseException as error:
            outcome.set_exception(error)

    # A read from a disk that hangs never returns, and hears of no signal.
    thread = threading.Thread(target=read, name=f"read {file.name}", daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if not outcome.done():
        raise CheckpointError(
            f"{file} has not been read within {PATIENCE_SECONDS:g} seconds; check that the disk still answers, then "
            "try again"
        )
    return outcome.result()


def _read_start(file: Path, *, num_bytes: int) -> tuple[int, bytes]:
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
    """Return the JSON object in `file`. Raises CheckpointError, also if the file is larger than `max_bytes`."""
    file_bytes, raw = read_start(file, num_bytes=max_bytes)
    if file_bytes > max_bytes:
        raise CheckpointError(f"{file} has {file_bytes} bytes; expected at most {max_bytes}")
    return parse_json(raw, where=str(file))


def parse_json(raw: bytes, *, where: str) -> dict[str, Any]:
    """Return the JSON object in `raw`; `where` names it in the CheckpointError that any damage becomes."""
    try:
        parsed = parse_json_text(raw)
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON: {quote(str(error))}; download it again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where} holds {quote(parsed)}; expected a JSON object")
    return parsed
