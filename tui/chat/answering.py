"""The answer that the engine is writing: what it was asked with, and what comes of it, saved before it is shown.

It knows nothing of prompts that wait, of branches, or of which conversation is open.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import count
from typing import Any

from profiles.errors import OverstoryError
from runtime.config import SamplingParams
from runtime.prompts.prompt_file import PromptRequest, ToolCall
from tui.chat.changes import Changes, TextCame, ThoughtCame, Trouble
from tui.chat.engine.client import EngineClient
from tui.chat.engine.messages import Answer, StopAnswer
from tui.chat.reading import Reading
from tui.chat.store.database import ConversationStoreError
from tui.chat.store.guesses import Guesses, guesses_of
from tui.chat.store.records import UNSENT_ID, EndState, StoredMessage, Thinking
from tui.chat.store.store import ConversationStore


class AnswerWriter:
    """Asks the engine for one answer at a time, and keeps what it says."""

    def __init__(
        self,
        store: ConversationStore,
        engine: EngineClient,
        *,
        params: Callable[[], SamplingParams],
        unchosen: Callable[[], frozenset[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`params` are those of the next answer."""
        self.request: Answer | None = None
        """What the engine was asked for and has not ended yet."""
        self.message: StoredMessage
        """As it was when the last answer began; it may belong to a conversation that is not open."""
        self.thinking: Thinking | None = None
        """What that answer has thought so far."""
        self.call: ToolCall | None = None
        """The tool that it calls, with which it ends."""
        self._store, self._engine = store, engine
        self._params, self._unchosen = params, unchosen
        self._clock = clock
        self._request_ids = count(1)
        self._thinking_since = 0.0
        self._num_tokens = 0  # of its rounds
        self._guesses: Guesses | None = None
        self._num_characters = 0
        self._has_asked = False

    @property
    def last_conversation_id(self) -> int | None:
        """Where the last answer belongs; None if there was none."""
        return self.message.conversation_id if self._has_asked else None

    def send(self, message: StoredMessage, reading: Reading, *, is_continued: bool) -> None:
        """Ask for an answer to what the model reads, as `message`."""
        params, request_id = self._params(), next(self._request_ids)
        params = replace(params, seed=params.seed + len(self._store.versions_of(message.id)) - 1)
        prompt = reading.request(params, self._unchosen(), request_id=str(request_id), is_continued=is_continued)
        self.request, self.message = Answer(request_id, prompt), message
        self.thinking, self.call, self._num_tokens = message.thinking, None, 0
        known = guesses_of(message.statistics)
        is_known = known is not None and known.end == len(message.content)  # else it was written on without being told
        self._guesses = known if is_known else None
        self._num_characters = len(message.content)
        self._has_asked = True
        self._engine.send(self.request)

    def request_of(self, reading: Reading) -> PromptRequest:
        """Return what would be asked now of what the model reads; an answer that is being edited would go on."""
        is_edited = reading.ids[-1:] == (UNSENT_ID,) and reading.turns[-1].role == "assistant"
        return reading.request(self._params(), self._unchosen(), is_continued=is_edited)

    def stop(self) -> None:
        """Let the engine end what it is writing, if it is writing; what came is kept."""
        if self.request is not None:
            self._engine.send(StopAnswer(self.request.answer_id))

    def count_tokens(self, num_tokens: int) -> None:
        """Take note of how many tokens a round had."""
        self._num_tokens += num_tokens

    def write(self, text: str, guessed: tuple[tuple[int, int], ...] | None = None) -> Changes:
        """Keep more of the answer, to be shown; `guessed`: which stretches of it were, if that is told."""
        if guessed is not None:
            before = self._guesses or Guesses(start=self._num_characters)
            self._guesses = before.with_text(len(text), guessed)
        self._num_characters += len(text)
        shown = TextCame(text, self._guesses)
        try:
            self._store.append_text(self.message.id, text)
        except ConversationStoreError:
            return (shown,)  # the store keeps it, and whoever asks for `is_unsaved` tells
        except OverstoryError as error:
            return (shown, Trouble("store", str(error)))
        return (shown,)

    def think(self, text: str) -> Changes:
        """Keep more of what is thought before the answer, to be shown."""
        now = self._clock()
        if self.thinking is None:
            self.thinking, self._thinking_since = Thinking(text=""), now
        text, seconds = self.thinking.text + text, now - self._thinking_since
        self.thinking = Thinking(text=text, num_tokens=self._num_tokens, seconds=seconds)
        shown = ThoughtCame(self.thinking)
        try:
            self._store.keep_thinking(self.message.id, self.thinking)
        except ConversationStoreError:
            return (shown,)  # the answer's end keeps it, or tells
        except OverstoryError as error:
            return (shown, Trouble("store", str(error)))
        return (shown,)

    def end(self, state: EndState, statistics: Mapping[str, Any]) -> Changes:
        """Keep how the answer ended, if one was being written."""
        request, self.request = self.request, None
        if request is None:
            return ()
        thought = {} if self.thinking is None else {"thinking": self.thinking.to_record()}
        guessed = {} if self._guesses is None else {"guesses": self._guesses.to_record()}
        called = {} if self.call is None or state == "failed" else {"call": asdict(self.call)}
        kept = {**statistics, "seed": request.prompt.params.seed, **thought, **guessed, **called}
        try:
            try:
                return (self._store.finish_answer(self.message.id, state=state, statistics=kept),)
            except ConversationStoreError:
                return (self._store.message(self.message.id),)
        except OverstoryError as error:
            return (Trouble("store", str(error)),)
