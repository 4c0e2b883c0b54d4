"""Answers to OpenAI's /v1/chat/completions and /v1/completions, as bodies.

Source: OpenAI's API reference, the chat completion object and the (legacy) completion object.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from runtime.api.questions import CHAT, Question
from runtime.events import Finished, GenerationStatistics, TokenLogprobs
from runtime.prompts.token_records import completion_logprobs, content_logprobs

_FINISH_REASONS = {"stop": "stop", "length": "length", "context": "length", "stopped": "stop"}


def answer_body(question: Question, answers: Sequence[Finished]) -> dict[str, Any]:
    """Return the body that answers a question; `answers` are those to its requests, in their order."""
    is_chat = question.url == CHAT
    costs = GenerationStatistics.total(answer.statistics for answer in answers)
    once = replace(costs, prompt_tokens=answers[0].statistics.prompt_tokens)  # however many choices it has
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": question.model,
        "choices": list(_choices(question, answers)),
        "usage": once.usage,
    }


def _choices(question: Question, answers: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    for index, answer in enumerate(answers):
        if question.url == CHAT:
            content: dict[str, Any] = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        else:
            content = {"text": answer.text}
        yield {
            "index": index,
            **content,
            "logprobs": None if answer.logprobs is None else _logprobs(question, answer.logprobs),
            "finish_reason": _FINISH_REASONS[answer.finish_reason],
        }


def _logprobs(question: Question, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    if question.url == CHAT:
        return {"content": content_logprobs(logprobs), "refusal": None}
    return completion_logprobs(logprobs, num_before=len(question.requests[0].prompt or ""))
