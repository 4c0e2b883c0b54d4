"""Servers of tools as processes of their own, spoken to by the Model Context Protocol over their standard streams.

Everything happens in the background of one event loop; what changes arrives through a queue. It runs what it is told to
run: whether a person allows a call is asked elsewhere. The protocol's package is imported once the first server starts.
"""

import asyncio
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any, Literal, Protocol, TextIO

from profiles.errors import BadInputError
from runtime.errors import PromptFileError
from runtime.prompts.prompt_file import ToolCall, parse_tools
from tui.chat.tools.keeper import kept_command
from tui.chat.tools.results import ToolResult, result_text, shortened
from tui.chat.tools.settings import ServerSettings
from tui.terminal_text import one_line

START_SECONDS = 60.0
"""How long a server may take until it has named its tools; one that is fetched first takes its time."""
CLOSE_SECONDS = 5.0
"""How long servers may take to end; the package asks, terminates and kills them within that."""
MAX_PAGES = 50
"""Of lists of tools."""
_NUM_KEPT_LINES, _MAX_LINE_CHARACTERS = 20, 1_000  # of stderr
_MISSING = "the package that speaks to servers is missing; pip install 'overstory[mcp]'"

Phase = Literal["off", "waiting", "starting", "ready", "failed"]
"""`waiting` for a model that knows tools."""


@dataclass(frozen=True, slots=True)
class Tool:
    """What a server can do."""

    server: str
    own_name: str
    """As the server calls it."""
    function: Mapping[str, Any]
    """Name, description and parameters, as models are told."""
    is_on: bool = True

    @property
    def name(self) -> str:
        """As models call it, after its server, so that no two are called the same."""
        return str(self.function["name"])


@dataclass(frozen=True, slots=True)
class ServerState:
    """How a server stands."""

    settings: ServerSettings
    phase: Phase
    reason: str = ""
    """Why it failed, in one sentence; or what is left out of a ready one."""
    tools: tuple[Tool, ...] = ()

    @property
    def words(self) -> str:
        """What a list says of it."""
        if self.phase != "ready":
            phase = "waits for a model with tools" if self.phase == "waiting" else self.phase
            return f"{phase}: {self.reason}" if self.reason else phase
        num_off = sum(not tool.is_on for tool in self.tools)
        words = f"ready with {len(self.tools)} tool{'s' * (len(self.tools) != 1)}"
        return "; ".join(filter(None, (words + (f", {num_off} of them off" if num_off else ""), self.reason)))


