"""Keeps what models have computed of the beginnings of texts on disk, so that nobody reads them twice.

Below one folder, a folder for each model as it is held, in it a file for each block of tokens: see `prefix_block`.
Blocks are written behind the answer by a thread of its own, out of copies, and read in their order, the next ones on
their way. What was not used for longest goes first: of a text its end. Processes may share a folder: a file appears
whole or not at all, bears the digest of all tokens so far as its name, and may go at any time, which is a miss like any
other. A disk that takes no more ends the writing and nothing else.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from offload.checkpoint.hub_download import free_disk_bytes
from offload.free_memory import free_memory_bytes
from offload.units import format_bytes
from profiles.files import parse_json_text, read_regular_file, replace_content
from runtime.engine.prefix_block import PARTIAL_SUFFIX, SCHEMA_VERSION, SUFFIX, BlockForm

logger = logging.getLogger(__name__)

AUTO_BYTES = 8 * 10**9
"""Of all models together where nobody chose: 24,000 tokens of a 70B model in bfloat16."""
_AUTO_SHARE = 4
"""Where nobody chose, no more than one part in so many of what is free, or would be without it."""
_LEAST_FREE_BYTES = 10**9
"""Left on the disk, whatever was chosen."""
_MOST_WAITING_BYTES, _WAITING_SHARE = 512 << 20, 8
"""Copies that wait to be written, and one part in so many of the free memory that they may take; one always may."""
_NUM_READERS = 2
"""Blocks that are read and checked side by side; a core hashes 1.5 GB a second."""
_MOST_FILES = 20_000
_KEPT_SHARE = 0.9
"""Of the room that there is, when some is made, so that it is not made anew for each block."""
_WRITES_PER_SCAN = 64
"""After so many, files are counted again: others may write, too."""
_STALE_SECONDS = 3600.0
"""After which nobody writes at a neighbour any more."""
_FLUSH_SECONDS = 10.0
_SPEED_FILE, _MAX_SPEED_BYTES = "speed.json", 1000
"""How fast a model's tokens were computed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A block that is to be written."""

    form: BlockForm
    name: str
    content: npt.NDArray[np.uint8]


