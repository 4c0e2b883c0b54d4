"""Two links at once: files are read into a few host stages ahead of time, and every layer goes to its slot in order.

    disk ──reader──► [stage] [stage] ──┐
    pinned host memory ────────────────┴─link──► [slot] [slot]

What a device cannot take from where it lies (a file, or pageable memory) is brought to a stage first, in pinned memory
where there is any; the reader runs ahead of the ring along a known cycle, so that it works while other layers are
on the link. A pass then costs the slower link's time, not the sum.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.closing import Closeable
from offload.copying.copy_engine import CopyEngine, CopySource, HostSource, PendingCopy
from offload.errors import LinkError, PassCancelledError

_POLL_SECONDS = 0.001
_CANCEL_POLL_SECONDS = 0.02

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Stage:
    """Host memory for one source on its way."""

    buffer: torch.Tensor
    source: CopySource | None = None
    """What it holds or waits for; None if free."""
    reading: PendingCopy | None = None
    sending: PendingCopy | None = None
    """The copy from here to a slot, once it was started."""


_AT_ONCE = threading.Event()  # a wait that is given up before it begins, unless there is nothing to wait for
_AT_ONCE.set()


class _StagedCopy:
    """A copy of the StagedCopyEngine: queued, then a copy of the link's engine."""

    def __init__(self, source: CopySource, slot: torch.Tensor) -> None:
        self.source = source
        self.slot = slot
        self.failure: BaseException | None = None
        self.sending: PendingCopy | None = None
        self.is_abandoned = False
        self._left_queue = threading.Event()

    @property
    def is_queued(self) -> bool:
        return not self._left_queue.is_set()

    @property
    def is_done(self) -> bool:
        if self.is_queued:
            return False
        return self.sending is None or self.sending.is_done

    def wait(self, cancel: threading.Event | None = None) -> None:
        while not self._left_queue.wait(_CANCEL_POLL_SECONDS):
            if cancel is not None and cancel.is_set():
                raise PassCancelledError("The pass was cancelled while it waited for a layer.")
        if self.sending is not None:
            self.sending.wait(cancel)
        elif self.failure is not None and not self.is_abandoned:
            raise LinkError(str(self.failure) or f"A copy thread died ({self.failure!r}).") from self.failure

    def abandon(self) -> None:
        self.is_abandoned = True
        if self.sending is not None:
            self.sending.abandon()

    def leave_queue(self, sending: PendingCopy | None, failure: BaseException | None = None) -> None:
        self.sending, self.failure = sending, failure
        if self.is_abandoned and sending is not None:
            sending.abandon()
        self._left_queue.set()


