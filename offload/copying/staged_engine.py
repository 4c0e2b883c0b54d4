"""Two links at once: files are read into a few host stages ahead of time, and every layer goes to its slot in order.

    disk ──reader──► [stage] [stage] [stage] ──┐
    pinned host memory ────────────────────────┴─link──► [slot] [slot]

What a device cannot take from where it lies (a file, or pageable memory) is brought to a stage first, in pinned memory
where there is any. A stage may be smaller than a layer, which then passes in pieces: while one is sent, the next is
read. The reader runs ahead of the ring along a known cycle, so that it works while other layers are on the link. A
pass then costs the slower link's time, not the sum.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.closing import Closeable
from offload.copying.copy_engine import CopyEngine, CopySource, HostSource, PendingCopy, part_in_stage, part_to_read
from offload.errors import LinkError, PassCancelledError
from offload.stage_ring import StageRing, piece_bounds

_LISTEN_SECONDS = 0.25
"""How often a reader that says nothing is asked whether its disk still answers."""
_CANCEL_POLL_SECONDS = 0.02

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Bytes of a source that pass through one stage."""

    source: CopySource
    begin: int
    end: int

    def to_read(self) -> CopySource:
        return part_to_read(self.source, self.begin, self.end)

    def to_send(self, buffer: torch.Tensor) -> HostSource:
        return part_in_stage(self.source, self.begin, self.end, buffer)


@dataclass(slots=True, eq=False)
class _Stage:
    """Host memory for one piece on its way."""

    buffer: torch.Tensor
    piece: _Piece | None = None
    """What it holds or waits for; None if free."""
    reading: PendingCopy | None = None
    sending: PendingCopy | None = None
    """The copy from here to a slot, once it was started."""


_AT_ONCE = threading.Event()  # a wait that is given up before it begins, unless there is nothing to wait for
_AT_ONCE.set()


class _StagedCopy:
    """A copy of the StagedCopyEngine: queued, then one or several copies of the link's engine."""

    def __init__(self, source: CopySource, slot: torch.Tensor, pieces: Sequence[_Piece], notice: Callable[[], None]):
        """`pieces`: none where the link takes the source from where it lies."""
        self.source = source
        self.slot = slot
        self.coming = deque(pieces)
        """Pieces that have not been sent yet, in order."""
        self.failure: BaseException | None = None
        self.is_abandoned = False
        self._notice = notice
        self._sendings: list[PendingCopy] = []
        self._left_queue = threading.Event()

    @property
    def is_done(self) -> bool:
        return self._left_queue.is_set() and all(sending.is_done for sending in self._sendings)

    def wait(self, cancel: threading.Event | None = None) -> None:
        while not self._left_queue.wait(_CANCEL_POLL_SECONDS):
            if cancel is not None and cancel.is_set():
                raise PassCancelledError("The pass was cancelled while it waited for a layer.")
        if self.failure is not None and not self.is_abandoned:
            raise LinkError(str(self.failure) or f"A copy thread died ({self.failure!r}).") from self.failure
        for sending in self._sendings:
            sending.wait(cancel)

    def abandon(self) -> None:
        self.is_abandoned = True
        for sending in tuple(self._sendings):
            sending.abandon()
        self._notice()

    def add(self, sending: PendingCopy) -> None:
        """Keep a copy of the link's that has begun."""
        self._sendings.append(sending)
        if self.is_abandoned:  # meanwhile
            sending.abandon()

    def leave_queue(self, failure: BaseException | None = None) -> None:
        """Everything was sent, or nothing more will be."""
        self.failure = failure
        self._left_queue.set()


