"""Shows text that arrives in bursts at the steady rate at which it comes on average.

A round brings some ten tokens at once, every second or two. Each burst is spread over most of the time until the next
is expected, which the bursts so far tell. What one burst left is due when the next one comes, so that the screen is
never more than one burst behind. Pure: the clock is passed in, and whoever draws asks what is due.
"""

import math
from collections import deque
from statistics import median_low

import regex

SPREAD = 0.9
"""Share of the expected time between bursts over which one is shown: the queue is empty a little before the next."""
SAME_BURST_SECONDS = 0.03
"""Text that comes this soon after a burst began is more of it: one round's text may arrive in pieces."""
LONGEST_SPREAD_SECONDS = 5.0
"""No burst is held longer, however slow the link is."""
_NUM_REMEMBERED = 5


def whole_length(text: str, num_due: int) -> int:
    """Return where to cut `text`, `num_due` characters in or a little later: never inside what a reader sees as one.

    Before the last of these, if it is one that more text may go on: half a flag, or an emoji that waits to be joined.
    """
    start = end = 0
    for seen in regex.finditer(r"\X", text):
        if end >= num_due:
            return end
        start, end = seen.span()
    return start if regex.fullmatch(r"\p{Regional_Indicator}|.*\u200d", text[start:]) else end


class TextSmoother:
    """The text of one answer that has arrived and is not on the screen yet."""

    def __init__(self, expected_seconds: float | None = None) -> None:
        self._given_seconds = expected_seconds
        self._intervals: deque[float] = deque(maxlen=_NUM_REMEMBERED)
        self._waiting = ""
        self._begun: float | None = None
        self._spread_seconds = 0.0
        self._num_taken = 0  # characters of the last burst; below 0 by those of earlier ones that still wait

    @property
    def expected_seconds(self) -> float | None:
        """Between two bursts, the median of the last ones; the smoother of the next answer may start from it."""
        return median_low(self._intervals) if self._intervals else self._given_seconds

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def push(self, text: str, *, now: float) -> None:
        """More of the answer; what an earlier burst left is due at once."""
        if not text:
            return
        if self._begun is None or now - self._begun >= SAME_BURST_SECONDS:
            self._begin_burst(now)
        self._waiting += text

    def take(self, now: float) -> str:
        """The text to append to the screen now; never cut inside what a reader sees as one character."""
        if self._begun is None or not self._waiting:
            return ""
        elapsed = max(0.0, now - self._begun)
        share = elapsed / self._spread_seconds if elapsed < self._spread_seconds else 1.0
        num_in_burst = self._num_taken + len(self._waiting)
        num_due = math.ceil(share * num_in_burst) - self._num_taken
        length = whole_length(self._waiting, num_due)
        due, self._waiting = self._waiting[:length], self._waiting[length:]
        self._num_taken += length
        return due

    def _begin_burst(self, now: float) -> None:
        if self._begun is not None:
            self._intervals.append(now - self._begun)
        expected = self.expected_seconds or 0.0
        self._begun = now
        self._spread_seconds = min(SPREAD * expected, LONGEST_SPREAD_SECONDS)
        self._num_taken = -len(self._waiting)
