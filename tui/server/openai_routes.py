"""OpenAI's endpoints: /v1/chat/completions, /v1/completions and /v1/models."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.api.answers import AnswerPieces, answer_body
from runtime.api.questions import CHAT, COMPLETIONS, LiveTerms, Question, parse_question, with_all_choices
from runtime.events import Finished, PrefillProgress, PromptScored, ReasoningDelta, TextDelta, ToolCallDelta
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
from tui.server.failures import Failure, RefusedError, openai_error

_USUAL_TOKENS = {CHAT: 1 << 20, COMPLETIONS: 16}
"""Most tokens of an answer where nobody chose: as the API has it, a chat goes on to the context's end."""


async def complete(service: Service, request: Request, *, url: str) -> Response:
    """Answer a body of one of the two endpoints, whole or as it is written."""
    body = await read_body(request)
    question = await asyncio.to_thread(_question, body, url, service)  # a schema may take seconds to compile
    wanted = [
        Wanted(request=each, is_scored=question.is_echoed, is_answered=question.is_answered)
        for each in question.requests
    ]
    answers = submit(service, request, wanted)
    if question.is_streamed:
        streamed = await StreamedAnswers.begin(service, answers)
        return EventStream(streamed, _lines(question, streamed), openai_error)
    found = await gather(service, request, answers)
    finished = [each.finished for each in found if each.finished is not None]
    return JSONResponse(answer_body(question, finished, [each.prompt for each in found]))


def _question(body: dict[str, object], url: str, service: Service) -> Question:
    question = parse_question(
        body,
        url,
        service.common,
        request_id=uuid.uuid4().hex,
        usual_seed=secrets.randbelow(1 << 31),
        live=LiveTerms(model=service.model, max_tokens=_USUAL_TOKENS[url]),
    )
    return with_all_choices(question, set())


async def _lines(question: Question, streamed: StreamedAnswers) -> AsyncGenerator[str, None]:
    """Yield the pieces of all choices as server-sent events."""
    pieces, begun = AnswerPieces(question), set[int]()
    async with aclosing(streamed.events()) as events:
        async for index, event in events:
            if event is None or isinstance(event, PrefillProgress):
                yield waiting_line(streamed.service, event)
                continue
            prompt = streamed.gathered[index].prompt
            for choice in pieces.choices_of(index):
                if choice not in begun:
                    begun.add(choice)
                    if (first := pieces.begin(choice, prompt)) is not None:
                        yield data_line(first)
                if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
                    yield data_line(pieces.part(choice, event))
                elif isinstance(event, Finished):
                    yield data_line(pieces.end(choice, event, prompt))
                else:
                    assert isinstance(event, PromptScored), "its text has been sent"
    if question.has_usage:
        finished = [each.finished for each in streamed.gathered if each.finished is not None]
        yield data_line(pieces.usage(finished))
    yield "data: [DONE]\n\n"


async def models(service: Service, request: Request) -> Response:
    """List the one model."""
    return JSONResponse({"object": "list", "data": [_model(service)]})


async def model(service: Service, request: Request) -> Response:
    """Describe the model by its name."""
    name = request.path_params["name"]
    if name != service.model:
        raise RefusedError(Failure(404, f"the model here is {service.model}; ask for that", code="model_not_found"))
    return JSONResponse(_model(service))


def _model(service: Service) -> dict[str, object]:
    context_tokens = service.dispatcher.state.context_tokens
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "overstory",
        "context_length": context_tokens,
    }


ROUTES = (
    ApiRoute("POST", CHAT, partial(complete, url=CHAT)),
    ApiRoute("POST", COMPLETIONS, partial(complete, url=COMPLETIONS)),
    ApiRoute("GET", "/v1/models", models),
    ApiRoute("GET", "/v1/models/{name:path}", model),
)
