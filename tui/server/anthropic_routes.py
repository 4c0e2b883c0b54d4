"""Anthropic's endpoints: /v1/messages and /v1/messages/count_tokens."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.api.message_answers import MessageEvents, message_body
from runtime.api.messages import COUNT_TOKENS, MESSAGES, MessageTerms, parse_message_question
from runtime.events import Finished, PrefillProgress, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import PromptRequest
from runtime.serving.answer import Wanted
from tui.server.exchange import (
    ApiRoute,
    EventStream,
    Service,
    StreamedAnswers,
    data_line,
    gather,
    read_body,
    submit,
    waiting_line,
)
from tui.server.failures import Failure

_KINDS = {413: "request_too_large", 405: "invalid_request_error", 408: "timeout_error"}


def anthropic_error(failure: Failure) -> dict[str, Any]:
    """Return the body that Anthropic's API gives for a failure."""
    kind = _KINDS.get(failure.status, failure.kind if failure.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": failure.sentence}}


async def messages(service: Service, request: Request) -> Response:
    """Answer a conversation, whole or as it is written."""
    asked, is_streamed = await _asked(service, request)
    answers = submit(service, request, [Wanted(request=asked)])
    if is_streamed:
        streamed = await StreamedAnswers.begin(service, answers)
        return EventStream(streamed, _lines(streamed), anthropic_error, error_event="error")
    (found,) = await gather(service, request, answers)
    assert found.finished is not None, "an answer that raises nothing has an end"
    return JSONResponse(message_body(found.finished, model=service.model))


async def count_tokens(service: Service, request: Request) -> Response:
    """Say how many tokens the prompt of such a body has."""
    asked, _ = await _asked(service, request, is_counted=True)
    return JSONResponse({"input_tokens": await asyncio.to_thread(service.dispatcher.count_tokens, asked)})


async def _asked(service: Service, request: Request, *, is_counted: bool = False) -> tuple[PromptRequest, bool]:
    body: Mapping[str, Any] = await read_body(request)
    terms = MessageTerms(
        common=service.common,
        request_id=uuid.uuid4().hex,
        usual_seed=secrets.randbelow(1 << 31),
        model=service.model,
        is_counted=is_counted,
    )
    question = await asyncio.to_thread(parse_message_question, body, terms)
    (asked,) = question.requests
    return asked, question.is_streamed


async def _lines(streamed: StreamedAnswers) -> AsyncGenerator[str, None]:
    """Yield the answer as server-sent events."""
    told = MessageEvents(model=streamed.service.model)
    has_begun = False
    async with aclosing(streamed.events()) as events:
        async for _, event in events:
            if event is None or isinstance(event, PrefillProgress):
                if not has_begun and event is not None:
                    has_begun = True
                    name, body = told.begin(event.num_prompt_tokens, event.num_done_tokens)
                    yield data_line(body, event=name)
                yield waiting_line(streamed.service, event)
                continue
            if not has_begun:
                has_begun = True
                name, body = told.begin()
                yield data_line(body, event=name)
            if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
                for name, body in told.more(event):
                    yield data_line(body, event=name)
            elif isinstance(event, Finished):
                for name, body in told.end(event):
                    yield data_line(body, event=name)


ROUTES = (
    ApiRoute("POST", MESSAGES, messages, anthropic_error),
    ApiRoute("POST", COUNT_TOKENS, count_tokens, anthropic_error),
)
