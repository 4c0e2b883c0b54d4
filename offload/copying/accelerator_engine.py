"""Copies pinned slabs to device slots behind the computation's back: one copy stream, and events between the two.

    copy stream:     wait compute_done[slot] -> copy in chunks -> record copy_done
    compute stream:  wait copy_done -> a layer's kernels -> record compute_done[slot]
    return stream:   wait for the kernels that wrote rows -> copy these to the host; the copy stream waits for it

Nothing here synchronises a device, allocates per visit or calls record_stream. The host does not run away either: a
layer is handed out when the copy before it has arrived, so that progress and cancellation mean something. Written
against torch.Stream and torch.Event, so any accelerator of torch runs the same lines.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from offload.closing import PATIENCE_SECONDS, Closeable, Patience
from offload.copying.copy_engine import CopySource, HostSource
from offload.errors import LinkError, PassCancelledError

DEFAULT_CHUNK_BYTES = 8 << 20
"""Small uploads queue behind at most this much of a layer on the one copy engine of a device: 0.3 ms at 25 GB/s."""

_CANCEL_POLL_SECONDS = 0.02
_RETURN_POLL_SECONDS = 0.0005  # the end of a pass waits for its last rows, which take less

logger = logging.getLogger(__name__)


_never_freed: list["_Transfer"] = []
"""Copies that a device was still making when it was given up on, with the memory that they read."""


class Accelerator:
    """What the engine needs of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def create_stream(self) -> torch.Stream:
        """Return a new stream."""
        return torch.Stream(self._device)

    def current_stream(self) -> torch.Stream:
        """Return the stream on which the calling thread computes."""
        return torch.accelerator.current_stream(self._device)

    def create_event(self) -> torch.Event:
        """Return a new event, timed where the device can, which says how busy the link is."""
        return torch.Event(self._device, enable_timing=True)

    def block(self, event: torch.Event) -> None:
        """Return when the device has passed the event; other threads run meanwhile."""
        with torch.accelerator.device_index(self._device.index):  # else a new thread opens a context on device 0
            event.synchronize()

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: torch.Stream) -> None:
        """Enqueue the copy of a pinned piece on `stream` and return at once."""
        with stream:
            destination.copy_(source, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Span:
    """Two events around a piece of device work; they go back to the pool when it is done."""

    begun: torch.Event
    done: torch.Event


@dataclass(slots=True)
class _SlotUse:
    """The computation that a slot was handed out for."""

    span: _Span
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Transfer:
    num_bytes: int
    slot_address: int
    span: _Span
    issued_at: float
    is_companion: bool = False
    failure: Exception | None = None
    is_complete: bool = False
    is_watched: bool = False
    """Whether a thread will wait for it, or does, so that its events are not another's yet."""
    is_abandoned: bool = False
    reads: torch.Tensor | None = field(default=None, repr=False)  # keeps a source alive that the device still reads
    writes: torch.Tensor | None = field(default=None, repr=False)  # host memory that it still writes to


class AcceleratorCopyEngine(Closeable):
    """A CopyEngine for slabs in pinned memory and slots on an accelerator; see the module for the order of events.

    Pageable slabs are correct too, but torch then copies synchronously. `start` may be called from one other thread
    than `wait` and `release`. A thread of its own waits for the device and wakes whoever waits for a copy.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[], None] | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`chunk_bytes` is the most that one device copy carries; `close` gives up on a device after the patience.

        `pause` is called between two looks at an event, in the place of the thread that waits.
        """
        if chunk_bytes < 1:
            raise ValueError(f"chunks of {chunk_bytes} bytes: need 1 or more")
        self.chunk_bytes = chunk_bytes
        self._accelerator = accelerator
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._copy_stream = accelerator.create_stream()
        self._return_stream: torch.Stream | None = None
        self._uses: dict[int, _SlotUse] = {}  # by the slot's address
        self._pool: list[_Span] = []
        self._in_flight: deque[_Transfer] = deque()
        self._returning: deque[_Transfer] = deque()
        self._computing: deque[_Span] = deque()
        self._watched: deque[_Transfer] = deque()
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._listener: Callable[[], None] = lambda: None
        self._last_handed_out: _Transfer | None = None
        self._can_time = True
        self._busy_until = clock()
        self._busy_seconds = self._computed_seconds = 0.0
        self._bytes_copied = 0
        self._is_closed = False
        self._pause = pause or self._wait_a_while
        self._thread = None if pause else threading.Thread(target=self._watch, name="device copies", daemon=True)
        if self._thread is not None:
            self._thread.start()

    @property
    def busy_seconds(self) -> float:
        with self._lock:
            self._collect()
            return self._busy_seconds

    @property
    def computed_seconds(self) -> float | None:
        """Total device time of the computations that slots were handed out for; None if the device has no timers."""
        with self._lock:
            self._collect()
            return self._computed_seconds if self._can_time else None

    @property
    def bytes_copied(self) -> int:
        with self._lock:
            self._collect()
            return self._bytes_copied

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        """Nothing to do: host memory is ready as it is."""

    def notify(self, listener: Callable[[], None]) -> None:
        self._listener = listener

    def start(self, source: CopySource, slot: torch.Tensor) -> "_DeviceCopy":
        """Enqueue the copy behind the slot's last computation; see CopyEngine. `source` lies in host memory."""
        if not isinstance(source, HostSource):
            raise TypeError("a device is fed from host memory; files go through a StagedCopyEngine")
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the copy engine is closed")
            self._collect()
            transfer = _Transfer(
                source.payload_bytes,
                slot.data_ptr(),
                self._take_span(),
                self._clock(),
                source.is_companion,
                reads=source.slab,
            )
            try:
                self._enqueue(source, slot, transfer)
            except RuntimeError as error:
                transfer.failure = error
            self._in_flight.append(transfer)
            if self._thread is not None:
                transfer.is_watched = True
                self._watched.append(transfer)
                self._wake.notify_all()
        return _DeviceCopy(self, transfer)

    def bring_back(self, rows: torch.Tensor, destination: torch.Tensor) -> "_ReturningCopy":
        """Enqueue the copy behind the computation so far, and every later copy to the device behind it.

        That holds copies up for no longer than the rows take, and then even a slot that nothing is copied to, because
        the first pass has no rows yet, is written to only when the rows before it are safe.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the copy engine is closed")
            self._collect()
            self._return_stream = self._return_stream or self._accelerator.create_stream()
            span = self._take_span()
            transfer = _Transfer(0, rows.data_ptr(), span, self._clock(), reads=rows, writes=destination)
            self._accelerator.current_stream().record_event(span.begun)
            self._return_stream.wait_event(span.begun)
            try:
                self._accelerator.copy(destination, rows, self._return_stream)
            except RuntimeError as error:
                transfer.failure = error
            finally:
                self._return_stream.record_event(span.done)
                self._copy_stream.wait_event(span.done)
            self._returning.append(transfer)
        return _ReturningCopy(self, transfer)

    def _take_span(self) -> _Span:
        if self._pool:
            return self._pool.pop()
        return _Span(self._accelerator.create_event(), self._accelerator.create_event())

    def _enqueue(self, source: HostSource, slot: torch.Tensor, transfer: _Transfer) -> None:
        use = self._uses.pop(transfer.slot_address, None)
        if use is not None and use.is_over:
            self._copy_stream.wait_event(use.span.done)
        self._copy_stream.record_event(transfer.span.begun)
        try:
            for piece in source.pieces(self.chunk_bytes):
                destination = slot[piece.device_offset : piece.device_offset + piece.num_bytes]
                origin = source.slab[piece.slab_offset : piece.slab_offset + piece.num_bytes]
                self._accelerator.copy(destination, origin, self._copy_stream)
        finally:
            self._copy_stream.record_event(transfer.span.done)  # also where a chunk failed: the others still write

    def release(self, slot: torch.Tensor) -> None:
        """Record where the computation enqueued so far ends: the slot's next copy begins behind it."""
        with self._lock:
            use = self._uses.get(slot.data_ptr())
            if use is None or use.is_over:  # the events of one that is over may be another's by now
                use = self._begin_use(slot.data_ptr())
            self._accelerator.current_stream().record_event(use.span.done)
            self._computing.append(use.span)
            use.is_over = True

    def _begin_use(self, slot_address: int) -> _SlotUse:
        use = self._uses.get(slot_address)
        if use is None or use.is_over:  # else another part of the same layer was handed out before
            use = self._uses[slot_address] = _SlotUse(self._take_span())
        self._accelerator.current_stream().record_event(use.span.begun)
        return use

    def close(self) -> None:
        """Wait until the device writes no more; one that does not answer is left alone, with what it may read."""
        if self._is_closed:
            return
        with self._lock:
            self._is_closed = True
            self._wake.notify_all()
        patience = Patience(self._patience_seconds)
        try:
            for transfer in (*self._in_flight, *self._returning):
                transfer.is_abandoned = True
                self.block_until_arrived(transfer, patience)
        except PassCancelledError:
            logger.warning("the device has not finished its copies for %g s", self._patience_seconds)
            _never_freed.extend((*self._in_flight, *self._returning))
            return
        if self._thread is not None:
            self._thread.join(patience.seconds_left)
        self._uses.clear()
        self._computing.clear()
        self._pool.clear()

    def hand_out(self, transfer: _Transfer, cancel: threading.Event | None) -> None:
        """Make the compute stream wait for the copy, and the host for the copy handed out before it."""
        with self._lock:  # the events of a copy that has arrived may be another's by now
            self._collect()
            if transfer.failure is None and not transfer.is_complete:
                self._accelerator.current_stream().wait_event(transfer.span.done)
            if transfer.is_companion:  # its layer says how far the host may be
                return
            self._begin_use(transfer.slot_address)
        before, self._last_handed_out = self._last_handed_out, transfer
        if before is not None and before.slot_address != transfer.slot_address:  # of another layer
            self.block_until_arrived(before, cancel)

    def block_until_arrived(self, transfer: _Transfer, cancel: threading.Event | None) -> None:
        """Return when the device has done the copy; PassCancelledError if `cancel` is set first."""
        with self._lock:
            while not self.has_arrived(transfer):
                if cancel is not None and cancel.is_set():
                    raise PassCancelledError("The pass was cancelled while it waited for a layer.")
                self._pause()

    def _wait_a_while(self) -> None:
        """Wait until some copy has arrived, but not so long that a cancellation is noticed late; with the lock held."""
        self._wake.wait(_RETURN_POLL_SECONDS if self._returning else _CANCEL_POLL_SECONDS)

    def has_arrived(self, transfer: _Transfer) -> bool:
        """Return whether the copy writes no more."""
        with self._lock:
            self._collect()
            return transfer.is_complete

    def _collect(self) -> None:
        """Account for what the device has done, in order, and recycle its events; with the lock held."""
        has_news = False
        while self._in_flight and self._is_passed(self._in_flight[0].span, self._in_flight[0]):
            transfer = self._in_flight.popleft()
            transfer.is_complete, transfer.reads = True, None
            if transfer.failure is None:
                self._busy_seconds += self._copy_seconds(transfer)
                if not transfer.is_abandoned:
                    self._bytes_copied += transfer.num_bytes
            self._recycle(transfer)
            has_news = True
        while self._returning and self._is_passed(self._returning[0].span, self._returning[0]):
            transfer = self._returning.popleft()
            transfer.is_complete, transfer.reads, transfer.writes = True, None, None
            self._recycle(transfer)
        if has_news:
            self._wake.notify_all()
            self._listener()
        while self._computing and self._is_passed(self._computing[0]):
            span = self._computing.popleft()
            self._computed_seconds += self._device_seconds(span) or 0.0
            self._pool.append(span)

    def _recycle(self, transfer: _Transfer) -> None:
        if transfer.is_complete and not transfer.is_watched:
            self._pool.append(transfer.span)

    def _watch(self) -> None:
        """Wait for one copy after the other, so that nobody has to look again and again whether it has arrived."""
        while (transfer := self._next_watched()) is not None:
            if not transfer.is_complete:
                with suppress(RuntimeError):  # the device is lost, as the look at the event will say
                    self._accelerator.block(transfer.span.done)
            with self._lock:
                transfer.is_watched = False
                if transfer.is_complete:
                    self._recycle(transfer)
                self._collect()

    def _next_watched(self) -> _Transfer | None:
        with self._wake:
            self._wake.wait_for(lambda: self._watched or self._is_closed)
            return self._watched.popleft() if self._watched else None

    def _is_passed(self, span: _Span, transfer: _Transfer | None = None) -> bool:
        try:
            return span.done.query()
        except RuntimeError as error:  # the device itself is lost: nothing writes any more
            if transfer is not None:
                transfer.failure = transfer.failure or error
            return True

    def _copy_seconds(self, transfer: _Transfer) -> float:
        now = self._clock()
        begun, self._busy_until = max(transfer.issued_at, self._busy_until), now
        seconds = self._device_seconds(transfer.span)
        return max(0.0, now - begun) if seconds is None else seconds

    def _device_seconds(self, span: _Span) -> float | None:
        """Return what the device's own timers say of work that is done; None if it has none."""
        if self._can_time:
            try:
                return span.begun.elapsed_time(span.done) / 1000
            except (RuntimeError, NotImplementedError):
                self._can_time = False
        return None


class _DeviceCopy:
    def __init__(self, engine: AcceleratorCopyEngine, transfer: _Transfer) -> None:
        self._engine = engine
        self._transfer = transfer

    @property
    def is_done(self) -> bool:
        return self._engine.has_arrived(self._transfer)

    def wait(self, cancel: threading.Event | None = None) -> None:
        transfer = self._transfer
        if transfer.is_abandoned:
            self._engine.block_until_arrived(transfer, cancel)
            return
        if transfer.failure is None:
            self._engine.hand_out(transfer, cancel)
        if transfer.failure is not None:
            raise LinkError(f"A copy to the device failed: {transfer.failure}") from transfer.failure

    def abandon(self) -> None:
        self._transfer.is_abandoned = True


class _ReturningCopy(_DeviceCopy):
    """A copy to host memory, where the host itself looks for the bytes."""

    def wait(self, cancel: threading.Event | None = None) -> None:
        self._engine.block_until_arrived(self._transfer, cancel)
        failure = self._transfer.failure
        if failure is not None and not self._transfer.is_abandoned:
            raise LinkError(f"A copy from the device failed: {failure}") from failure
