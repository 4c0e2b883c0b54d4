"""One answer that a client waits for: an engine's thread puts events in, an event loop takes them out.

What nobody has taken yet is joined, so that a client who reads slowly holds no more than its answer's text.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field

from profiles.errors import OverstoryError
from runtime.events import Finished, PrefillProgress, PromptScored, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import PromptRequest

ServedEvent = PrefillProgress | PromptScored | TextDelta | ReasoningDelta | ToolCallDelta | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a client wants of one prompt."""

    request: PromptRequest
    is_scored: bool = False
    """Whether the prompt's own tokens are wanted first, with `top_logprobs` beside each."""
    is_answered: bool = True
    asked_by: str = ""
    """What its log calls the question, such as the path of an endpoint."""


@dataclass(eq=False, slots=True)
class Answer:
    """An asynchronous iterator of one answer's events, the last of which is Finished; it raises the answer's error."""

    wanted: Wanted
    client: Hashable
    """Whose it is: clients take turns."""
    asked_at: float
    loop: asyncio.AbstractEventLoop
    """In which it is read."""
    begun_at: float | None = None
    """When its first pass could begin; None while it waits."""
    is_dropped: bool = False
    """Whether its client is gone."""
    _events: deque[ServedEvent | OverstoryError] = field(default_factory=deque)
    _has_events: asyncio.Event = field(default_factory=asyncio.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_over: bool = False

    @property
    def request(self) -> PromptRequest:
        return self.wanted.request

    def put(self, event: ServedEvent | OverstoryError) -> None:
        """Let the client have an event or its error, from any thread."""
        if self.is_dropped:
            return
        with self._lock:
            last = self._events[-1] if self._events else None
            if isinstance(last, TextDelta) and isinstance(event, TextDelta):
                self._events[-1] = TextDelta(last.text + event.text)
            elif isinstance(last, ReasoningDelta) and isinstance(event, ReasoningDelta):
                self._events[-1] = ReasoningDelta(last.text + event.text)
            elif isinstance(last, PrefillProgress) and isinstance(event, PrefillProgress):
                self._events[-1] = event
            else:
                self._events.append(event)
        with suppress(RuntimeError):  # the loop has been closed, and with it whoever read
            self.loop.call_soon_threadsafe(self._has_events.set)

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> ServedEvent:
        while True:
            with self._lock:
                event = self._events.popleft() if self._events else None
            if isinstance(event, OverstoryError):
                self._is_over = True
                raise event
            if event is not None:
                self._is_over = isinstance(event, Finished)
                return event
            if self._is_over:
                raise StopAsyncIteration
            await self._has_events.wait()
            self._has_events.clear()
