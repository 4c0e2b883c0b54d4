"""A slow link on any machine: paces another engine's copies to a given bandwidth and latency.

The link carries one copy at a time, in the order of `start`: a copy occupies it from max(link free, submission) on for
latency + bytes / bandwidth, and is usable then, or when the engine below has really done it, whichever is later. The
way back from the device is as fast, and carries its own copies at the same time, as PCIe does.
"""

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeAlias

import torch

from offload.copying.copy_engine import CopyEngine, CopySource, PendingCopy
from offload.errors import PassCancelledError
from offload.units import LinkSpeed

WaitUntil: TypeAlias = Callable[[float, threading.Event | None], None]
"""Blocks until the clock shows the given time, or until the event is set."""


def wait_until(deadline_seconds: float, cancel: threading.Event | None) -> None:
    """Sleep until time.perf_counter() shows the deadline, or until `cancel` is set."""
    while (remaining := deadline_seconds - time.perf_counter()) > 0:
        if cancel is None:
            time.sleep(remaining)
        elif cancel.wait(remaining):
            return


class EmulatedLink:
    """A CopyEngine that makes another one look as slow as `link`; closing it closes the engine below."""

    def __init__(
        self,
        engine: CopyEngine,
        link: LinkSpeed,
        *,
        clock: Callable[[], float] = time.perf_counter,
        wait: WaitUntil = wait_until,
    ) -> None:
        """`clock` and `wait` belong together: a virtual clock is advanced by its own wait."""
        self.link = link
        self._engine = engine
        self._clock = clock
        self._wait = wait
        self._link_free = self._way_back_free = clock()
        self._booked_seconds = 0.0
        self._dues: SimpleQueue[float | None] = SimpleQueue()  # for the thread that tells; None: it ends
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def busy_seconds(self) -> float:
        """Seconds so far that copies to the device occupied the emulated link, or the one below if that was busier."""
        # Bookings are contiguous from now on: each began at its submission, or where the one before it ends.
        still_to_come = max(0.0, self._link_free - self._clock())
        return max(self._booked_seconds - still_to_come, self._engine.busy_seconds)

    @property
    def computed_seconds(self) -> float | None:
        return self._engine.computed_seconds

    @property
    def bytes_copied(self) -> int:
        return self._engine.bytes_copied

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        self._engine.look_ahead(cycle)

    def notify(self, listener: Callable[[], None]) -> None:
        """Tell of copies when the engine below has done them, and when their time is up, from a thread that waits."""
        self._engine.notify(listener)
        self._thread = threading.Thread(target=self._tell, args=(listener,), name="link", daemon=True)
        self._thread.start()

    def _tell(self, listener: Callable[[], None]) -> None:
        while (due := self._dues.get()) is not None:  # bookings are in order
            self._wait(due, self._is_closing)
            listener()

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        """Book the link for the copy and hand it to the engine below; returns at once."""
        copy_seconds = self.link.copy_seconds(source.payload_bytes)
        self._link_free = max(self._link_free, self._clock()) + copy_seconds
        self._booked_seconds += copy_seconds
        if self._thread is not None:
            self._dues.put(self._link_free)
        return _PacedCopy(self._engine.start(source, slot), self._link_free, clock=self._clock, wait=self._wait)

    def bring_back(self, rows: torch.Tensor, destination: torch.Tensor) -> PendingCopy:
        """Book the way back for the copy and hand it to the engine below; returns at once."""
        begin = max(self._way_back_free, self._clock())
        self._way_back_free = begin + self.link.copy_seconds(rows.numel())
        copy = self._engine.bring_back(rows, destination)
        return _PacedCopy(copy, self._way_back_free, clock=self._clock, wait=self._wait)

    def release(self, slot: torch.Tensor) -> None:
        self._engine.release(slot)

    def close(self) -> None:
        self._is_closing.set()
        if self._thread is not None:
            self._dues.put(None)
            self._thread.join()
            self._thread = None
        self._engine.close()


class _PacedCopy:
    """A copy that is usable at `due`, if the engine below has done it by then."""

    def __init__(self, copy: PendingCopy, due: float, *, clock: Callable[[], float], wait: WaitUntil) -> None:
        self._copy = copy
        self._due = due
        self._clock = clock
        self._wait = wait
        self._is_abandoned = False

    @property
    def is_done(self) -> bool:
        return self._copy.is_done and (self._is_abandoned or self._clock() >= self._due)

    def wait(self, cancel: threading.Event | None = None) -> None:
        if not self._is_abandoned:
            self._wait(self._due, cancel)
            if self._clock() < self._due and cancel is not None and cancel.is_set():
                raise PassCancelledError("The pass was cancelled while it waited for a layer.")
        self._copy.wait(cancel)  # last: an accelerator's engine counts from here on as the layer's computation

    def abandon(self) -> None:
        """Wait no longer; the link stays booked, as a real one finishes what it has begun."""
        self._is_abandoned = True
        self._copy.abandon()
