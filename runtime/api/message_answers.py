"""Answers to Anthropic's /v1/messages, whole or as the events of a stream.

Source: Anthropic's API reference, the Message object and "Streaming messages".
"""

import uuid
from collections.abc import Iterator
from typing import Any

from runtime.api.messages import arguments_of
from runtime.events import AnswerParts, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import ToolCall

NamedBody = tuple[str, dict[str, Any]]
"""An event of a stream: its name and its body."""
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "context": "max_tokens", "stopped": "end_turn"}


def message_body(answer: Finished, *, model: str) -> dict[str, Any]:
    """Return the body of a whole answer."""
    parts = answer.parts or AnswerParts(answer.text)
    content: list[dict[str, Any]] = []
    if parts.reasoning_content:
        content.append({"type": "thinking", "thinking": parts.reasoning_content, "signature": ""})
    if parts.content:
        content.append({"type": "text", "text": parts.content})
    content += [{**_tool_use(call), "input": arguments_of(call.arguments)} for call in parts.tool_calls]
    return {**_head(model), "content": content, **_end(answer), "usage": _usage(answer)}


def _head(model: str) -> dict[str, Any]:
    return {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def _end(answer: Finished) -> dict[str, Any]:
    has_called = answer.parts is not None and answer.parts.tool_calls and answer.finish_reason == "stop"
    reason = "tool_use" if has_called else _STOP_REASONS[answer.finish_reason]
    if answer.stop_string is not None and not has_called:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": answer.stop_string if reason == "stop_sequence" else None}


def _usage(answer: Finished) -> dict[str, int]:
    costs = answer.statistics
    return {**_input_usage(costs.prompt_tokens, costs.cached_tokens), "output_tokens": costs.new_tokens}


def _input_usage(num_prompt_tokens: int, num_cached: int) -> dict[str, int]:
    """Return the counts of a prompt, of which the API counts what was cached apart."""
    return {
        "input_tokens": num_prompt_tokens - num_cached,
        "cache_read_input_tokens": num_cached,
        "cache_creation_input_tokens": 0,
    }


class MessageEvents:
    """The events of one streamed answer, in their order."""

    def __init__(self, *, model: str) -> None:
        """Nothing is said yet."""
        self._model = model
        self._index = -1
        self._kind: str | None = None
        """Of the block that is open."""

    def begin(self, num_prompt_tokens: int = 0, num_cached: int = 0) -> NamedBody:
        """Return the first event; the prompt's tokens, where they are known already, and those that are held."""
        usage = {**_input_usage(num_prompt_tokens, num_cached), "output_tokens": 0}
        message = {**_head(self._model), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return "message_start", {"type": "message_start", "message": message}

    def more(self, part: TextDelta | ReasoningDelta | ToolCallDelta) -> Iterator[NamedBody]:
        """Yield the events of more of the answer."""
        if isinstance(part, ToolCallDelta):
            yield from self._close()
            yield self._open("tool_use", _tool_use(part.call))
            yield self._delta({"type": "input_json_delta", "partial_json": part.call.arguments})
        elif isinstance(part, TextDelta):
            if self._kind != "text":
                yield from self._close()
                yield self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": part.text})
        else:
            if self._kind != "thinking":
                yield from self._close()
                yield self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": part.text})

    def end(self, answer: Finished) -> Iterator[NamedBody]:
        """Yield the last events."""
        yield from self._close()
        yield "message_delta", {"type": "message_delta", "delta": _end(answer), "usage": _usage(answer)}
        yield "message_stop", {"type": "message_stop"}

    def _open(self, kind: str, block: dict[str, Any]) -> NamedBody:
        self._index += 1
        self._kind = kind
        body = {"type": "content_block_start", "index": self._index, "content_block": block}
        return "content_block_start", body

    def _delta(self, delta: dict[str, Any]) -> NamedBody:
        return "content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> Iterator[NamedBody]:
        if self._kind is not None:
            self._kind = None
            yield "content_block_stop", {"type": "content_block_stop", "index": self._index}
