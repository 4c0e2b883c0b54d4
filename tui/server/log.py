"""What a server tells in its terminal: a line of each answer and of what happens to the model; never a text.

An error may repeat words of the prompt, so that of a request that is refused only the status is told.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from runtime.events import GenerationStatistics
from runtime.serving.dispatcher import AnswerOver, LoadFailed, ModelLoaded, ModelUnloaded, News
from tui.server.failures import Failure, failure_of
from tui.terminal_text import counted, one_line

_ENDS = {
    "stop": "complete",
    "length": "cut at its limit of tokens",
    "context": "cut at the end of the context",
}
_LEAST_TOLD_SECONDS = 0.1
_BUSY_STATUS, _FAULT_STATUS = 429, 500


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
        self.write(f"{self.now()} {path}: {_failure_text(failure)}")


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
    if failure.status == _BUSY_STATUS or failure.status >= _FAULT_STATUS:
        return f"no answer (status {failure.status}): {one_line(failure.sentence)}"
    return f"no answer (status {failure.status}, and the client was told why)"
