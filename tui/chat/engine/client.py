"""The chat app's end of the engine process: starts it, sends requests, hands reports on, notices its death.

The process holds the models and does all the computing; what it says arrives through a queue, so that only ending it
waits for it. Imports nothing that takes long.
"""

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from profiles.child_process import child_command, child_environment
from profiles.errors import BadInputError
from tui.chat.engine.messages import Quit, Report, Request, from_line, to_line

MAX_LINE_BYTES = 1 << 24
"""Longest report; a round with a tree of 4,096 nodes takes 24 kB."""
QUIT_SECONDS = 3.0
"""How long a process that was told to quit may take before it is terminated."""
TERMINATE_SECONDS = 1.0
"""How long a terminated process may take before it is killed."""
_NUM_KEPT_LINES = 20  # of stderr
_LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine's process is gone without having been told to quit; `start` makes a new one."""

    sentence: str
    """What happened, and its last words."""


class EngineClient:
    """The engine in a process of its own, used from one event loop."""

    def __init__(
        self,
        command: Sequence[str] = child_command("tui.chat.engine.host"),
        *,
        quit_seconds: float = QUIT_SECONDS,
        terminate_seconds: float = TERMINATE_SECONDS,
    ) -> None:
        """`command` starts what speaks `messages` over its standard streams."""
        self._command = tuple(command)
        self._quit_seconds, self._terminate_seconds = quit_seconds, terminate_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_closing = False
        self._is_end_wanted = False  # of the process that is there
        self._lock = asyncio.Lock()  # of starting and closing
        self._queue: asyncio.Queue[Report | EngineDied | None] = asyncio.Queue()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start a process, unless one is alive or all is closed; it has no model open yet.

        Raises OSError if the system cannot.
        """
        async with self._lock:
            if self.is_alive or self._is_closing:
                return
            if self._watching is not None:
                await self._watching
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
                env=child_environment(),
                start_new_session=True,  # the terminal's signals are for the app; the end of stdin ends the engine
            )
            self._is_end_wanted = False
            self._watching = asyncio.create_task(self._watch(self._process))

    def send(self, request: Request) -> None:
        """Hand a request over without waiting. What is sent to a process that is gone is dropped."""
        if not self.is_alive:
            return
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(to_line(request))

    async def reports(self) -> AsyncIterator[Report | EngineDied]:
        """Yield what the process says, and what a new one says after it, until `close`."""
        while (report := await self._queue.get()) is not None:
            yield report
            self._queue.task_done()

    async def end_process(self) -> None:
        """End the process, even one that hangs, without an `EngineDied`; returns once all that it said was heard.

        Somebody must be reading the reports. `start` makes a new process.
        """
        async with self._lock:
            if self._is_closing or self._process is None:
                return
            await self._end()
        await self._queue.join()

    async def close(self) -> None:
        """End the process: orderly if it answers in time, else by request of the system, then by force; idempotent."""
        async with self._lock:
            if not self._is_closing:
                self._is_closing = True
                await self._end()
                self._queue.put_nowait(None)

    async def _end(self) -> None:
        if self._process is None or self._watching is None:
            return
        self._is_end_wanted = True
        self.send(Quit())
        assert self._process.stdin is not None
        self._process.stdin.close()
        patience = ((self._quit_seconds, self._process.terminate), (self._terminate_seconds, self._process.kill))
        for seconds, insist in patience:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), seconds)
                break
            with suppress(ProcessLookupError):
                insist()
        await self._watching

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Hand on what the process says until it is gone, and then say how it ended."""
        assert process.stdout is not None and process.stderr is not None
        last_lines: deque[str] = deque(maxlen=_NUM_KEPT_LINES)
        hearing = asyncio.create_task(_keep_last_lines(process.stderr, last_lines))
        complaint = None
        try:
            while line := await process.stdout.readline():
                self._queue.put_nowait(from_line(line))
        except (BadInputError, ValueError) as error:  # ValueError: a line longer than MAX_LINE_BYTES
            complaint = str(error)
            with suppress(ProcessLookupError):
                process.kill()
        exit_code = await process.wait()
        await asyncio.wait({hearing}, timeout=_LAST_WORDS_SECONDS)  # its own children may hold stderr open
        hearing.cancel()
        if not self._is_end_wanted:
            self._queue.put_nowait(_death(exit_code, last_lines, complaint))


async def _keep_last_lines(stream: asyncio.StreamReader, lines: deque[str]) -> None:
    while chunk := await stream.read(1 << 16):  # a line may be of any length
        *whole, rest = (("" if not lines else lines.pop()) + chunk.decode(errors="replace")).split("\n")
        lines.extend((*(line[-1000:] for line in whole), rest[-1000:]))


def _death(exit_code: int, last_lines: Sequence[str], complaint: str | None) -> EngineDied:
    """Say how the process ended; `complaint` if it was ended here for what it said."""
    if complaint is not None:
        return EngineDied(f"the engine was ended because it could not be understood: {complaint}")
    words = next((line.strip() for line in reversed(last_lines) if line.strip()), "")
    last_words = f"; its last words: {words}" if words else ""
    if exit_code == -getattr(signal, "SIGKILL", 9):
        return EngineDied(
            "the engine was killed (SIGKILL), most likely by the system because memory ran out; start it again, "
            "with a smaller model, context or memory budget if it was not you"
        )
    if exit_code < 0:
        name = next((each.name for each in signal.Signals if each == -exit_code), f"signal {-exit_code}")
        return EngineDied(f"the engine was ended by {name}{last_words}")
    return EngineDied(f"the engine ended with exit code {exit_code}{last_words}")