class StagedCopyEngine(Closeable):
    """A CopyEngine that feeds `link` from host memory, through stages where a source needs them; closes both engines.

    One thread of its own moves things on, whenever one of the engines says that a copy is done: it sends a piece when
    its stage is full, and reads the next when a stage is empty. A read that fails fails its own copy; the next copy of
    the same source reads it again.
    """

    def __init__(
        self,
        reader: CopyEngine,
        link: CopyEngine,
        stages: Sequence[torch.Tensor],
        *,
        needs_stage: Callable[[CopySource], bool] = lambda source: isinstance(source, LayerLayout),
    ) -> None:
        """`stages` are uint8 buffers of one size, whole pages; sources that are larger pass in pieces."""
        self.reader = reader
        """Brings sources to stages: the disk's engine."""
        self.link = link
        """Brings stages and host memory to slots."""
        self.ring = StageRing(len(stages), min(stage.numel() for stage in stages))
        """What sources pass through."""
        self._needs_stage = needs_stage
        self._stages = [_Stage(buffer) for buffer in stages]
        self._cycle: tuple[_Piece, ...] = ()
        self._places: dict[_Piece, int] = {}  # in the cycle
        self._pieces: dict[int, tuple[_Piece, ...]] = {}  # of the sources in the cycle, by id
        self._ahead: deque[_Stage] = deque()  # stages with a piece, in the order of their reads
        self._leaving: list[_Stage] = []  # stages whose piece is not wanted any more, while it is still written there
        self._next_in_cycle: int | None = None
        self._queue: deque[_StagedCopy] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._is_closed = False
        self._listener: Callable[[], None] = lambda: None
        reader.notify(self._notice)
        link.notify(self._notice)
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

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        """Say in which order sources will be asked for, over and over; reads begin with the first that is asked for."""
        with self._lock:
            staged = filter(self._needs_stage, cycle)
            self._pieces = {id(source): self._pieces.get(id(source)) or self._cut(source) for source in staged}
            self._cycle = tuple(piece for source in cycle for piece in self._pieces.get(id(source), ()))
            self._places = {piece: place for place, piece in enumerate(self._cycle)}
            self._next_in_cycle = None

    def notify(self, listener: Callable[[], None]) -> None:
        self._listener = listener

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the copy engine is closed")
            is_staged = self._needs_stage(source)
            if not self._queue and not is_staged:
                return self.link.start(source, slot)
            pieces = (self._pieces.get(id(source)) or self._cut(source)) if is_staged else ()
            copy = _StagedCopy(source, slot, pieces, self._notice)
            self._queue.append(copy)
        self._notice()
        return copy

    def bring_back(self, rows: torch.Tensor, destination: torch.Tensor) -> PendingCopy:
        return self.link.bring_back(rows, destination)

    def release(self, slot: torch.Tensor) -> None:
        self.link.release(slot)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for copy in self._queue:
                copy.leave_queue(LinkError("The copy engine was closed before the copy was complete."))
            self._queue.clear()
        self._notice()
        self._thread.join()
        self.link.close()
        self.reader.close()

    def _cut(self, source: CopySource) -> tuple[_Piece, ...]:
        bounds = piece_bounds(source.slab_bytes, self.ring.num_pieces(source.slab_bytes))
        return tuple(_Piece(source, begin, end) for begin, end in bounds)

    def _notice(self) -> None:
        """Something has changed: from any thread, also from within what the engine's own calls."""
        self._changed.set()

    def _begin_thread(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="stages", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        try:
            while not self._is_closed:
                self._changed.wait(_LISTEN_SECONDS if self._queue or self._leaving else None)
                self._changed.clear()
                with self._lock:
                    self._move_on()
                self._listener()
        except BaseException as death:  # raised where it is waited for; another thread takes this one's place
            logger.error("the thread that feeds the link died: %r", death)
            with self._lock:
                while self._queue:
                    self._queue.popleft().leave_queue(death)
                self._forget_reads()
                if not self._is_closed:
                    self._thread = self._begin_thread()

    def _move_on(self) -> None:
        """Do everything that can be done now; with the lock held."""
        self._drop_abandoned()
        self._free_stages()
        self._send()
        self._read_ahead()

    def _drop_abandoned(self) -> None:
        for copy in [copy for copy in self._queue if copy.is_abandoned]:
            self._queue.remove(copy)
            copy.leave_queue()

    def _free_stages(self) -> None:
        for stage in [stage for stage in self._ahead if stage.sending is not None and stage.sending.is_done]:
            self._ahead.remove(stage)
            stage.piece = stage.reading = stage.sending = None
        for stage in [stage for stage in self._leaving if stage.reading is None or stage.reading.is_done]:
            self._leaving.remove(stage)
            stage.piece = stage.reading = None

    def _send(self) -> None:
        """Start every copy, piece by piece from the head of the queue, that can start now."""
        while self._queue:
            copy = self._queue[0]
            try:
                if not self._send_next_of(copy):
                    return
            except Exception as error:  # of a read, or of the link: the pieces that were sent go on
                self._queue.popleft().leave_queue(error)
                self._forget_reads()
                continue
            if not copy.coming:
                self._queue.popleft().leave_queue()

    def _send_next_of(self, copy: _StagedCopy) -> bool:
        """Send the next piece, or the source as it is; return whether it was there to be sent. Raises LinkError."""
        if not copy.coming:
            copy.add(self.link.start(copy.source, copy.slot))
            return True
        piece = copy.coming[0]
        stage = self._stage_of(piece)
        awaited = stage or next(iter(self._leaving), None)
        try:
            if awaited is not None and awaited.reading is not None:
                awaited.reading.wait(_AT_ONCE)
        except PassCancelledError:
            return False
        if stage is None:
            return False
        stage.sending = self.link.start(piece.to_send(stage.buffer), copy.slot)
        copy.add(stage.sending)
        copy.coming.popleft()
        return True

    def _stage_of(self, piece: _Piece) -> _Stage | None:
        """Return the stage that holds or awaits the piece; read anew from it if the reads had gone elsewhere."""
        first = next((stage for stage in self._ahead if stage.sending is None), None)
        if first is not None and first.piece is piece:
            return first
        if first is not None:
            self._forget_reads()
        return self._begin_read(piece)

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

    def _begin_read(self, piece: _Piece) -> _Stage | None:
        free = next((stage for stage in self._stages if stage.piece is None), None)
        if free is None:
            return None
        free.reading = self.reader.start(piece.to_read(), free.buffer)  # may raise: the stage is still free then
        free.piece = piece
        self._ahead.append(free)
        place = self._places.get(piece)
        self._next_in_cycle = None if place is None else (place + 1) % len(self._cycle)
        return free

    def _read_ahead(self) -> None:
        """Fill every free stage with the next pieces of the cycle, but never with one that is here already."""
        while self._next_in_cycle is not None:
            piece = self._cycle[self._next_in_cycle]
            if any(stage.piece is piece and stage.sending is None for stage in self._ahead):
                return
            if self._begin_read(piece) is None:
                return
