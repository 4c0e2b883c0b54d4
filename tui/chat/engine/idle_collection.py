"""Looks for cyclic garbage only while nobody types and no answer is written.

A full collection walks over everything that a conversation has on the screen: 0.2 s after a long answer, every few
seconds of it, in which no key is answered. Young garbage is still collected at once; that takes a millisecond.
"""

import gc
import time
from collections.abc import Callable

IDLE_SECONDS = 3.0
"""Without a key and without an answer; then a pause is noticed by nobody."""
RARELY = 1_000
"""Collections of the middle generation between two of the oldest, instead of 10: an app that is never idle."""


class IdleCollector:
    """Takes over from the interpreter when the oldest objects are looked through."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, collect: Callable[[], object] = gc.collect
    ) -> None:
        self._clock = clock
        self._collect = collect
        self._active_at = clock()
        self._is_due = False

    def take_over(self) -> None:
        """Let the interpreter look through the oldest objects hardly ever, and not at all at what is there now."""
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, RARELY)
        gc.freeze()

    def note_activity(self) -> None:
        """Somebody types, or an answer is written."""
        self._active_at = self._clock()
        self._is_due = True

    def collect_if_idle(self) -> None:
        """Collect, once after each activity, when it has been over for a while."""
        if self._is_due and self._clock() - self._active_at >= IDLE_SECONDS:
            self._is_due = False
            self._collect()
