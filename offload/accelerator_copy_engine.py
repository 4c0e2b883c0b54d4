"""Copies pinned slabs to device slots behind the computation's back: one copy stream, and events between the two.

    copy stream:     wait compute_done[slot] -> copy in chunks -> record copy_done
    compute stream:  wait copy_done -> a layer's kernels -> record compute_done[slot]

Nothing here synchronises a device, allocates per visit or calls record_stream. The host does not run away either: a
layer is handed out when the copy before it has arrived, so that progress and cancellation mean something. Written
against torch.Stream and torch.Event, so any accelerator of torch runs the same lines; knows neither layers nor passes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import torch

from offload.copy_engine import CopySource, HostSource
from offload.errors import LinkError, PassCancelledError

DEFAULT_CHUNK_BYTES = 32 << 20
"""Small uploads queue behind at most this much of a layer on the one copy engine of a device."""

_POLL_SECONDS = 0.0002
_SPIN_POLLS = 20


class StreamEvent(Protocol):
    """A point in a stream's work; torch.Event."""

    def query(self) -> bool:
        """Whether the point has been passed."""

    def elapsed_time(self, other: "StreamEvent") -> float:
        """Milliseconds from this point to `other`, both passed."""


class WorkStream(Protocol):
    """A queue of device work in order; torch.Stream."""

    def wait_event(self, event: StreamEvent) -> None:
        """Work enqueued from now on begins after the event's point."""

    def record_event(self, event: StreamEvent) -> object:
        """Put the event's point behind all work enqueued so far."""


class Accelerator(Protocol):
    """What the engine needs of a device."""

    def create_stream(self) -> WorkStream:
        """A new stream."""

    def current_stream(self) -> WorkStream:
        """The stream on which the calling thread computes."""

    def create_event(self) -> StreamEvent:
        """A new event."""

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: WorkStream) -> None:
        """Enqueue the copy of a pinned piece on `stream` and return at once."""


class TorchAccelerator:
    """The `Accelerator` that torch knows as `device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def create_stream(self) -> torch.Stream:
        """See `Accelerator`."""
        return torch.Stream(self.device)

    def current_stream(self) -> torch.Stream:
        """See `Accelerator`."""
        return torch.accelerator.current_stream(self.device)

    def create_event(self) -> torch.Event:
        """See `Accelerator`; timed where the device can, which says how busy the link is."""
        return torch.Event(self.device, enable_timing=True)

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: torch.Stream) -> None:
        """See `Accelerator`."""
        with stream:
            destination.copy_(source, non_blocking=True)


@dataclass(slots=True)
class _SlotState:
    """What the engine remembers of a slot, by its address."""

    compute_done: StreamEvent
    is_released: bool = False


@dataclass(slots=True, eq=False)
class _Transfer:
    """One copy's events; they go back to the pool when the copy has arrived."""

    num_bytes: int
    begun: StreamEvent
    done: StreamEvent
    issued_at: float
    failure: Exception | None = None
    is_complete: bool = False
    is_abandoned: bool = False
    reads: torch.Tensor | None = field(default=None, repr=False)  # keeps a source alive that the device still reads