@dataclass(frozen=True, slots=True)
class ServersChanged:
    """A server stands otherwise than before."""

    sentence: str = ""
    """What a person should know of it."""


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call is over."""

    answer_id: int
    """The message that called."""
    result: ToolResult


ToolReport = ServersChanged | CallEnded


class Session(Protocol):
    """A server that has started."""

    async def list_tools(self) -> Sequence[Mapping[str, Any]]:
        """Return name, description and inputSchema of each tool."""

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        """Return what it said, as one text, and whether that is an error. Raises whatever a server can do wrong."""

    async def ended(self) -> str:
        """Return why, once the server is gone."""


Connect = Callable[[ServerSettings], AbstractAsyncContextManager[Session]]


class ServerError(Exception):
    """A server cannot be used; says why in one sentence."""


class ToolServers:
    """The servers of the settings, their tools, and the calls under way."""

    def __init__(self, servers: Sequence[ServerSettings] = (), *, connect: Connect | None = None) -> None:
        """`connect` starts a server and lets it say what it can."""
        self._connect = connect or connect_over_pipes
        self._states = {each.name: ServerState(each, "waiting" if each.enabled else "off") for each in servers}
        self._sessions: dict[str, Session] = {}
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._closing: dict[str, asyncio.Event] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._is_closed = False
        self._queue: asyncio.Queue[ToolReport | None] = asyncio.Queue()

    @property
    def states(self) -> tuple[ServerState, ...]:
        """All servers, in the order of the settings."""
        return tuple(self._states.values())

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What models are told of now."""
        ready = (each for each in self.states if each.phase == "ready")
        return tuple(tool for each in ready for tool in each.tools if tool.is_on)

    def offered(self) -> str | None:
        """Return these tools as a request has them; None if there are none."""
        return parse_tools([{"type": "function", "function": dict(each.function)} for each in self.tools])

    def start(self) -> None:
        """Start every server that is enabled and does not run, in the background."""
        for name, state in self._states.items():
            is_running = name in self._serving and not self._serving[name].done()
            if state.settings.enabled and not is_running and not self._is_closed:
                self._closing[name] = asyncio.Event()
                self._states[name] = replace(state, phase="starting", reason="", tools=())
                self._serving[name] = asyncio.create_task(self._serve(name))
        self._say(ServersChanged())

    def switch_tool(self, tool: Tool) -> ServerSettings:
        """Let models be told of a tool no more, or again; return the settings of its server."""
        state = self._states[tool.server]
        off = state.settings.off ^ {tool.own_name}
        tools = tuple(replace(each, is_on=each.own_name not in off) for each in state.tools)
        self._states[tool.server] = replace(state, settings=replace(state.settings, off=off), tools=tools)
        self._say(ServersChanged())
        return self._states[tool.server].settings

    def switch_server(self, name: str, *, may_start: bool) -> ServerSettings:
        """End a server, or start it if it was off or has failed; return its settings."""
        state = self._states[name]
        is_on = state.phase in ("off", "failed")
        settings = replace(state.settings, enabled=is_on)
        self._states[name] = replace(state, settings=settings, phase="waiting" if is_on else "off", reason="", tools=())
        if not is_on:
            self._end(name, state.phase)
        if is_on and may_start:
            self.start()
        self._say(ServersChanged())
        return settings

    def call(self, answer_id: int, call: ToolCall) -> None:
        """Let a tool do what an answer asks for; `CallEnded` follows, whatever happens."""
        self._calls[answer_id] = asyncio.create_task(self._call(answer_id, call))

    def stop(self, answer_id: int) -> None:
        """End a call that is under way."""
        if (task := self._calls.get(answer_id)) is not None:
            # Not at once: a task that is cancelled before its first step ends without a word.
            asyncio.get_running_loop().call_soon(task.cancel)

    async def reports(self) -> AsyncIterator[ToolReport]:
        """Yield what happens, until `close`."""
        while (report := await self._queue.get()) is not None:
            yield report

    async def close(self) -> None:
        """End all calls and all servers; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for task in self._calls.values():
            task.cancel()
        for name, state in self._states.items():
            self._end(name, state.phase)
        tasks = {*self._serving.values(), *self._calls.values()}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
        self._queue.put_nowait(None)

    def _end(self, name: str, phase: Phase) -> None:
        """Let a server end; one that is starting may not look up for long."""
        if name in self._closing:
            self._closing[name].set()
            if phase == "starting":
                self._serving[name].cancel()

    def _say(self, report: ToolReport) -> None:
        self._queue.put_nowait(report)

    def _fail(self, name: str, reason: str) -> None:
        state = self._states[name]
        if state.phase != "off" and not self._is_closed:
            self._states[name] = replace(state, phase="failed", reason=one_line(reason), tools=())
            self._say(ServersChanged(f"tools: {name} failed: {one_line(reason)}"))

    async def _serve(self, name: str) -> None:
        """Keep one server from its start to its end."""
        settings, closing = self._states[name].settings, self._closing[name]
        try:
            async with asyncio.timeout(START_SECONDS) as patience, self._connect(settings) as session:
                listed = await session.list_tools()
                patience.reschedule(None)
                if closing.is_set():
                    return
                tools, problems = _tools(settings, listed)
                self._sessions[name] = session
                self._states[name] = replace(self._states[name], phase="ready", reason=problems, tools=tools)
                self._say(ServersChanged())
                ended = asyncio.ensure_future(session.ended())
                await _first(closing.wait(), ended)
                self._sessions.pop(name, None)
                if not closing.is_set():
                    self._fail(name, ended.result())
        except TimeoutError:
            self._fail(name, f"it named no tools within {START_SECONDS:.0f} s; see whether its command works")
        except Exception as error:  # the border: a server may do anything
            self._fail(name, _reason(error))
        finally:
            self._sessions.pop(name, None)

    async def _call(self, answer_id: int, call: ToolCall) -> None:
        begun = time.monotonic()
        try:
            result = await self._result(call)
        except asyncio.CancelledError:
            result = ToolResult("The person stopped this call before it ended.", "stopped")
        except TimeoutError:
            result = ToolResult("This call took too long and was ended.", "failed")
        except Exception as error:  # the border: a server may do anything
            result = ToolResult(shortened(f"This call failed: {_reason(error)}"), "failed")
        finally:
            self._calls.pop(answer_id, None)
        self._say(CallEnded(answer_id, replace(result, seconds=round(time.monotonic() - begun, 3))))

    async def _result(self, call: ToolCall) -> ToolResult:
        tool = next((each for each in self.tools if each.name == call.name), None)
        if tool is None:
            names = ", ".join(each.name for each in self.tools) or "none"
            return ToolResult(shortened(f"There is no tool {call.name} now; those that there are: {names}."), "failed")
        seconds = self._states[tool.server].settings.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                calling = self._sessions[tool.server].call_tool(tool.own_name, json.loads(call.arguments))
                text, is_error = await calling
        except TimeoutError:
            return ToolResult(f"This call took longer than {seconds:g} s and was ended.", "failed")
        return ToolResult(text, "failed" if is_error else "done")


def _tools(settings: ServerSettings, listed: Sequence[Mapping[str, Any]]) -> tuple[tuple[Tool, ...], str]:
    """Return the tools that can be called, and how many cannot, and why."""
    tools: dict[str, Tool] = {}
    refused = []
    for each in listed:
        function = {"name": f"{settings.name}__{each['name']}", "description": each.get("description") or ""}
        function["parameters"] = each.get("inputSchema") or {"type": "object", "properties": {}}
        try:
            parse_tools([{"type": "function", "function": function}])
        except PromptFileError as error:
            refused.append(one_line(str(error)))
            continue
        own_name = str(each["name"])
        tools.setdefault(own_name, Tool(settings.name, own_name, function, is_on=own_name not in settings.off))
    problem = f"{len(refused)} more cannot be called: {refused[0]}" if refused else ""
    return tuple(tools.values()), problem


async def _first(*waits: Any) -> None:
    """Wait for the first of them."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _reason(error: BaseException) -> str:
    """Return why, of an error that may hold others."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError):
        return "its command is not there; give the path of a program, or install it"
    if isinstance(error, OSError):
        return f"its command cannot be started ({error.strerror or error})"
    if isinstance(error, ServerError | BadInputError):
        return str(error)
    return one_line(str(error)) or type(error).__name__


@dataclass(slots=True)
class _LastWords:
    """What a server writes on stderr: the last lines of it, read by a thread until the server is gone."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_NUM_KEPT_LINES))
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    _are_read: threading.Event = field(default_factory=threading.Event)
    """Set once the mark is, and with it all that was written before."""

    @contextmanager
    def pipe(self) -> Iterator[TextIO]:
        """Yield what the server is to write into."""
        reading, writing = os.pipe()
        threading.Thread(target=self._read, args=(reading,), name="stderr of a server", daemon=True).start()
        with os.fdopen(writing, "w") as stream:
            yield stream

    def _read(self, reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8", errors="replace") as stream:
            while line := stream.readline(_MAX_LINE_CHARACTERS):
                if line.strip() == self._mark:
                    self._are_read.set()
                elif line.strip():
                    self.lines.append(line.strip())
        self._are_read.set()

    async def behind(self, reason: str, stderr: TextIO) -> str:
        """Return a reason with the last line behind it, if there is one, once all that the server has said is read.

        `stderr` is the pipe; the server has ended, and others that it has started may still write.
        """
        await asyncio.to_thread(self._catch_up, stderr)
        return f"{reason}; it said last: {self.lines[-1]}" if self.lines else reason

    def _catch_up(self, stderr: TextIO) -> None:
        with suppress(OSError, ValueError):  # closed meanwhile
            stderr.write(f"\n{self._mark}\n")  # behind a line that may have no end
            stderr.flush()
        self._are_read.wait(CLOSE_SECONDS)


@asynccontextmanager
async def connect_over_pipes(settings: ServerSettings) -> AsyncIterator[Session]:
    """Start a server's command, speak to it over its pipes, and end it, with all that it has started, at the end.

    Raises ServerError, and what the package raises.
    """
    try:
        # In a thread, since it takes more than a second.
        mcp = await asyncio.to_thread(import_module, "mcp")
    except ImportError as error:
        raise ServerError(_MISSING) from error
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    logging.getLogger("mcp").propagate = False  # else it would write into the screen
    command, args = settings.command, list(settings.args)
    if shutil.which(command, path=settings.env.get("PATH")):  # else the system says what is wrong with it
        command, args = kept_command(command, args)
    parameters = mcp.StdioServerParameters(
        command=command,
        args=args,
        env=dict(settings.env),
        encoding_error_handler="replace",
    )
    words, ended = _LastWords(), asyncio.Event()
    is_ready = False
    with words.pipe() as stderr:
        try:
            transport = _watched(mcp.stdio_client(parameters, errlog=stderr), ended)
            async with mcp.Client(transport, cache=None) as client:
                is_ready = True
                yield _PipeSession(client, ended, partial(words.behind, stderr=stderr))
        except OSError:
            raise
        except Exception as error:
            if is_ready and not isinstance(error, ServerError):
                raise
            raise ServerError(await words.behind(_reason(error), stderr)) from error


@asynccontextmanager
async def _watched(transport: AbstractAsyncContextManager[Any], ended: asyncio.Event) -> AsyncIterator[Any]:
    """Hand on what a server says, and notice when it says no more."""
    anyio = import_module("anyio")
    async with transport as (read, write), anyio.create_task_group() as group:
        sending, receiving = anyio.create_memory_object_stream(0)

        async def hand_on() -> None:
            try:
                async with sending:
                    async for message in read:
                        await sending.send(message)
                    ended.set()  # before those who wait for an answer learn it
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # nobody listens any more
            finally:
                ended.set()

        group.start_soon(hand_on)
        try:
            yield receiving, write
        finally:
            group.cancel_scope.cancel()
            receiving.close()


class _PipeSession:
    """A session of the package."""

    def __init__(self, client: Any, ended: asyncio.Event, behind: Callable[[str], Awaitable[str]]) -> None:
        """`behind` puts what the server said last behind a reason."""
        self._client, self._ended, self._behind = client, ended, behind

    async def list_tools(self) -> Sequence[Mapping[str, Any]]:
        tools: list[Mapping[str, Any]] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            tools += [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in page.tools]
            cursor = page.next_cursor
            if not cursor:
                break
        return tools

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        calling = asyncio.ensure_future(self._client.call_tool(name, arguments))
        try:
            await _first(asyncio.shield(calling), self._ended.wait())
            if not calling.done():
                raise ServerError("its server ended in the middle")
            result = calling.result()
        except Exception as error:
            if self._ended.is_set():
                raise ServerError("its server ended in the middle") from error
            raise
        finally:
            calling.cancel()
        parts = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in result.content]
        return result_text(parts, result.structured_content), bool(result.is_error)

    async def ended(self) -> str:
        await self._ended.wait()
        return await self._behind("it ended by itself")
