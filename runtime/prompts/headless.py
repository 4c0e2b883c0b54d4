"""Answers the prompts of a file, one by one or many together, without a person watching.

One prompt that fails costs one answer: its result carries the error and the run goes on.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from profiles.errors import OverstoryError
from runtime.events import AnswerParts, Event, Finished
from runtime.prompts.prompt_file import BadLine, PromptRequest
from runtime.prompts.token_records import content_logprobs

PromptItem = PromptRequest | BadLine


class Line(Protocol):
    """A line of a file that has one result."""

    @property
    def id(self) -> str: ...

    @property
    def line_number(self) -> int: ...


_Item = TypeVar("_Item", bound=Line)
Generate = Callable[[PromptRequest], Generator[Event, None, None]]
AnswerEvent = tuple[PromptRequest, Event | OverstoryError]
"""Whose event it is, and the event; an error is the last one of a request."""
GenerateAll = Callable[[Iterable[PromptRequest]], Generator[AnswerEvent, None, None]]
"""Answers requests, each of which is asked for when there is room for it; see `Session.generate_all`."""


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
        said = answer and (answer.parts or AnswerParts(answer.text))
        return {
            "id": self.id,
            "line": self.line_number,
            "text": said and said.content,
            "reasoning": said and said.reasoning_content,
            "tool_calls": [call.to_record() for call in said.tool_calls] if said and said.tool_calls else None,
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
            "logprobs": None if answer is None or answer.logprobs is None else content_logprobs(answer.logprobs),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class PromptStarted:
    """A prompt is about to be answered."""

    request: PromptRequest
    position: int
    """Its place among the lines to answer, from 1."""


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """Something has happened to a prompt that is being answered."""

    request: PromptRequest
    event: Event


HeadlessEvent = PromptStarted | PromptEvent | PromptResult
"""A line's result is the last event of the line, to be kept before more is asked for."""


def in_parts(items: Iterable[PromptItem]) -> list[PromptItem]:
    """Return the lines, conversations with an answer whose thinking and calls of tools stand apart from its text."""
    return [
        replace(item, wants_parts=True) if isinstance(item, PromptRequest) and item.messages is not None else item
        for item in items
    ]


def pending_items(items: Iterable[_Item], finished_ids: Collection[str]) -> list[_Item]:
    """Return the lines that still need a result: bad lines always, so that every run reports them."""
    return [item for item in items if isinstance(item, BadLine) or item.id not in finished_ids]


def run_prompts(generate_all: GenerateAll, items: Iterable[PromptItem]) -> Iterator[HeadlessEvent]:
    """Give every line its result, as they end, with the engine's events between a prompt's start and its end.

    An error of ours ends one answer; anything else, Ctrl-C included, ends the run and discards the answers in progress.
    """
    waiting: deque[PromptStarted | PromptResult] = deque()
    """What happened while the next prompt was looked for."""

    def requests() -> Iterator[PromptRequest]:
        for position, item in enumerate(items, start=1):
            if isinstance(item, BadLine):
                waiting.append(PromptResult(id=item.id, line_number=item.line_number, error=item.error))
            else:
                waiting.append(PromptStarted(item, position))
                yield item

    with closing(generate_all(requests())) as events:
        for request, event in events:
            while waiting:
                yield waiting.popleft()
            if isinstance(event, OverstoryError):
                yield PromptResult(id=request.id, line_number=request.line_number, error=str(event))
                continue
            yield PromptEvent(request, event)
            if isinstance(event, Finished):
                yield PromptResult(id=request.id, line_number=request.line_number, finished=event)
    yield from waiting


def one_by_one(generate: Generate) -> GenerateAll:
    """Return what answers many requests with what answers one."""

    def generate_all(requests: Iterable[PromptRequest]) -> Generator[AnswerEvent, None, None]:
        for request in requests:
            try:
                with closing(generate(request)) as events:
                    for event in events:
                        yield request, event
            except OverstoryError as error:
                yield request, error

    return generate_all
