"""One request and its answer over HTTP, whatever the API: bodies in, answers that end with their client, events out."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from profiles.errors import OverstoryError
from profiles.files import parse_json_text
from runtime.events import Finished, PrefillProgress, PromptScored
from runtime.prompts.prompt_file import LineDefaults
from runtime.serving.answer import Answer, ServedEvent, Wanted
from runtime.serving.dispatcher import Dispatcher
from tui.server.failures import Failure, RefusedError, failure_of, openai_error
from tui.server.log import ServerLog

MOST_BODY_BYTES = 32 << 20
BODY_SECONDS = 60.0
"""In which a body must have come."""
_STATUS_SECONDS = 1.0
"""A stream waits so long for what may be wrong with it: once it has begun, its status cannot be an error any more."""
_KEEP_ALIVE_SECONDS = 10.0
_Returned = TypeVar("_Returned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What every route answers with."""

    dispatcher: Dispatcher
    common: LineDefaults
    """What holds where a body says nothing."""
    model: str
    """What clients are told that the model is called."""
    created: int
    """Since when, in seconds of Unix time."""
    log: ServerLog = field(default_factory=ServerLog)
    """Where refusals are told; answers are told of by the dispatcher."""


Handle = Callable[[Service, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """An endpoint: whoever adds one adds a row to a table."""

    method: str
    path: str
    handle: Handle
    """May raise OverstoryError and RefusedError."""
    error_body: Callable[[Failure], dict[str, Any]] = openai_error
    """In the words of its API."""

    @property
    def shown_path(self) -> str:
        """As people write it."""
        return self.path.replace(":path", "")


async def read_body(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request brings. Raises RefusedError."""
    chunks, num_bytes = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > MOST_BODY_BYTES:
                    raise RefusedError(Failure(413, f"the body has more than {MOST_BODY_BYTES >> 20} MiB; shorten it"))
                chunks.append(chunk)
    except TimeoutError as error:
        raise RefusedError(Failure(408, f"the body did not come within {BODY_SECONDS:g} seconds")) from error
    try:
        body = parse_json_text(b"".join(chunks))
    except ValueError as error:
        raise RefusedError(Failure(400, f"the body is not valid JSON: {error}")) from error
    if not isinstance(body, dict):
        raise RefusedError(Failure(400, "the body must be a JSON object"))
    return body


def submit(service: Service, request: Request, wanted: Sequence[Wanted]) -> list[Answer]:
    """Let the connection that a request came by wait for answers. Raises QueueFullError, ShuttingDownError."""
    client = None if request.client is None else tuple(request.client)
    path = request.url.path
    answers = service.dispatcher.submit(client, [replace(each, asked_by=path) for each in wanted])
    request.state.has_answers = True
    return answers


@dataclass(slots=True)
class Gathered:
    """All that came of one answer."""

    prompt: PromptScored | None = None
    finished: Finished | None = None


async def gather(service: Service, request: Request, answers: Sequence[Answer]) -> list[Gathered]:
    """Return whole answers; if the client goes away they end, as do all where one fails. Raises its error."""

    async def read() -> list[Gathered]:
        found = [Gathered() for _ in answers]
        async with aclosing(merged(service, answers)) as events:
            async for index, event in events:
                keep(found[index], event)
        return found

    try:
        return await unless_gone(request.receive, read())
    except BaseException:
        for answer in answers:  # also where reading them has not even begun
            service.dispatcher.drop(answer)
        raise


def keep(gathered: Gathered, event: ServedEvent | None) -> None:
    """Keep what is wanted of an event once the answer is whole."""
    if isinstance(event, PromptScored):
        gathered.prompt = event
    elif isinstance(event, Finished):
        gathered.finished = event


async def merged(service: Service, answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, ServedEvent | None], None]:
    """Yield the events of all answers as they come, by their index; None where nothing came for a while.

    Whatever is not whole when this ends is dropped. Raises the first error.
    """
    tasks = {asyncio.ensure_future(anext(answer, None)): index for index, answer in enumerate(answers)}
    try:
        while tasks:
            done, _ = await asyncio.wait(tasks, timeout=_KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                yield 0, None
            for task in done:
                index, event = tasks.pop(task), task.result()
                if event is not None:
                    tasks[asyncio.ensure_future(anext(answers[index], None))] = index
                    yield index, event
    finally:
        for task, index in tasks.items():
            if not task.cancel() and not task.cancelled():
                task.exception()  # one is told, and the others are no news
            service.dispatcher.drop(answers[index])


async def unless_gone(receive: Receive, work: Awaitable[_Returned]) -> _Returned:
    """Return what `work` returns, which is cancelled if the client goes away first. Raises ClientDisconnect then."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, OverstoryError):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamedAnswers:
    """The events of answers that are streamed, of which the first is there before anything is sent."""

    def __init__(self, service: Service, answers: Sequence[Answer]) -> None:
        """See `begin`, which is how one is made."""
        self.service = service
        self.gathered = [Gathered() for _ in answers]
        """What came so far."""
        self._events = merged(service, answers)
        self._first = asyncio.ensure_future(anext(self._events))

    @classmethod
    async def begin(cls, service: Service, answers: Sequence[Answer]) -> Self:
        """Wait a moment for the first event. Raises the error that is there instead."""
        streamed = cls(service, answers)
        try:
            done, _ = await asyncio.wait({streamed._first}, timeout=_STATUS_SECONDS)
            if done:
                streamed._first.result()
        except BaseException:
            await streamed.close()
            raise
        return streamed

    async def events(self) -> AsyncGenerator[tuple[int, ServedEvent | None], None]:
        """Yield all events, keeping what whole answers have; what is not whole at the end is dropped."""
        coming: Awaitable[tuple[int, ServedEvent | None]] = self._first
        try:
            if not self._first.done():
                yield 0, None
            while True:
                try:
                    index, event = await coming
                except StopAsyncIteration:
                    return
                keep(self.gathered[index], event)
                yield index, event
                coming = anext(self._events)
        finally:
            await self.close()

    async def close(self) -> None:
        """Drop what is not whole."""
        if not self._first.done():
            self._first.cancel()
            with suppress(asyncio.CancelledError):
                await self._first
        await self._events.aclose()


class EventStream(Response):
    """Server-sent events, whose sender is cancelled as soon as the client is gone."""

    media_type = "text/event-stream"

    def __init__(
        self,
        streamed: StreamedAnswers,
        lines: AsyncGenerator[str, None],
        error_body: Callable[[Failure], dict[str, Any]],
        *,
        error_event: str | None = None,
    ) -> None:
        """`lines` are whole events, made of what is `streamed`; an error of ours ends them with its failure's body.

        `error_event` is what the event of the error is called, if anything.
        """
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._streamed = streamed
        self._lines = lines
        self._error_body = error_body
        self._error_event = error_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all that comes."""
        try:
            with suppress(ClientDisconnect):
                await unless_gone(receive, self._send_all(send))
        finally:
            await self._streamed.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._lines) as lines:
            try:
                async for line in lines:
                    await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
            except OverstoryError as error:
                line = data_line(self._error_body(failure_of(error)), event=self._error_event)
                await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def data_line(body: Any, *, event: str | None = None) -> str:
    """Return a server-sent event with a JSON body, of a name if it has one."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n" if event is None else f"event: {event}\ndata: {text}\n\n"


def waiting_line(service: Service, event: PrefillProgress | None) -> str:
    """Return a comment of a stream, which clients pass over, that says what is waited for."""
    if event is not None:
        return f": reading the prompt, {event.num_done_tokens} of {event.num_prompt_tokens} tokens\n\n"
    state = service.dispatcher.state
    return f": {state.phase}, {state.num_running} answers under way, {state.num_waiting} waiting\n\n"