class StagedCopyEngine(Closeable):
    """A CopyEngine that feeds `link` from host memory, through stages where a source needs one; closes both engines.

    One thread of its own moves things on: it starts a copy when its stage is full, and the next read when a stage is
    empty. A read that fails fails its own copy; the next copy of the same source reads it again.
    """

    def __init__(
        self,
        reader: CopyEngine,
        link: CopyEngine,
        stages: Sequence[torch.Tensor],
        *,
        needs_stage: Callable[[CopySource], bool] = lambda source: isinstance(source, LayerLayout),
    ) -> None:
        """`stages` are uint8 buffers, each as large as the largest source for which `needs_stage` holds."""
        self.reader = reader
        """Brings sources to stages: the disk's engine."""
        self.link = link
        """Brings stages and host memory to slots."""
        self._needs_stage = needs_stage
        self._stages = [_Stage(buffer) for buffer in stages]
        self._cycle: tuple[CopySource, ...] = ()
        self._ahead: deque[_Stage] = deque()  # stages with a source, in the order of their reads
        self._leaving: list[_Stage] = []  # stages whose source is not wanted any more, while it is still written there
        self._next_in_cycle: int | None = None
        self._queue: deque[_StagedCopy] = deque()
        self._wake = threading.Condition()
        self._is_closed = False
        self._thread = self._begin_thread()

    @property
    def busy_seconds(self) -> float:
        """Of the link to the device; the disk's is `reader.busy_seconds`."""
        return self.link.busy_seconds

    @property
    def computed_seconds(self) -> float | None:
        return self.link.computed_seconds

    @property
    def bytes_copied(self) -> int:
        """Over the link to the device."""
        return self.link.bytes_copied

    @property
    def num_stages(self) -> int:
        """Sources that can be on their way at once."""
        return len(self._stages)

    @property
    def stage_bytes(self) -> int:
        return sum(stage.buffer.numel() for stage in self._stages)

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        """Say in which order sources will be asked for, over and over; reads begin with the first that is asked for."""
        with self._wake:
            self._cycle = tuple(source for source in cycle if self._needs_stage(source))
            self._next_in_cycle = None

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        with self._wake:
            if self._is_closed:
                raise RuntimeError("the copy engine is closed")
            if not self._queue and not self._needs_stage(source):
                return self.link.start(source, slot)
            copy = _StagedCopy(source, slot)
            self._queue.append(copy)
            self._wake.notify_all()
        return copy

    def release(self, slot: torch.Tensor) -> None:
        self.link.release(slot)

    def close(self) -> None:
        with self._wake:
            self._is_closed = True
            for copy in self._queue:
                copy.leave_queue(None, LinkError("The copy engine was closed before the copy was complete."))
            self._queue.clear()
            self._wake.notify_all()
        self._thread.join()
        self.link.close()
        self.reader.close()

    def _begin_thread(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="stages", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        try:
            with self._wake:
                while not self._is_closed:
                    self._drop_abandoned()
                    self._free_stages()
                    self._send()
                    self._read_ahead()
                    is_sending = any(stage.sending is not None for stage in self._ahead)
                    is_waiting = bool(self._queue or self._leaving or is_sending)
                    self._wake.wait(_POLL_SECONDS if is_waiting else None)
        except BaseException as death:  # raised where it is waited for; another thread takes this one's place
            logger.error("the thread that feeds the link died: %r", death)
            with self._wake:
                while self._queue:
                    self._queue.popleft().leave_queue(None, death)
                self._forget_reads()
                if not self._is_closed:
                    self._thread = self._begin_thread()

    def _drop_abandoned(self) -> None:
        for copy in [copy for copy in self._queue if copy.is_abandoned]:
            self._queue.remove(copy)
            copy.leave_queue(None)

    def _free_stages(self) -> None:
        for stage in [stage for stage in self._ahead if stage.sending is not None and stage.sending.is_done]:
            self._ahead.remove(stage)
            stage.source = stage.reading = stage.sending = None
        for stage in [stage for stage in self._leaving if stage.reading is None or stage.reading.is_done]:
            self._leaving.remove(stage)
            stage.source = stage.reading = None

    def _send(self) -> None:
        """Start every copy at the head of the queue that can start now."""
        while self._queue:
            copy = self._queue[0]
            origin: CopySource = copy.source
            stage: _Stage | None = None
            if self._needs_stage(copy.source):
                stage = self._stage_of(copy.source)
                awaited = stage or next(iter(self._leaving), None)
                try:
                    if awaited is not None and awaited.reading is not None:
                        awaited.reading.wait(_AT_ONCE)
                except PassCancelledError:
                    return
                except LinkError as error:
                    self._queue.popleft().leave_queue(None, error)
                    self._forget_reads()
                    continue
                if stage is None:
                    return
                filled = stage.buffer[: copy.source.slab_bytes]
                origin = HostSource(filled, copy.source.payload_bytes, copy.source.moves)
            self._queue.popleft()
            try:
                sending = self.link.start(origin, copy.slot)
            except Exception as error:
                copy.leave_queue(None, error)
                continue
            if stage is not None:
                stage.sending = sending
            copy.leave_queue(sending)

    def _stage_of(self, source: CopySource) -> _Stage | None:
        """Return the stage that holds or awaits the source; read anew from it if the reads had gone elsewhere."""
        for stage in self._ahead:
            if stage.source is source and stage.sending is None:
                return stage
        if any(stage.sending is None for stage in self._ahead):
            self._forget_reads()
        return self._begin_read(source)

    def _forget_reads(self) -> None:
        """Drop what was read ahead; stages that are being written to or sent from are freed when that is over.

        Nobody waits for them here: a disk that has stopped to answer would hold up who cancels, and who closes.
        """
        for stage in [stage for stage in self._ahead if stage.sending is None]:
            if stage.reading is not None:
                stage.reading.abandon()
            self._ahead.remove(stage)
            self._leaving.append(stage)
        self._free_stages()
        self._next_in_cycle = None

    def _begin_read(self, source: CopySource) -> _Stage | None:
        free = next((stage for stage in self._stages if stage.source is None), None)
        if free is None:
            return None
        free.reading = self.reader.start(source, free.buffer)  # may raise: the stage is still free then
        free.source = source
        self._ahead.append(free)
        place = next((place for place, item in enumerate(self._cycle) if item is source), None)
        self._next_in_cycle = None if place is None else (place + 1) % len(self._cycle)
        return free

    def _read_ahead(self) -> None:
        """Fill every free stage with the next sources of the cycle, but never with one that is here already."""
        while self._next_in_cycle is not None:
            source = self._cycle[self._next_in_cycle]
            if any(stage.source is source and stage.sending is None for stage in self._ahead):
                return
            if self._begin_read(source) is None:
                return
