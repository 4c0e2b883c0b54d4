"""Stand-ins that only tests need: a clock that stands still until waited for, a link on it, and slots gone bad."""

import math
import threading
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count

import torch

from offload.closing import Closeable
from offload.copying.copy_engine import CopyEngine, CopySource, PendingCopy
from offload.copying.emulated_link import EmulatedLink
from offload.errors import LinkError, PassCancelledError
from offload.units import LinkSpeed


class VirtualClock:
    """Time that passes only when somebody waits or computes; what is due on the way happens at its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something happen when the clock shows `seconds`."""
        heappush(self._agenda, (seconds, next(self._numbers), action))

    def go_to_next(self) -> None:
        """Let time pass until the next thing happens."""
        self.now, _, action = heappop(self._agenda)
        action()

    def _go_to(self, seconds: float) -> None:
        while self._agenda and self._agenda[0][0] <= seconds:
            self.go_to_next()
        self.now = max(self.now, seconds)

    def __call__(self) -> float:
        return self.now

    def compute(self, seconds: float) -> None:
        self._go_to(self.now + seconds)

    def wait_until(self, deadline: float, cancel: threading.Event | None = None) -> None:
        if cancel is None or not cancel.is_set():
            self._go_to(deadline)


class InstantEngine:
    """Copies host memory at once, in no time; remembers what was asked of it."""

    computed_seconds: float | None = None

    def __init__(self) -> None:
        self.busy_seconds = 0.0
        self.bytes_copied = 0
        self.num_released = 0
        self.is_closed = False
        self.failing: set[int] = set()
        """Numbers of the copies (in order of start) that fail."""
        self.num_started = 0
        self.listener: Callable[[], None] = lambda: None

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        self.cycle = list(cycle)

    def notify(self, listener: Callable[[], None]) -> None:
        self.listener = listener

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        cause = OSError("pulled the plug") if self.num_started in self.failing else None
        self.num_started += 1
        if cause is None:
            self._fill(source, slot)
            self.bytes_copied += source.payload_bytes
        self.listener()
        return InstantCopy(source.payload_bytes, cause)

    def bring_back(self, rows: torch.Tensor, destination: torch.Tensor) -> PendingCopy:
        destination.copy_(rows)
        return InstantCopy(0, None)

    def release(self, slot: torch.Tensor) -> None:
        self.num_released += 1

    def close(self) -> None:
        self.is_closed = True

    def _fill(self, source: CopySource, slot: torch.Tensor) -> None:
        slab = getattr(source, "slab", None)
        if slab is not None:
            slot[getattr(source, "in_slot", slice(slab.numel()))].copy_(slab)


class InstantCopy:
    """A copy that was done before anybody could wait for it."""

    is_done = True

    def __init__(self, num_bytes: int, cause: Exception | None) -> None:
        self.num_bytes = num_bytes
        self._cause = cause
        self._is_abandoned = False

    def wait(self, cancel: threading.Event | None = None) -> None:
        if self._cause is not None and not self._is_abandoned:
            raise LinkError("The copy failed.") from self._cause

    def abandon(self) -> None:
        self._is_abandoned = True


class ExclusiveLink(InstantEngine):
    """A link on a virtual clock: one copy at a time, first come first served, each for a given number of seconds.

    Written from the definition, independently of EmulatedLink: each copy begins where the one before it ends.
    """

    def __init__(self, clock: VirtualClock, copy_seconds: dict[int, float]) -> None:
        super().__init__()
        self.clock = clock
        self.copy_seconds = copy_seconds
        """By the number of bytes that a source carries, which names the layer."""
        self.intervals: list[tuple[float, float]] = []
        """(start, due) of every copy so far."""

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        begins = max(self.clock.now, self.intervals[-1][1] if self.intervals else 0.0)
        self.intervals.append((begins, begins + self.copy_seconds[source.payload_bytes]))
        self.clock.at(self.intervals[-1][1], lambda: self.listener())
        return DueCopy(super().start(source, slot), self.clock, self.intervals[-1][1])


class DueCopy:
    """A copy that arrives when the virtual clock shows its time; waiting for it turns the clock."""

    def __init__(self, copy: PendingCopy, clock: VirtualClock, due: float) -> None:
        self._copy = copy
        self._clock = clock
        self._due = due
        self.num_bytes = copy.num_bytes
        self._is_abandoned = False

    @property
    def is_done(self) -> bool:
        return self._clock.now >= self._due

    def wait(self, cancel: threading.Event | None = None) -> None:
        if cancel is not None and cancel.is_set() and not self.is_done:
            raise PassCancelledError("cancelled")
        if not self._is_abandoned:
            self._clock.wait_until(self._due, cancel)
        self._copy.wait(cancel)

    def abandon(self) -> None:
        self._is_abandoned = True
        self._copy.abandon()


class PoisoningEngine(EmulatedLink):
    """Fills a slot with 0xFF when it is released: whoever reads it afterwards sees NaN in every float format."""

    def __init__(self, engine: CopyEngine) -> None:
        super().__init__(engine, LinkSpeed(math.inf))

    def release(self, slot: torch.Tensor) -> None:
        super().release(slot)
        slot.fill_(0xFF)


class GatedLoader(Closeable):
    """Reads with `engine`, each copy once it is let, in the order in which they are waited for."""

    busy_seconds, computed_seconds, bytes_copied = 0.0, None, 0

    def __init__(self, engine: CopyEngine) -> None:
        self._engine = engine
        self._permits = threading.Semaphore(0)
        self._is_closed = threading.Event()

    def let(self, num_copies: int) -> None:
        """Let so many more copies be read."""
        for _ in range(num_copies):
            self._permits.release()

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        pass

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        return _GatedCopy(self, source, slot)

    def release(self, slot: torch.Tensor) -> None:
        pass

    def close(self) -> None:
        self._is_closed.set()
        self._engine.close()


class _GatedCopy:
    is_done = False

    def __init__(self, loader: GatedLoader, source: CopySource, slot: torch.Tensor) -> None:
        self._loader, self._source, self._slot = loader, source, slot

    def wait(self, cancel: threading.Event | None = None) -> None:
        while not self._loader._permits.acquire(timeout=0.01):
            if self._loader._is_closed.is_set():
                raise LinkError("closed")
        self._loader._engine.start(self._source, self._slot).wait()

    def abandon(self) -> None:
        pass
