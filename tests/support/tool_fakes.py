"""Tools without processes: what a dialogue asks of them, and an engine that calls them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from runtime.events import PrefillProgress, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import ToolCall
from tests.support.chat_fakes import FIGURES, FINISHED, LOADED, ROUND, of_answer, polite
from tui.chat.engine.messages import Answer, LoadModel
from tui.chat.tools.settings import ServerSettings

CALLING = replace(LOADED, knows_tools=True)
"""A model that knows tools."""
FILES = ServerSettings(name="files", command="unused")
CALL = ToolCall("call_1", "files__read", '{"path": "notes.txt"}')


class FakeHost:
    """A `ToolHost` that keeps what it is asked."""

    def __init__(self):
        self.calls = []
        self.stopped = []

    def offered(self):
        return "[]"

    def call(self, answer_id, call):
        self.calls.append((answer_id, call))

    def stop(self, answer_id):
        self.stopped.append(answer_id)


class FakeSession:
    """A server with two tools: `read` says what a path holds, `wait` never ends; `die` ends it."""

    def __init__(self, texts=()):
        self.texts = dict(texts)
        self.called = []
        self._gone = asyncio.Event()

    def die(self):
        self._gone.set()

    async def list_tools(self):
        path = {"type": "object", "properties": {"path": {"type": "string"}}}
        return [
            {"name": "read", "description": "Read a file.", "inputSchema": path},
            {"name": "wait", "description": "Wait for good."},
        ]

    async def call_tool(self, name, arguments):
        self.called.append((name, arguments))
        if name == "wait":
            await asyncio.Event().wait()
        if arguments.get("path") not in self.texts:
            return "no such file", True
        return self.texts[arguments["path"]], False

    async def ended(self):
        await self._gone.wait()
        return "it ended by itself"


def connecting(session):
    """What starts a server: this session."""

    @asynccontextmanager
    async def connect(settings) -> AsyncIterator[FakeSession]:
        yield session

    return connect


def calling(*calls):
    """An engine whose answers make these calls, one each, and then say `It is done.`"""

    def script(request):
        if isinstance(request, LoadModel):
            return [CALLING]
        if not isinstance(request, Answer):
            return polite(request)
        done = [each for each in request.prompt.messages or () if each.role == "tool"]
        events = [PrefillProgress(12, 12), ROUND, FIGURES]
        if len(done) < len(calls):
            return of_answer(
                request.answer_id, *events, TextDelta("I look."), ToolCallDelta(0, calls[len(done)]), FINISHED
            )
        return of_answer(request.answer_id, *events, TextDelta("It is done."), FINISHED)

    return script
