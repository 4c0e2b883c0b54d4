"""Answers to OpenAI's /v1/responses, whole or as the events of a stream.

Source: OpenAI's API reference, the response object and "Streaming events".
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from runtime.api.responses import ResponseQuestion
from runtime.events import AnswerParts, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import ToolCall

NamedBody = tuple[str, dict[str, Any]]
"""An event of a stream: its name and its body."""


class ResponseEvents:
    """The events of one streamed answer, in their order; also what makes a whole answer."""

    def __init__(self, asked: ResponseQuestion) -> None:
        """Nothing is said yet."""
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "error": None,
            **asked.echoed,
        }
        self._number = 0
        self._output: list[dict[str, Any]] = []
        """Items that are whole, and last the one that is open."""
        self._is_open = False

    def begin(self) -> Iterator[NamedBody]:
        """Yield the first events."""
        body = {**self._head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        yield self._event("response.created", response=body)
        yield self._event("response.in_progress", response=body)

    def more(self, part: TextDelta | ReasoningDelta | ToolCallDelta) -> Iterator[NamedBody]:
        """Yield the events of more of the answer."""
        if isinstance(part, ToolCallDelta):
            yield from self._close()
            yield from self._call(part.call)
            return
        kind = "message" if isinstance(part, TextDelta) else "reasoning"
        if not self._is_open or self._output[-1]["type"] != kind:
            yield from self._close()
            yield from self._open(kind)
        item = self._output[-1]
        item["content"][0]["text"] += part.text
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        others: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        yield self._event(name, **self._place(), content_index=0, delta=part.text, **others)

    def end(self, answer: Finished) -> Iterator[NamedBody]:
        """Yield the last events."""
        yield from self._close(is_whole=answer.finish_reason == "stop")
        body = self.body(answer)
        yield self._event(f"response.{body['status']}", response=body)

    def body(self, answer: Finished) -> dict[str, Any]:
        """Return the body of the whole answer, of which all was told."""
        is_whole = answer.finish_reason == "stop"
        costs = answer.statistics
        return {
            **self._head,
            "status": "completed" if is_whole else "incomplete",
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "output": self._output,
            "usage": {
                "input_tokens": costs.prompt_tokens,
                "input_tokens_details": {"cached_tokens": costs.cached_tokens},
                "output_tokens": costs.new_tokens,
                "output_tokens_details": {"reasoning_tokens": costs.reasoning_tokens},
                "total_tokens": costs.prompt_tokens + costs.new_tokens,
            },
        }

    def _event(self, kind: str, **fields: Any) -> NamedBody:
        body = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return kind, body

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _open(self, kind: str) -> Iterator[NamedBody]:
        """Begin a message or thinking."""
        self._is_open = True
        if kind == "message":
            head: dict[str, Any] = {"type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant"}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            head = {"type": "reasoning", "id": f"rs_{uuid.uuid4().hex}", "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        self._output.append({**head, "status": "in_progress", "content": [part]})
        begun = {**self._output[-1], "content": []}
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=begun)
        yield self._event("response.content_part.added", **self._place(), content_index=0, part=dict(part))

    def _close(self, *, is_whole: bool = True) -> Iterator[NamedBody]:
        """End what is open."""
        if not self._is_open:
            return
        self._is_open = False
        item = self._output[-1]
        item["status"] = "completed" if is_whole else "incomplete"
        (part,) = item["content"]
        place = {**self._place(), "content_index": 0}
        if item["type"] == "message":
            yield self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
        else:
            yield self._event("response.reasoning_text.done", **place, text=part["text"])
        yield self._event("response.content_part.done", **place, part=dict(part))
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _call(self, call: ToolCall) -> Iterator[NamedBody]:
        item = {
            "type": "function_call",
            "id": f"fc_{uuid.uuid4().hex}",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": "completed",
        }
        self._output.append(item)
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=begun)
        yield self._event("response.function_call_arguments.delta", **self._place(), delta=call.arguments)
        done = {"arguments": call.arguments, "name": call.name}
        yield self._event("response.function_call_arguments.done", **self._place(), **done)
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)


def response_body(asked: ResponseQuestion, answer: Finished) -> dict[str, Any]:
    """Return the body of a whole answer."""
    events = ResponseEvents(asked)
    parts = answer.parts or AnswerParts(answer.text)
    told: list[TextDelta | ReasoningDelta | ToolCallDelta] = []
    if parts.reasoning_content:
        told.append(ReasoningDelta(parts.reasoning_content))
    if parts.content:
        told.append(TextDelta(parts.content))
    told += [ToolCallDelta(index, call) for index, call in enumerate(parts.tool_calls)]
    for part in told:
        list(events.more(part))
    list(events.end(answer))
    return events.body(answer)
