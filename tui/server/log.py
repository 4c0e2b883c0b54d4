"""What a server tells in its terminal: a line of each answer and of what happens to the model; never a text.

An error may repeat words of the prompt, so that of a request that is refused only the status is told.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from runtime.events import GenerationStatistics
from runtime.serving.dispatcher import AnswerOver, LoadFailed, ModelLoaded, ModelUnloaded, News
from tui.server.failures import Failure, failure_of
from tui.terminal_text import counted, one_line, show_escapes_in_place

_ENDS = {
    "stop": "complete",
    "length": "cut at its limit of tokens",
    "context": "cut at the end of the context",
}
_LEAST_TOLD_SECONDS = 0.1
_BUSY_STATUS, _FAULT_STATUS = 429, 500
_GUARD_STATUSES = (401, 403)
_MOST_PATH_CHARACTERS = 100
MOST_WAITING_LINES = 1_000
_CLOSE_SECONDS = 1.0


def _now() -> str:
    return time.strftime("%H:%M:%S")


@dataclass(frozen=True, slots=True)
class ServerLog:
    """Says in a line what has happened; without `write` nothing is said."""

    write: Callable[[str], None] = lambda line: None
    """Called from any thread, with a line that has no end yet."""
    now: Callable[[], str] = _now
    """The time of day."""

    def tell(self, news: News) -> None:
        """Say what happened to an answer or the model."""
        if isinstance(news, AnswerOver):
            self.write(f"{self.now()} {news.asked_by}: {_end_of(news)}")
        elif isinstance(news, ModelLoaded):
            shared = f"up to {news.num_lanes} answers share each pass"
            lanes = "one answer at a time" if news.num_lanes == 1 else shared
            room = f"{news.context_tokens} tokens of prompt and answer together"
            self.write(f"{self.now()} the model is loaded ({news.seconds:.1f} s): {lanes}, {room}")
        elif isinstance(news, ModelUnloaded):
            idle = news.idle_seconds
            reason = "after an unexpected error" if idle is None else f"after {idle:g} s without a request"
            self.write(f"{self.now()} the model is unloaded {reason}; the next request loads it")
        else:
            assert isinstance(news, LoadFailed), "there is no other news"
            self.write(f"{self.now()} the model cannot be loaded: {one_line(str(news.error))}")

    def refuse(self, path: str, failure: Failure) -> None:
        """Say that a request was not even let wait for an answer."""
        shown = path if len(path) <= _MOST_PATH_CHARACTERS else f"{path[:_MOST_PATH_CHARACTERS]}..."
        self.write(f"{self.now()} {show_escapes_in_place(shown)}: {_failure_text(failure)}")

    @contextmanager
    def with_the_library(self) -> Iterator[None]:
        """Say what uvicorn warns of as well: a request that is no HTTP never gets here."""
        handler = _Written(self)
        logger = logging.getLogger("uvicorn.error")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _Written(logging.Handler):
    """Records as lines of a server's log."""

    def __init__(self, log: ServerLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(f"{self._log.now()} {self.format(record)}")


class WaitingLines:
    """A context manager: writes lines in a thread of its own, so that a terminal that takes none holds nobody up.

    Lines that find no room are left out, and a line in their place says how many.
    """

    def __init__(self, write: Callable[[str], None], *, most_waiting: int = MOST_WAITING_LINES) -> None:
        """`write` may take as long as it likes."""
        self._write = write
        self._most_waiting = most_waiting
        self._waiting = deque[str]()
        self._num_left_out = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="lines of the server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let what waits be written, if that takes no longer than a moment."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    def add(self, line: str) -> None:
        """Let a line be written; it never waits for that."""
        with self._changed:
            if self._num_left_out or len(self._waiting) >= self._most_waiting:
                self._num_left_out += 1  # and so are all others until the place has come to say so
            else:
                self._waiting.append(line)
            self._changed.notify()

    def _run(self) -> None:
        while (line := self._next()) is not None:
            self._write(line)

    def _next(self) -> str | None:
        """Wait for the next line and return it; None where no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._num_left_out or self._is_closed)
            if self._waiting:
                return self._waiting.popleft()
            num_left_out, self._num_left_out = self._num_left_out, 0
            return f"{counted(num_left_out, 'line')} left out here, as nobody read them" if num_left_out else None


def _end_of(over: AnswerOver) -> str:
    waited = f", waited {over.waiting_seconds:.1f} s" if over.waiting_seconds >= _LEAST_TOLD_SECONDS else ""
    if over.how == "dropped":
        seconds = over.seconds + over.waiting_seconds
        new_tokens = "" if over.statistics is None else f" and {counted(over.statistics.new_tokens, 'new token')}"
        return f"the client went away after {seconds:.1f} s{new_tokens}"
    if over.error is not None:
        return f"{_failure_text(failure_of(over.error))}, after {over.seconds:.1f} s{waited}"
    assert over.statistics is not None, "what ended without an error has its costs"
    is_scored = over.how == "length" and not over.statistics.new_tokens
    end = "scored" if is_scored else _ENDS[over.how]
    return f"{_costs(over.statistics)}, {over.seconds:.1f} s{waited}{_rate(over.statistics)}, {end}"


def _costs(statistics: GenerationStatistics) -> str:
    cached = f" ({statistics.cached_tokens} cached)" if statistics.cached_tokens else ""
    thought = f" ({statistics.reasoning_tokens} of thinking)" if statistics.reasoning_tokens else ""
    prompt = f"{counted(statistics.prompt_tokens, 'prompt token')}{cached}"
    return f"{prompt}, {counted(statistics.new_tokens, 'new token')}{thought}"


def _rate(statistics: GenerationStatistics) -> str:
    seconds = statistics.seconds_per_token
    return f", {1 / seconds:.1f} tok/s" if seconds else ""


def _failure_text(failure: Failure) -> str:
    if failure.status in (_BUSY_STATUS, *_GUARD_STATUSES) or failure.status >= _FAULT_STATUS:
        return f"no answer (status {failure.status}): {one_line(failure.sentence)}"
    return f"no answer (status {failure.status}, and the client was told why)"
