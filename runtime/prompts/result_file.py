"""Results as JSON lines: to a stream, or appended to a file that survives kill -9 and can be resumed.

Every answer is on the disk before the next prompt starts. On resume a half-written last line is cut off, results that
carry an error are taken out so that their prompts are tried again, and everything else stays as it is: one result per
id. What a line holds is for its `ResultFormat` to say; a file has lines of one kind. Another process is kept out by a
lock.
"""

import json
import os
import re
import stat
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from profiles.errors import OverstoryError
from profiles.files import lock, replace_content
from runtime.errors import OptionError
from runtime.prompts.headless import PromptResult
from runtime.prompts.result_format import LINE_START, OWN_FORMAT, ResultFormat, is_answer, kind_of

# Legal in JSON, but a terminal obeys the first range, some readers end the line at the next two, and the last range, as
# in the name of a file that is not UTF-8, cannot be encoded.
_UNSAFE_IN_LINES = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def format_record(record: dict[str, Any]) -> str:
    """Return one line of JSON without its newline; non-ASCII text stays readable, terminal controls are escaped."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return _UNSAFE_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


class ResultStream:
    """Results on an open text stream, such as standard output; flushed one by one."""

    finished_ids: Collection[str] = ()
    kept_in: Path | None = None

    def __init__(self, stream: TextIO, result_format: ResultFormat = OWN_FORMAT) -> None:
        self._stream = stream
        self._format = result_format

    def append(self, result: PromptResult) -> None:
        """Write one line and flush it, once the line is complete."""
        record = self._format.record(result)
        if record is None:
            return
        try:
            self._stream.write(format_record(record) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OverstoryError(
                f"standard output took no more results: {error.strerror or error}; give --output a file with room"
            ) from error


class ResultFile:
    """Results appended to a file, each one flushed to the disk; a context manager.

    The file is locked meanwhile. Where it is moved, removed, replaced or cut while results are written, all of them are
    kept in a file beside it, which `kept_in` names.

    Raises:
        OptionError: the file cannot be opened, another process writes results to it, it holds something already and
            `is_resumed` is false, or it holds a line that is no result, or none of this format.
    """

    def __init__(self, path: Path, *, is_resumed: bool, result_format: ResultFormat = OWN_FORMAT) -> None:
        self.finished_ids: Collection[str] = ()
        """Ids of requests that the file answers already; none unless resumed."""
        self.kept_in: Path | None = None
        """Where the results are, if not where they should be."""
        self._path = path
        self._format = result_format
        self._lines: list[bytes] = []  # all that the file should hold
        try:
            self._was_there = path.exists()
            self._file = _open_alone(path)
            self._is_regular = _is_regular(self._file)
            if self._is_regular:
                self._take_over(is_resumed)
        except OSError as error:
            raise _cannot_be_opened(path, error.strerror or str(error)) from error
        self._num_bytes = sum(map(len, self._lines))

    def _take_over(self, is_resumed: bool) -> None:
        """Read what an earlier run left, and repair it; without one, refuse a file that holds something."""
        try:
            content = _content(self._file)
            if content and not is_resumed:
                raise _holds_something(self._path)
            self._lines, self.finished_ids = _recover(content, self._path, self._format)
            repaired = b"".join(self._lines)
            if repaired != content:
                before = self._file
                if os.name == "nt":  # an open file cannot be replaced there
                    before.close()
                replace_content(self._path.resolve(), repaired, mode=stat.S_IMODE(self._path.stat().st_mode))
                with before:  # its lock holds others off until the new file has its own
                    self._file = _open_alone(self._path)
        except BaseException:
            self._file.close()
            raise

    def append(self, result: PromptResult) -> None:
        """Write one line to the disk, once it is complete; if that fails, no part of it stays.

        An interruption leaves all of it or none.

        Raises:
            OverstoryError: the file system refused, for example because the disk is full.
        """
        record = self._format.record(result)
        if record is None:
            return
        line = (format_record(record) + "\n").encode()
        try:
            self._lines.append(line)
            self._write(line, is_synced=is_answer(record))  # what is tried again on resume need not survive
        except BaseException:
            if self._lines[-1:] == [line] and not self._ends_with(line):
                self._lines.pop()
            raise
        self._num_bytes += len(line)
        self._keep_all()

    def _write(self, line: bytes, *, is_synced: bool = True) -> None:
        size_bytes = self._file.seek(0, os.SEEK_END) if self._is_regular else 0
        try:
            _write_all(self._file, line, is_synced=self._is_regular and is_synced)
        except BaseException as error:
            # A line that is whole stays where only the wait for the disk was interrupted.
            if self._is_regular and (isinstance(error, OSError) or not self._ends_with(line)):
                with suppress(OSError):  # what then stays of the line is cut off on resume
                    self._file.truncate(size_bytes)
            if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
                raise
            raise OverstoryError(
                f"{self._path} took no more results: {error.strerror or error}; make room and go on with --resume"
            ) from error

    def _ends_with(self, line: bytes) -> bool:
        try:
            self._file.seek(self._file.seek(0, os.SEEK_END) - len(line))
            return self._file.read() == line
        except OSError:  # shorter, or no regular file
            return False

    def _keep_all(self, *, is_read: bool = False) -> None:
        """Go on in a file beside the path, with all results so far, if the path no longer has them."""
        if not self._is_regular or self._is_in_place(is_read=is_read):
            return
        beside = _keep_beside(self._path, b"".join(self._lines))
        before = self._file
        self._file, self._path, self.kept_in = beside, Path(beside.name), Path(beside.name)
        before.close()

    def _is_in_place(self, *, is_read: bool) -> bool:
        """Return whether the path leads to all lines, as far as size tells, or `is_read` as they are there."""
        try:
            written = os.fstat(self._file.fileno())
            if not os.path.samestat(written, self._path.stat()) or written.st_size < self._num_bytes:
                return False
            return not is_read or set(self._lines) <= set(_content(self._file).splitlines(keepends=True))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file; a file that this object made and that is still empty is removed."""
        if self._file.closed:
            return
        try:
            if self._lines:
                self._keep_all(is_read=True)
        except KeyboardInterrupt:
            self._keep_all(is_read=True)  # a command is interrupted once
            raise
        finally:
            self._file.close()
        if self._is_regular and not self._was_there and not self._lines:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> "ResultFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def finished_ids(path: Path, result_format: ResultFormat, *, is_resumed: bool) -> Collection[str]:
    """Return the ids of requests that a file answers already, which stays as it is; none if it is not there.

    Raises OptionError where a `ResultFile` would, as far as reading tells.
    """
    try:
        content = path.read_bytes() if path.is_file() else b""
        is_writable = os.access(path if path.exists() else path.resolve().parent, os.W_OK)
    except OSError as error:
        raise _cannot_be_opened(path, error.strerror or str(error)) from error
    if not is_writable:
        raise _cannot_be_opened(path, "it cannot be written")
    if content and not is_resumed:
        raise _holds_something(path)
    return _recover(content, path, result_format)[1]


