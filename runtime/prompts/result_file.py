"""Results as JSON lines: to a stream, or appended to a file that survives kill -9 and can be resumed.

Every line is on the disk before the next prompt starts. On resume a half-written last line is cut off, results that
carry an error are taken out so that their prompts are tried again, and everything else stays as it is: one result per
id. Two processes must not write to one file.
"""

import json
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from profiles.errors import OverstoryError
from profiles.files import replace_content
from runtime.errors import OptionError
from runtime.prompts.headless import PromptResult

_RESULT_KEYS = {"id", "text", "error"}
_LINE_START = b'{"id": "'
# Legal in JSON, but a terminal obeys the first range and some readers end the line at the other two.
_UNSAFE_IN_LINES = re.compile("[\x7f-\x9f\u2028\u2029]")


def format_record(record: dict[str, Any]) -> str:
    """Return one line of JSON without its newline; non-ASCII text stays readable, terminal controls are escaped."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return _UNSAFE_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


class ResultStream:
    """Results on an open text stream, such as standard output; flushed one by one."""

    finished_ids: Collection[str] = ()

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def append(self, result: PromptResult) -> None:
        """Write one line and flush it."""
        self._stream.write(format_record(result.to_record()) + "\n")
        self._stream.flush()


class ResultFile:
    """Results appended to a file, each one flushed to the disk; a context manager.

    Raises:
        OptionError: the file cannot be opened, holds something already and `is_resumed` is false, or holds a line
            that is no result.
    """

    def __init__(self, path: Path, *, is_resumed: bool) -> None:
        self._path = path
        self._was_there = path.exists()
        try:
            self.finished_ids: Collection[str] = _recover(path) if is_resumed else _refuse_content(path)
            self._file: BinaryIO = path.open("ab", buffering=0)
        except OSError as error:
            raise OptionError(
                f"{path} cannot be opened for results: {error.strerror or error}; give --output a file in an "
                "existing, writable folder"
            ) from error
        self._is_regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)

    def append(self, result: PromptResult) -> None:
        """Write one line to the disk; if that fails, no part of the line stays.

        Raises:
            OverstoryError: the file system refused, for example because the disk is full.
        """
        size_bytes = self._file.seek(0, os.SEEK_END) if self._is_regular else 0
        try:
            remaining = memoryview((format_record(result.to_record()) + "\n").encode())
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
            if self._is_regular:
                os.fsync(self._file.fileno())
        except BaseException as error:
            if self._is_regular:
                self._file.truncate(size_bytes)
            if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
                raise
            raise OverstoryError(
                f"{self._path} took no more results: {error.strerror or error}; make room and go on with --resume"
            ) from error

    def close(self) -> None:
        """Close the file; a file that this object made and that is still empty is removed."""
        self._file.close()
        if self._is_regular and not self._was_there and self._path.stat().st_size == 0:
            self._path.unlink()

    def __enter__(self) -> "ResultFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refuse_content(path: Path) -> frozenset[str]:
    if path.is_file() and path.stat().st_size:
        raise OptionError(f"{path} already holds something; add --resume to go on with it, or give another --output")
    return frozenset()


def _recover(path: Path) -> frozenset[str]:
    """Repair what an earlier run left, and return the ids that it answered."""
    if not path.is_file():
        return frozenset()
    content = path.read_bytes()
    *lines, tail = content.split(b"\n")
    if _parse_result(tail) is not None or not _is_cut_short(tail):
        lines.append(tail)
    finished_ids: set[str] = set()
    kept: list[bytes] = []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse_result(line)
        if record is None:
            raise OptionError(
                f"{path} line {line_number} is not a result of an earlier run; "
                "remove that line, or give another --output"
            )
        if record["error"] is None:
            finished_ids.add(record["id"])
            kept.append(line + b"\n")
    repaired = b"".join(kept)
    if repaired != content:
        replace_content(path.resolve(), repaired, mode=stat.S_IMODE(path.stat().st_mode))
    return frozenset(finished_ids)


def _is_cut_short(tail: bytes) -> bool:
    """Return whether bytes without a newline can be the start of a line of ours, and not somebody's own text."""
    written = tail.rstrip(b"\0")  # a power cut can leave a file's last blocks unwritten
    return written.startswith(_LINE_START) or _LINE_START.startswith(written)


def _parse_result(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_result = isinstance(record, dict) and record.keys() >= _RESULT_KEYS and isinstance(record["id"], str)
    return record if is_result else None
