"""Answers the prompts of a file, in order, without a person watching.

One prompt that fails costs one answer: its result carries the error and the run goes on.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from profiles.errors import OverstoryError
from runtime.events import Event, Finished
from runtime.prompts.prompt_file import BadLine, PromptRequest

PromptItem = PromptRequest | BadLine
Generate = Callable[[PromptRequest], Generator[Event, None, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """What became of one line of the prompt file."""

    id: str
    line_number: int
    finished: Finished | None = None
    """The answer; None where `error` is set."""
    error: str | None = None
    """One sentence, or None when all is well."""

    def to_record(self) -> dict[str, Any]:
        """Return a JSON object; every result has the same keys, and `error` is null when all is well."""
        answer = self.finished
        costs = answer and answer.statistics
        return {
            "id": self.id,
            "line": self.line_number,
            "text": answer and answer.text,
            "finish_reason": answer and answer.finish_reason,
            "verification": answer and answer.verification,
            "generation": answer and answer.generation,
            "own_settings": answer and dict(answer.own_settings),
            "prompt_tokens": costs and costs.prompt_tokens,
            "new_tokens": costs and costs.new_tokens,
            "usage": costs and costs.usage,
            "rounds": costs and costs.rounds,
            "tokens_per_round": costs and costs.tokens_per_round,
            "prefill_seconds": costs and costs.prefill_seconds,
            "seconds_per_token": costs and costs.seconds_per_token,
            "bytes_streamed": costs and costs.bytes_streamed,
            "link_utilization": costs and costs.link_utilization,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class PromptStarted:
    """The next prompt is about to be answered."""

    request: PromptRequest
    position: int
    """Its place among the lines to answer, from 1."""


HeadlessEvent = PromptStarted | Event | PromptResult
"""A line's result is the last event of the line, to be kept before more is asked for."""


def pending_items(items: Iterable[PromptItem], finished_ids: Collection[str]) -> list[PromptItem]:
    """Return the lines that still need a result: bad lines always, so that every run reports them."""
    return [item for item in items if isinstance(item, BadLine) or item.id not in finished_ids]


def run_prompts(generate: Generate, items: Iterable[PromptItem]) -> Iterator[HeadlessEvent]:
    """Give every line its result, in order, with the engine's events between a prompt's start and its end.

    An OverstoryError ends one answer; anything else, Ctrl-C included, ends the run and discards the answer in progress.
    """
    for position, item in enumerate(items, start=1):
        if isinstance(item, BadLine):
            yield PromptResult(id=item.id, line_number=item.line_number, error=item.error)
        else:
            yield PromptStarted(item, position)
            yield (yield from _answer(generate, item))


def _answer(generate: Generate, request: PromptRequest) -> Generator[Event, None, PromptResult]:
    finished: Event | None = None
    try:
        with closing(generate(request)) as events:
            for finished in events:
                yield finished
    except OverstoryError as error:
        return PromptResult(id=request.id, line_number=request.line_number, error=str(error))
    assert isinstance(finished, Finished), "it is the engine's last event"
    return PromptResult(id=request.id, line_number=request.line_number, finished=finished)
