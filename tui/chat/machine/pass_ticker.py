"""Says some times a second where the target's pass is, while another thread computes it.

Reads two attributes of the ring; the computing thread does nothing for it, and the device is not asked: a question
from a second thread spoils a pass that is being recorded.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from tui.chat.engine.engine_messages import PassRunning

TICK_SECONDS = 0.1


class RingLike(Protocol):
    """The part of a ring that may be read from any thread."""

    @property
    def num_layers(self) -> int:
        """Layers of a pass."""

    @property
    def num_done_layers(self) -> int | None:
        """Layers of the pass under way that are done; None between passes."""

    @property
    def layers_in_slots(self) -> tuple[int, ...]:
        """The layers that lie in slots or are on their way there."""


class PassTicker:
    """Reports while its context lasts."""

    def __init__(
        self,
        answer_id: int,
        ring: RingLike,
        say: Callable[[PassRunning], None],
        *,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._answer_id, self._ring, self._say = answer_id, ring, say
        self._tick_seconds = tick_seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="pass ticker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def report(self) -> PassRunning | None:
        """Where the pass is now; None between passes."""
        num_done = self._ring.num_done_layers
        if num_done is None:
            return None
        return PassRunning(self._answer_id, num_done, self._ring.num_layers, tuple(sorted(self._ring.layers_in_slots)))

    def _tick(self) -> None:
        while not self._is_over.wait(self._tick_seconds):
            report = self.report()
            if report is not None:
                self._say(report)
