"""Chooses how many threads a narrow pass computes with: all of torch's, or fewer where that was faster lately.

Every product of a narrow pass ends with all threads waiting for the last one, hundreds of times in a few hundredths of
a second. Where others use the processor one of them is always late: beside eight busy processes on two cores a pass of
135M weights took 250 ms with both and 60 ms with one. Alone on the machine it takes 27 ms and 34 ms, since both wait
for memory most of the time. The logits are the same bits with any number.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MAX_WIDTH = 16
"""Tokens beyond which a pass computes longer than it waits for memory, so that all threads are worth it."""
NUM_KEPT = 5
"""Latest passes that speak for a choice."""
NUM_TRIED = 3
"""Passes that another number is tried for."""
FIRST_TRIAL, LAST_TRIAL = 4, 128
"""Passes from one trial to the next: so many after a change, twice as many after each trial that changed nothing."""
FASTER = 0.9
"""Share of the usual seconds that a trial must stay below: less is noise."""
SLOWER = 1.5
"""Times the usual seconds that end a trial at once."""
NUM_LATE = 2
"""Passes in a row as slow as that after which the machine has changed, and it is time for a trial."""


class ThreadChoice:
    """A number of threads, halved and doubled as long as that makes passes faster: all of them first."""

    def __init__(self, most: int) -> None:
        self.num_threads = most
        """What the next pass computes with."""
        self._most = most
        self._chosen = most  # trials apart
        self._is_halving = True
        self._kept: deque[float] = deque(maxlen=NUM_KEPT)
        self._tried: list[float] = []
        self._interval = self._num_left = FIRST_TRIAL
        self._num_late = 0

    def observe(self, seconds: float) -> None:
        """Learn how long the pass took that was just computed with `num_threads`."""
        if self.num_threads != self._chosen:
            self._try(seconds)
            return
        is_late = bool(self._kept) and seconds > SLOWER * statistics.median(self._kept)
        self._num_late = self._num_late + 1 if is_late else 0
        self._kept.append(seconds)
        self._num_left -= 1
        if self._num_late == NUM_LATE:
            self._kept = deque([seconds], maxlen=NUM_KEPT)
            self._is_halving, self._num_left = True, 0
        if self._num_left <= 0:
            self._begin_trial()

    def _begin_trial(self) -> None:
        if self._chosen in (1, self._most):
            self._is_halving = self._chosen > 1
        self.num_threads = max(1, self._chosen // 2) if self._is_halving else min(self._most, 2 * self._chosen)
        self._tried.clear()
        self._num_late = 0

    def _try(self, seconds: float) -> None:
        """Take what is tried if it is faster; else the next trial goes the other way."""
        usual = statistics.median(self._kept)
        self._tried.append(seconds)
        if len(self._tried) < NUM_TRIED and seconds <= SLOWER * usual:
            return
        if statistics.median(self._tried) < FASTER * usual:
            self._chosen = self.num_threads
            self._kept = deque(self._tried, maxlen=NUM_KEPT)
            self._interval = FIRST_TRIAL
        else:
            self.num_threads = self._chosen
            self._is_halving = not self._is_halving
            self._interval = min(2 * self._interval, LAST_TRIAL)
        self._num_left = self._interval


class PassThreads:
    """The threads of one model's passes on a processor, chosen for each width by itself."""

    def __init__(self) -> None:
        self._choices: dict[int, ThreadChoice] = {}

    @contextmanager
    def computing(self, num_tokens: int, *, is_pass: bool = True) -> Iterator[None]:
        """Compute in here what is `num_tokens` wide; only a pass that ends well is learned from."""
        if num_tokens > MAX_WIDTH or torch.get_num_threads() == 1:
            yield
            return
        most = torch.get_num_threads()
        choice = self._choices.setdefault((num_tokens - 1).bit_length(), ThreadChoice(most))
        start = time.perf_counter()
        torch.set_num_threads(min(choice.num_threads, most))
        try:
            yield
        finally:
            torch.set_num_threads(most)
        if is_pass:
            choice.observe(time.perf_counter() - start)
