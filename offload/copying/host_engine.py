"""The engine of a machine without an accelerator, and what reads files everywhere: threads that fill slabs.

Blocks of bytes wait in one queue, so that files are read in order; a few threads read or copy them.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from offload.checkpoint.block_reader import SourceFile, split_range
from offload.closing import PATIENCE_SECONDS, Closeable, Patience
from offload.copying.copy_engine import CopySource, HostSource
from offload.errors import LinkError, PassCancelledError
from offload.units import PAGE_BYTES

# On a virtual disk of 1.0 to 1.6 GB/s, O_DIRECT: 3 threads keep it busy alone, but while both cores multiply, a thread
# that waits for a core leaves the queue short: plain passes got 0.95 of the raw link with 3, 0.98 with 6. 8 MiB is
# never the slowest of 4, 8 and 16.
DEFAULT_NUM_THREADS = 6
DEFAULT_BLOCK_BYTES = 8 << 20

_CANCEL_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


_Block: TypeAlias = Callable[[], object]
"""Reads or copies a piece of a source."""


class _HostCopy:
    """One copy of the HostCopyEngine, made of blocks that may finish in any order."""

    def __init__(self, num_bytes: int, stall: Callable[[], str | None]) -> None:
        self.num_bytes = num_bytes
        self._stall = stall
        self.num_blocks_left = 0
        self.failure: BaseException | None = None
        self.is_abandoned = False
        self._arrived = threading.Event()

    @property
    def is_done(self) -> bool:
        return self._arrived.is_set()

    @property
    def is_wanted(self) -> bool:
        return self.failure is None and not self.is_abandoned

    def wait(self, cancel: threading.Event | None = None) -> None:
        # Two events cannot be waited for at once; and on Windows a wait without a timeout ignores Ctrl-C.
        while not self._arrived.is_set():
            if complaint := self._stall():
                raise LinkError(complaint)
            if cancel is not None and cancel.is_set():
                raise PassCancelledError("The pass was cancelled while it waited for a layer.")
            self._arrived.wait(_CANCEL_POLL_SECONDS)
        if self.failure is not None and not self.is_abandoned:
            raise LinkError(str(self.failure) or f"A copy thread died ({self.failure!r}).") from self.failure

    def abandon(self) -> None:
        self.is_abandoned = True

    def arrive(self) -> None:
        self._arrived.set()


class HostCopyEngine(Closeable):
    """Fills slots in host memory with a few threads that take blocks from one queue, so that files are read in order.

    A block that fails fails its own copy only. A context manager; closing it joins the threads.
    """

    def __init__(
        self,
        *,
        num_threads: int = DEFAULT_NUM_THREADS,
        block_bytes: int = DEFAULT_BLOCK_BYTES,
        direct: bool | None = None,
        cached_first: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`direct`: True demands O_DIRECT, False never uses it, None uses it where file system and layout allow it.

        `cached_first`: what the page cache holds is copied from there. Where no block has come for the patience, every
        wait raises LinkError, and `close` gives up.
        """
        if num_threads < 1 or block_bytes < PAGE_BYTES or block_bytes % PAGE_BYTES:
            raise ValueError(f"{num_threads} threads and blocks of {block_bytes} bytes: need 1 or more, in whole pages")
        self.block_bytes = block_bytes
        self.num_threads = num_threads
        self._direct = direct
        self._is_cached_first = cached_first
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._files: dict[Path, SourceFile] = {}
        self._queue: deque[tuple[_HostCopy, _Block]] = deque()
        self._wake = threading.Condition()
        self._is_closed = False
        self._bytes_copied = 0
        self._num_in_flight = 0
        self._waited_seconds = self._polled_at = 0.0
        self._busy_seconds = 0.0
        self._busy_since = 0.0
        self._listener: Callable[[], None] = lambda: None
        self._threads: list[threading.Thread] = []
        try:
            for index in range(num_threads):
                self._threads.append(self._begin_thread(index))
        except RuntimeError as error:
            self.close()
            raise LinkError(
                f"Only {len(self._threads)} of {num_threads} threads that read could be started ({error}); choose "
                "fewer, or raise the limit of this process."
            ) from error

    @property
    def busy_seconds(self) -> float:
        with self._wake:
            running = self._clock() - self._busy_since if self._num_in_flight else 0.0
            return self._busy_seconds + running

    @property
    def computed_seconds(self) -> None:
        """Nothing to add to the caller's own clock."""
        return None

    @property
    def bytes_copied(self) -> int:
        with self._wake:
            return self._bytes_copied

    @property
    def is_direct(self) -> bool:
        """Whether every file opened so far is read with O_DIRECT; True before the first one, unless it is ruled out."""
        return self._direct is not False and all(file.is_direct for file in self._files.values())

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        """Nothing to do: copies begin when they are asked for."""

    def notify(self, listener: Callable[[], None]) -> None:
        self._listener = listener

    def start(self, source: CopySource, slot: torch.Tensor) -> _HostCopy:
        copy = _HostCopy(source.payload_bytes, self._stall)
        blocks: list[_Block] = []
        try:
            blocks.extend(self._split(source, slot))
        except (OSError, LinkError) as error:
            copy.failure = error
        with self._wake:
            if self._is_closed:
                raise RuntimeError("the copy engine is closed")
            if self._num_in_flight == 0:
                self._busy_since = self._clock()
                self._waited_seconds = 0.0
            self._num_in_flight += 1
            copy.num_blocks_left = len(blocks)
            self._queue.extend((copy, block) for block in blocks)
            if not blocks:
                self._arrive(copy)
            self._wake.notify(len(blocks))
        if not blocks:
            self._listener()
        return copy

    def bring_back(self, rows: torch.Tensor, destination: torch.Tensor) -> _HostCopy:
        """Copy at once: a pass writes little, which would only wait behind whole layers."""
        copy = _HostCopy(0, self._stall)
        np.copyto(destination.numpy(), rows.numpy())
        copy.arrive()
        return copy

    def release(self, slot: torch.Tensor) -> None:
        """Nothing to do: host computation is over when the caller says so."""

    def close(self) -> None:
        """Abandon what is queued, join the threads and close the files; idempotent.

        A disk that does not answer is left alone with its threads, its files and the memory that it may write to.
        """
        with self._wake:
            self._is_closed = True
            for copy, _ in self._queue:
                copy.failure = copy.failure or LinkError("The copy engine was closed before the copy was complete.")
            self._wake.notify_all()
        patience = Patience(self._patience_seconds - self._waited_seconds)
        for thread in self._threads:
            thread.join(patience.seconds_left)
        if any(thread.is_alive() for thread in self._threads):
            logger.warning("a disk has not answered for %g s; its files stay open", self._patience_seconds)
            return
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _stall(self) -> str | None:
        """Return what is wrong where no block has come in all the time that somebody has waited for one."""
        with self._wake:
            now = self._clock()
            passed, self._polled_at = now - self._polled_at, now
            if passed < _LONGEST_POLL_SECONDS:  # else nobody waited, or this process was stopped
                self._waited_seconds += passed
            if self._waited_seconds < self._patience_seconds:
                return None
        return (
            f"No bytes of a layer have come for {self._patience_seconds:g} seconds; check that the disk still answers, "
            "then try again."
        )

    def _split(self, source: CopySource, slot: torch.Tensor) -> Iterator[_Block]:
        assert slot.numel() >= source.slab_bytes, "the slot is smaller than the layer"
        destination: NDArray[np.uint8] = slot.numpy()
        if isinstance(source, HostSource):
            origin: NDArray[np.uint8] = source.slab.numpy()
            destination = destination[source.in_slot]
            for begin in range(0, len(origin), self.block_bytes):
                end = min(begin + self.block_bytes, len(origin))
                # Not torch's copy_: it would give every thread of ours a pool of OpenMP threads of its own.
                yield partial(np.copyto, destination[begin:end], origin[begin:end])
            return
        is_aligned = source.is_phase_aligned and slot.data_ptr() % PAGE_BYTES == 0
        if self._direct and not is_aligned:
            raise LinkError(
                f"{source.ranges[0].file} does not store its weights where O_DIRECT could read them; "
                "choose buffered reads instead."
            )
        for file in {piece.file: self._open(piece.file) for piece in source.ranges}.values():
            file.check_unchanged()
        for piece in source.ranges:
            file = self._files[piece.file]
            is_direct = is_aligned and file.is_direct
            blocks = split_range(piece, file, destination.data, block_bytes=self.block_bytes, is_direct=is_direct)
            yield from (block.transfer for block in blocks)

    def _open(self, path: Path) -> SourceFile:
        if path not in self._files:
            try:
                self._files[path] = SourceFile(path, direct=self._direct, cached_first=self._is_cached_first)
            except OSError as error:
                raise LinkError(
                    f"{path} cannot be opened ({error.strerror or error}); check that it is there."
                ) from error
        return self._files[path]

    def _begin_thread(self, index: int) -> threading.Thread:
        thread = threading.Thread(target=self._work, args=(index,), name=f"copy-{index}", daemon=True)
        thread.start()
        return thread

    def _work(self, index: int) -> None:
        job: tuple[_HostCopy, _Block] | None = None
        try:
            while (job := self._next_job()) is not None:
                copy, block = job
                failure: Exception | None = None
                if copy.is_wanted:
                    try:
                        block()
                    except Exception as error:  # raised where the copy is waited for; the thread lives on
                        failure = error
                job = None
                self._finish_block(copy, failure)
        except BaseException as death:  # likewise, and another thread takes this one's place
            logger.error("a copy thread died: %r", death)
            if job is not None:
                self._finish_block(job[0], death)
            with self._wake:
                if not self._is_closed:
                    self._threads[index] = self._begin_thread(index)

    def _next_job(self) -> tuple[_HostCopy, _Block] | None:
        with self._wake:
            while not self._queue and not self._is_closed:
                self._wake.wait()
            return self._queue.popleft() if self._queue else None

    def _finish_block(self, copy: _HostCopy, failure: BaseException | None) -> None:
        with self._wake:
            copy.failure = copy.failure or failure
            copy.num_blocks_left -= 1
            self._waited_seconds = 0.0
            has_arrived = copy.num_blocks_left == 0
            if has_arrived:
                self._arrive(copy)
        if has_arrived:
            self._listener()

    def _arrive(self, copy: _HostCopy) -> None:
        """Account for a copy whose slot nothing writes to any more; with the lock held."""
        self._num_in_flight -= 1
        if self._num_in_flight == 0:
            self._busy_seconds += self._clock() - self._busy_since
        if copy.is_wanted:
            self._bytes_copied += copy.num_bytes
        copy.arrive()
