"""OpenAI's endpoint /v1/responses."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.api.response_answers import ResponseEvents, response_body
from runtime.api.responses import RESPONSES, ResponseQuestion, parse_response_question
from runtime.events import Finished, PrefillProgress, ReasoningDelta, TextDelta, ToolCallDelta
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
from tui.server.failures import Failure, openai_error


def _stream_error(failure: Failure) -> dict[str, Any]:
    """Return the event that ends a stream which fails."""
    return {"type": "error", "code": failure.code, "message": failure.sentence, "param": None, **openai_error(failure)}


async def respond(service: Service, request: Request) -> Response:
    """Answer a conversation, whole or as it is written."""
    body = await read_body(request)
    parse = partial(
        parse_response_question,
        request_id=uuid.uuid4().hex,
        usual_seed=secrets.randbelow(1 << 31),
        model=service.model,
    )
    asked = await asyncio.to_thread(parse, body, service.common)
    (wanted,) = asked.question.requests
    answers = submit(service, request, [Wanted(request=wanted)])
    if asked.question.is_streamed:
        streamed = await StreamedAnswers.begin(service, answers)
        return EventStream(streamed, _lines(asked, streamed), _stream_error, error_event="error")
    (found,) = await gather(service, request, answers)
    assert found.finished is not None, "an answer that raises nothing has an end"
    return JSONResponse(response_body(asked, found.finished))


async def _lines(asked: ResponseQuestion, streamed: StreamedAnswers) -> AsyncGenerator[str, None]:
    """Yield the answer as server-sent events."""
    told = ResponseEvents(asked)
    for name, body in told.begin():
        yield data_line(body, event=name)
    async with aclosing(streamed.events()) as events:
        async for _, event in events:
            if event is None or isinstance(event, PrefillProgress):
                yield waiting_line(streamed.service, event)
            elif isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
                for name, body in told.more(event):
                    yield data_line(body, event=name)
            elif isinstance(event, Finished):
                for name, body in told.end(event):
                    yield data_line(body, event=name)


ROUTES = (ApiRoute("POST", RESPONSES, respond),)