def _cannot_be_opened(path: Path, why: str) -> OptionError:
    return OptionError(
        f"{path} cannot be opened for results: {why}; give --output a file in an existing, writable folder"
    )


def _holds_something(path: Path) -> OptionError:
    return OptionError(f"{path} already holds something; add --resume to go on with it, or give another --output")


def _is_regular(file: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _write_all(file: BinaryIO, content: bytes, *, is_synced: bool) -> None:
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[file.write(remaining) :]
    if is_synced:
        os.fsync(file.fileno())


def _open_alone(path: Path) -> BinaryIO:
    """Open a file to append to and read, locked if it is a regular one; a pipe or a device is only written to.

    Raises OptionError if another process has it.
    """
    if path.exists() and not path.is_file():
        return path.open("ab", buffering=0)
    while True:
        file = path.open("a+b", buffering=0)
        try:
            lock(file.fileno())
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # replaced or removed between the two: look again
        except BlockingIOError as error:
            file.close()
            raise OptionError(
                f"{path} is being written by another run ({error}); wait until it ends, or give another --output"
            ) from error
        except BaseException:
            file.close()
            raise
        file.close()


def _keep_beside(path: Path, content: bytes) -> BinaryIO:
    """Write what cannot be where it should be into a new file: beside that place, or where there is room."""
    for folder in (path.parent, Path.cwd(), Path(tempfile.gettempdir())):
        for number in range(1, 1000):
            beside = folder / (f"{path.name}.kept" if number == 1 else f"{path.name}.kept-{number}")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = beside.open("x+b", buffering=0)
            except FileExistsError:
                continue
            except OSError:
                break
            try:
                lock(file.fileno())
                _write_all(file, content, is_synced=True)
                return file
            except BaseException as error:
                file.close()
                beside.unlink(missing_ok=True)
                if not isinstance(error, OSError):
                    raise
                break
    raise OverstoryError(f"{path} is gone, and no folder takes the results; make room and answer the prompts again")


def _recover(content: bytes, path: Path, result_format: ResultFormat) -> tuple[list[bytes], frozenset[str]]:
    """Return the lines that an earlier run left whole and without an error, and the ids that they answer."""
    *lines, tail = content.split(b"\n")
    if kind_of(_parsed(tail)) is not None or not _is_cut_short(tail):
        lines.append(tail)
    finished_ids: set[str] = set()
    kept: list[bytes] = []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parsed(line)
        kind = kind_of(record)
        if kind is None:
            raise OptionError(
                f"{path} line {line_number} is not a result of an earlier run; "
                "remove that line, or give another --output"
            )
        if kind != result_format.kind:
            raise OptionError(
                f"{path} holds {kind}, and this prompt file gives {result_format.kind}; give another --output"
            )
        if is_answer(record):
            finished_ids.update(result_format.ids_answered_by(record))
            kept.append(line + b"\n")
    return kept, frozenset(finished_ids)


def _is_cut_short(tail: bytes) -> bool:
    """Return whether bytes without a newline can be the start of a line of ours, and not somebody's own text."""
    written = tail.rstrip(b"\0")  # a power cut can leave a file's last blocks unwritten
    return written.startswith(LINE_START) or LINE_START.startswith(written)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
