"""Answers to OpenAI's /v1/chat/completions and /v1/completions, whole or in pieces as they come.

Source: OpenAI's API reference, the chat completion object and its chunks, and the (legacy) completion object.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from runtime.api.questions import CHAT, Question
from runtime.events import (
    AnswerParts,
    Finished,
    GenerationStatistics,
    PromptScored,
    ReasoningDelta,
    TextDelta,
    TokenLogprobs,
    ToolCallDelta,
    Usage,
)
from runtime.prompts.token_records import completion_logprobs, content_logprobs

_Each = TypeVar("_Each")
_FINISH_REASONS = {"stop": "stop", "length": "length", "context": "length", "stopped": "stop"}


def answer_body(
    question: Question, answers: Sequence[Finished], prompts: Sequence[PromptScored | None] = ()
) -> dict[str, Any]:
    """Return the body that answers a question; `answers` are those to its requests, in their order.

    `prompts`: of each request, where they are echoed.
    """
    return {
        **_head(question),
        "object": "chat.completion" if question.url == CHAT else "text_completion",
        "choices": list(_choices(question, answers, prompts or [None] * len(question.requests))),
        "usage": usage(question, answers),
    }


def usage(question: Question, answers: Sequence[Finished]) -> Usage:
    """Return the tokens that all choices have, those of each prompt once however many choices it has."""
    choices = _copied(question, answers)
    costs = GenerationStatistics.total(answer.statistics for answer in choices)
    of_prompts = GenerationStatistics.total(answer.statistics for answer in choices[:: question.num_choices])
    return replace(costs, prompt_tokens=of_prompts.prompt_tokens, cached_tokens=of_prompts.cached_tokens).usage


def _copied(question: Question, each: Sequence[_Each]) -> list[_Each]:
    """Return what belongs to each request as what belongs to each choice."""
    return [one for one in each for _ in range(question.num_copies)]


def _head(question: Question) -> dict[str, Any]:
    answer_id = f"{'chatcmpl' if question.url == CHAT else 'cmpl'}-{uuid.uuid4().hex}"
    return {"id": answer_id, "object": "", "created": int(time.time()), "model": question.model}


def _choices(
    question: Question, answers: Sequence[Finished], prompts: Sequence[PromptScored | None]
) -> Iterator[dict[str, Any]]:
    pairs = zip(_copied(question, answers), _copied(question, prompts), strict=True)
    for index, (answer, prompt) in enumerate(pairs):
        if question.url == CHAT:
            content: dict[str, Any] = {"message": _message(answer)}
        else:
            content = {"text": answer.text if prompt is None else prompt.text + answer.text}
        yield {
            "index": index,
            **content,
            "logprobs": _logprobs(question, index, answer.logprobs, prompt),
            "finish_reason": _finish_reason(answer),
        }


def _finish_reason(answer: Finished) -> str:
    has_called = answer.parts is not None and answer.parts.tool_calls and answer.finish_reason == "stop"
    return "tool_calls" if has_called else _FINISH_REASONS[answer.finish_reason]


def _message(answer: Finished) -> dict[str, Any]:
    parts = answer.parts or AnswerParts(answer.text)
    message: dict[str, Any] = {"role": "assistant", "content": parts.content, "refusal": None}
    if parts.reasoning_content is not None:
        message["reasoning_content"] = parts.reasoning_content
    if parts.tool_calls:
        message |= {"content": parts.content or None, "tool_calls": [call.to_record() for call in parts.tool_calls]}
    return message


def _logprobs(
    question: Question, index: int, logprobs: Sequence[TokenLogprobs] | None, prompt: PromptScored | None
) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    if question.url == CHAT:
        return {"content": content_logprobs(logprobs), "refusal": None}
    if prompt is not None:
        return completion_logprobs([*prompt.logprobs, *logprobs], num_before=0)
    return completion_logprobs(logprobs, num_before=len(question.requests[index // question.num_copies].prompt or ""))


class AnswerPieces:
    """The bodies of one streamed answer, each a piece of one of its choices."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._is_chat = question.url == CHAT
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        self._head = {**_head(question), "object": kind}

    def begin(self, index: int, prompt: PromptScored | None = None) -> dict[str, Any] | None:
        """Return what comes before the text of a choice; None where nothing does."""
        if self._is_chat:
            return self.piece(index, {"role": "assistant", "content": "", "refusal": None})
        return None if prompt is None else self.piece(index, {"content": prompt.text})

    def more(self, index: int, text: str) -> dict[str, Any]:
        """Return more text of a choice."""
        return self.piece(index, {"content": text})

    def part(self, index: int, part: TextDelta | ReasoningDelta | ToolCallDelta) -> dict[str, Any]:
        """Return more of a choice, whichever part of it."""
        if isinstance(part, ToolCallDelta):
            return self.piece(index, {"tool_calls": [{"index": part.index, **part.call.to_record()}]})
        return self.more(index, part.text) if isinstance(part, TextDelta) else self._thought(index, part.text)

    def _thought(self, index: int, text: str) -> dict[str, Any]:
        return self.piece(index, {"reasoning_content": text})

    def end(self, index: int, answer: Finished, prompt: PromptScored | None = None) -> dict[str, Any]:
        """Return the end of a choice, with the log-probabilities of all its tokens."""
        logprobs = _logprobs(self._question, index, answer.logprobs, prompt)
        return self.piece(index, {}, finish_reason=_finish_reason(answer), logprobs=logprobs)

    def piece(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return a body that adds `delta` to the message of a choice."""
        said: dict[str, Any] = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self._question.has_usage else {})}

    def choices_of(self, index: int) -> range:
        """Return the choices that the answer to a request is."""
        num_copies = self._question.num_copies
        return range(index * num_copies, (index + 1) * num_copies)

    def usage(self, answers: Sequence[Finished]) -> dict[str, Any]:
        """Return the last body, that of a stream whose usage is wanted."""
        return {**self._head, "choices": [], "usage": usage(self._question, answers)}