class AcceleratorCopyEngine:
    """A CopyEngine for slabs in pinned memory and slots on an accelerator; see the module for the order of events.

    Pageable slabs are correct too, but torch then copies synchronously. `start` may be called from one other thread
    than `wait` and `release`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        clock: Callable[[], float] = time.perf_counter,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`chunk_bytes` is the most that one device copy carries; `pause` waits between two looks at an event."""
        if chunk_bytes < 1:
            raise ValueError(f"chunks of {chunk_bytes} bytes: need 1 or more")
        self.chunk_bytes = chunk_bytes
        self._accelerator = accelerator
        self._clock = clock
        self._pause = pause
        self._copy_stream = accelerator.create_stream()
        self._slots: dict[int, _SlotState] = {}
        self._pool: list[tuple[StreamEvent, StreamEvent]] = []
        self._in_flight: deque[_Transfer] = deque()
        self._lock = threading.RLock()
        self._last_handed_out: _Transfer | None = None
        self._can_time = True
        self._busy_until = clock()
        self._busy_seconds = 0.0
        self._bytes_copied = 0
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def busy_seconds(self) -> float:
        """Total device time of the copies that have arrived."""
        with self._lock:
            self._collect()
            return self._busy_seconds

    @property
    def bytes_copied(self) -> int:
        """Total weight bytes of the copies that have arrived."""
        with self._lock:
            self._collect()
            return self._bytes_copied

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        """Nothing to do: host memory is ready as it is."""

    def start(self, source: CopySource, slot: torch.Tensor) -> "_DeviceCopy":
        """Enqueue the copy behind the slot's last computation; see CopyEngine. `source` lies in host memory."""
        if not isinstance(source, HostSource):
            raise TypeError("a device is fed from host memory; files go through a StagedCopyEngine")
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the copy engine is closed")
            self._collect()
            begun, done = self._pool.pop() if self._pool else self._create_events()
            transfer = _Transfer(source.payload_bytes, begun, done, self._clock(), reads=source.slab)
            try:
                self._enqueue(source.slab, slot, transfer)
            except RuntimeError as error:
                transfer.failure = error
            self._in_flight.append(transfer)
        return _DeviceCopy(self, transfer)

    def _create_events(self) -> tuple[StreamEvent, StreamEvent]:
        return self._accelerator.create_event(), self._accelerator.create_event()

    def _enqueue(self, slab: torch.Tensor, slot: torch.Tensor, transfer: _Transfer) -> None:
        state = self._slots.get(slot.data_ptr())
        if state is not None and state.is_released:
            self._copy_stream.wait_event(state.compute_done)
            state.is_released = False
        self._copy_stream.record_event(transfer.begun)
        try:
            for begin in range(0, slab.numel(), self.chunk_bytes):
                end = min(begin + self.chunk_bytes, slab.numel())
                self._accelerator.copy(slot[begin:end], slab[begin:end], self._copy_stream)
        finally:
            self._copy_stream.record_event(transfer.done)  # also where a chunk failed: the others still write

    def release(self, slot: torch.Tensor) -> None:
        """Record where the computation enqueued so far ends: the slot's next copy begins behind it."""
        with self._lock:
            state = self._slots.get(slot.data_ptr())
            if state is None:
                state = self._slots[slot.data_ptr()] = _SlotState(self._accelerator.create_event())
            self._accelerator.current_stream().record_event(state.compute_done)
            state.is_released = True

    def close(self) -> None:
        """Wait until nothing writes any more, and let go of every event and source; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for transfer in tuple(self._in_flight):
            transfer.is_abandoned = True
            self.block_until_arrived(transfer, None)
        self._slots.clear()
        self._pool.clear()

    def hand_out(self, transfer: _Transfer, cancel: threading.Event | None) -> None:
        """Make the compute stream wait for the copy, and the host for the copy handed out before it."""
        with self._lock:  # the events of a copy that has arrived may be another's by now
            self._collect()
            if transfer.failure is None and not transfer.is_complete:
                self._accelerator.current_stream().wait_event(transfer.done)
        before, self._last_handed_out = self._last_handed_out, transfer
        if before is not None and before is not transfer:
            self.block_until_arrived(before, cancel)

    def block_until_arrived(self, transfer: _Transfer, cancel: threading.Event | None) -> None:
        """Return when the device has done the copy; PassCancelledError if `cancel` is set first."""
        num_polls = 0
        while not self.has_arrived(transfer):
            if cancel is not None and cancel.is_set():
                raise PassCancelledError("The pass was cancelled while it waited for a layer.")
            num_polls += 1
            self._pause(0.0 if num_polls < _SPIN_POLLS else _POLL_SECONDS)

    def has_arrived(self, transfer: _Transfer) -> bool:
        """Whether the copy writes no more."""
        with self._lock:
            self._collect()
            return transfer.is_complete

    def _collect(self) -> None:
        """With the lock held: account for the copies that have arrived, in order, and recycle their events."""
        while self._in_flight and self._is_passed(self._in_flight[0]):
            transfer = self._in_flight.popleft()
            transfer.is_complete, transfer.reads = True, None
            if transfer.failure is None:
                self._busy_seconds += self._seconds_of(transfer)
                if not transfer.is_abandoned:
                    self._bytes_copied += transfer.num_bytes
            self._pool.append((transfer.begun, transfer.done))

    def _is_passed(self, transfer: _Transfer) -> bool:
        try:
            return transfer.done.query()
        except RuntimeError as error:  # the device itself is lost: nothing writes any more
            transfer.failure = transfer.failure or error
            return True

    def _seconds_of(self, transfer: _Transfer) -> float:
        now = self._clock()
        begun, self._busy_until = max(transfer.issued_at, self._busy_until), now
        if self._can_time:
            try:
                return transfer.begun.elapsed_time(transfer.done) / 1000
            except (RuntimeError, NotImplementedError):
                self._can_time = False  # then the host's own clock has to do
        return max(0.0, now - begun)


class _DeviceCopy:
    """A copy of the AcceleratorCopyEngine."""

    def __init__(self, engine: AcceleratorCopyEngine, transfer: _Transfer) -> None:
        self._engine = engine
        self._transfer = transfer

    @property
    def num_bytes(self) -> int:
        return self._transfer.num_bytes

    @property
    def is_done(self) -> bool:
        return self._engine.has_arrived(self._transfer)

    def wait(self, cancel: threading.Event | None = None) -> None:
        transfer = self._transfer
        if transfer.is_abandoned:
            self._engine.block_until_arrived(transfer, None)
            return
        if transfer.failure is None:
            self._engine.hand_out(transfer, cancel)
        if transfer.failure is not None:
            raise LinkError(f"A copy to the device failed: {transfer.failure}") from transfer.failure

    def abandon(self) -> None:
        self._transfer.is_abandoned = True