class PrefixStore:
    """The blocks in one folder; a context manager, whose end waits for what is being written."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int | None = None,
        free_bytes: Callable[[Path], int | None] = free_disk_bytes,
        most_waiting_bytes: int | None = None,
    ) -> None:
        """`folder` may not exist yet. `max_bytes` that it may take; None: AUTO_BYTES, and no large part of the disk."""
        self.folder = folder
        self.notice: str | None = None
        """Why nothing is written any more; None while all is well."""
        self.num_damaged = 0
        """Blocks that were not what was written, and are gone now."""
        self.bytes_per_second: float | None = None
        """At which blocks were read last; None before."""
        self._max_bytes, self._free_bytes = max_bytes, free_bytes
        self._most_waiting_bytes = most_waiting_bytes
        self._num_waiting_bytes = 0
        self._total_bytes = self._num_writes = 0
        self._queue: deque[_Waiting] = deque()
        self._coming: dict[str, int | None] = {}
        """Names of what waits, or is being written, and when each was used last."""
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._is_closing = False

    def __enter__(self) -> "PrefixStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def count(self, form: BlockForm, names: Sequence[str]) -> int:
        """Return how many of these blocks are there, up to the first that is not."""
        missing = (number for number, name in enumerate(names) if not self._has(form, name))
        return next(missing, len(names))

    def names(self, form: BlockForm) -> frozenset[str]:
        """Return the names of all blocks of a form that are there."""
        try:
            found = os.listdir(self.folder / form.identity)  # noqa: PTH208  names alone are wanted
        except OSError:
            return frozenset()
        return frozenset(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX))

    def read(self, form: BlockForm, names: Sequence[str]) -> Generator[npt.NDArray[np.uint8], None, None]:
        """Yield what these blocks hold, in their order, up to the first that is not there or not sound."""
        begun, num_bytes = time.perf_counter(), 0
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            coming_names = iter(names)

            def begin(name: str) -> Future[npt.NDArray[np.uint8] | None]:
                return readers.submit(self._read_one, form, name)

            coming = deque(begin(name) for name in islice(coming_names, _NUM_READERS))
            try:
                while coming and (content := coming.popleft().result()) is not None:
                    num_bytes += form.file_bytes
                    if (following := next(coming_names, None)) is not None:
                        coming.append(begin(following))
                    self.bytes_per_second = num_bytes / (time.perf_counter() - begun)
                    yield content
            finally:
                for each in coming:
                    each.cancel()
                self._touch(form, names)

    def offer(
        self, form: BlockForm, name: str, fill: Callable[[npt.NDArray[np.uint8]], None], *, used_ns: int | None = None
    ) -> bool:
        """Keep a block if it is not there yet: `fill` copies what it holds, and a thread writes it.

        `used_ns`: the time that says when it goes, now if None: of a text's blocks the last ones have the earliest.
        Return False where it has to be offered again, because too much is waiting to be written.
        """
        if self.notice is not None or self._is_coming(name, used_ns):
            return True
        if self._has(form, name):
            self._set_used(form, name, used_ns)
            return True
        most = self._most_waiting_bytes
        if most is None:
            most = min(_MOST_WAITING_BYTES, free_memory_bytes() // _WAITING_SHARE)
        with self._changed:
            if self._num_waiting_bytes and self._num_waiting_bytes + form.num_bytes > most:
                return False
            self._num_waiting_bytes += form.num_bytes
        try:
            content = np.empty(form.num_bytes, dtype=np.uint8)
        except MemoryError:
            with self._changed:
                self._num_waiting_bytes -= form.num_bytes
            return True
        fill(content)
        with self._changed:
            self._coming[name] = used_ns
            self._queue.append(_Waiting(form, name, content))
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="prefix-writer", daemon=True)
                self._writer.start()
            self._changed.notify_all()
        return True

    def recall(self, form: BlockForm) -> float | None:
        """Return the seconds in which the model computed a token in an earlier session; None where nobody knows."""
        try:
            text = read_regular_file(self.folder / form.identity / _SPEED_FILE, max_bytes=_MAX_SPEED_BYTES)
            record = parse_json_text(text)
            seconds = record["token_seconds"] if record["schema_version"] == SCHEMA_VERSION else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return seconds if isinstance(seconds, float) and seconds > 0 else None

    def remember(self, form: BlockForm, token_seconds: float) -> None:
        """Keep beside a model's blocks the seconds in which it computed a token."""
        record = {"schema_version": SCHEMA_VERSION, "token_seconds": token_seconds}
        if self.notice is None:
            with suppress(OSError):  # nothing of it was kept, or the disk is full
                replace_content(self.folder / form.identity / _SPEED_FILE, json.dumps(record).encode())

    def flush(self, *, timeout_seconds: float = _FLUSH_SECONDS) -> bool:
        """Wait until what was offered is written; return False if it is not by then."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_waiting_bytes, timeout_seconds)

    def close(self) -> None:
        """Write what waits, as far as a few seconds suffice, and write nothing more."""
        self.flush()
        with self._changed:
            self._is_closing = True
            self._queue.clear()
            self._num_waiting_bytes = 0
            self._changed.notify_all()

    def _is_coming(self, name: str, used_ns: int | None) -> bool:
        """Return whether a block waits or is being written; that it is used again holds for it too."""
        with self._changed:
            if name not in self._coming:
                return False
            self._coming[name] = used_ns
            return True

    def _file(self, form: BlockForm, name: str) -> Path:
        return self.folder / form.identity / f"{name}{SUFFIX}"

    def _has(self, form: BlockForm, name: str) -> bool:
        return os.path.isfile(self._file(form, name))  # noqa: PTH113  a folder that may not be looked into has none

    def _read_one(self, form: BlockForm, name: str) -> npt.NDArray[np.uint8] | None:
        try:
            return form.read(self.folder / form.identity, name)
        except FileNotFoundError:
            pass
        except (OSError, MemoryError) as error:
            logger.debug("a block of the prefix store cannot be read: %s", error)
        except ValueError as error:
            logger.debug("a block of the prefix store is removed: %s", error)
            self.num_damaged += 1
            with suppress(OSError):
                self._file(form, name).unlink()
        return None

    def _touch(self, form: BlockForm, names: Sequence[str]) -> None:
        """Note that these blocks were used, the last ones the longest ago."""
        now = time.time_ns()
        for age, name in enumerate(names):
            self.note_used(form, name, now - age * 1000)

    def note_used(self, form: BlockForm, name: str, used_ns: int | None) -> None:
        """Note when a block was used, now if None; what was used earliest goes first."""
        if not self._is_coming(name, used_ns):
            self._set_used(form, name, used_ns)

    def _set_used(self, form: BlockForm, name: str, used_ns: int | None) -> None:
        used_ns = time.time_ns() if used_ns is None else used_ns
        with suppress(OSError):
            os.utime(self._file(form, name), ns=(used_ns, used_ns))

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closing)
                if self._is_closing:
                    return
                waiting = self._queue.popleft()
            try:
                self._write(waiting)
            except (OSError, MemoryError) as error:
                self._end_writing(str(getattr(error, "strerror", None) or error))
            finally:
                with self._changed:
                    used_ns = self._coming.pop(waiting.name)
                    self._set_used(waiting.form, waiting.name, used_ns)  # here: who asks now finds it coming, or used
                    self._num_waiting_bytes = max(0, self._num_waiting_bytes - waiting.form.num_bytes)
                    self._changed.notify_all()

    def _write(self, waiting: _Waiting) -> None:
        if self.notice is not None or self._is_closing:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self._make_room(waiting.form.file_bytes):
            return
        folder = self.folder / waiting.form.identity
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            waiting.form.write(folder, waiting.name, waiting.content)
        except FileNotFoundError:  # another process has just removed the folder, which was empty
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            waiting.form.write(folder, waiting.name, waiting.content)
        self._total_bytes += waiting.form.file_bytes
        self._num_writes += 1

    def _end_writing(self, reason: str) -> None:
        self.notice = (
            f"no more texts are kept for the next start in {self.folder} ({reason}); free some disk, or give "
            "--prefix-cache off"
        )
        logger.debug("%s", self.notice)

    def _make_room(self, num_bytes: int) -> bool:
        """Remove what was not used for longest where there is no room for more; return whether there is now."""
        if self._num_writes % _WRITES_PER_SCAN == 0:
            self._total_bytes = sum(size for _, _, size in self._files())
        most = self._most_bytes()
        wanted_bytes = num_bytes if num_bytes <= most else 0  # for what never finds room nothing has to go
        if self._total_bytes + wanted_bytes > most:
            self._total_bytes = self._evict(int(_KEPT_SHARE * most) - wanted_bytes)
        if self._total_bytes + num_bytes <= most:
            return True
        self._end_writing(f"it may take {format_bytes(max(0, most))}, and a block has {format_bytes(num_bytes)}")
        return False

    def _most_bytes(self) -> int:
        """Return what all files may take now."""
        free = self._free_bytes(self.folder)
        most = AUTO_BYTES if self._max_bytes is None else self._max_bytes
        if free is None:
            return most
        usable = free + self._total_bytes
        if self._max_bytes is None:
            most = min(most, usable // _AUTO_SHARE)
        return min(most, usable - _LEAST_FREE_BYTES)

    def _evict(self, most_bytes: int) -> int:
        """Remove the oldest files until the others take at most so much, and are not too many; return their bytes."""
        files = sorted(self._files())
        total = sum(size for _, _, size in files)
        for number, (_, path, size) in enumerate(files):
            if total <= most_bytes and len(files) - number < _MOST_FILES:
                break
            with suppress(OSError):
                path.unlink()
            with suppress(OSError):
                if not any(path.parent.glob(f"*{SUFFIX}")):
                    (path.parent / _SPEED_FILE).unlink(missing_ok=True)
                    path.parent.rmdir()
            total -= size
        return total

    def _files(self) -> Iterator[tuple[int, Path, int]]:
        """Yield when each file was used last, where it is, and its bytes; remove what somebody began and left."""
        now = time.time()
        with suppress(OSError):
            for folder in list(self.folder.iterdir()):
                with suppress(OSError):  # it went meanwhile
                    for path in list(folder.iterdir()):
                        with suppress(OSError):
                            found = path.stat(follow_symlinks=False)
                            if path.name.endswith(PARTIAL_SUFFIX) and now - found.st_mtime > _STALE_SECONDS:
                                path.unlink()
                            elif path.name.endswith((SUFFIX, PARTIAL_SUFFIX)):
                                yield found.st_mtime_ns, path, found.st_size
