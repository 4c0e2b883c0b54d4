"""Calls of tools in conversations: which waits for a person's word, which runs, and what came of it, kept in the store.

A call waits where a branch that is shown ends with an answer that calls: that needs no memory, and holds after a
restart. Nothing here runs by itself.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from profiles.errors import BadInputError
from runtime.prompts.prompt_file import ToolCall
from tui.chat.changes import Changes
from tui.chat.engine.messages import Loaded
from tui.chat.store.records import StoredMessage
from tui.chat.store.store import ConversationStore
from tui.chat.tools.results import ToolResult

MAX_CALLS_IN_A_ROW = 20
"""After which a person is asked again, even where a tool is always allowed."""
REFUSED = "The person did not allow this call."


class ToolHost(Protocol):
    """What runs tools."""

    def offered(self) -> str | None:
        """Return the tools that a request may call, as it has them; None if there are none."""

    def call(self, answer_id: int, call: ToolCall) -> None:
        """Let a tool do what an answer asks for; its end is told, whatever happens."""

    def stop(self, answer_id: int) -> None:
        """End a call that is under way."""


class ToolCalls:
    """The calls of all conversations of one store."""

    def __init__(self, store: ConversationStore, host: ToolHost) -> None:
        self.running: StoredMessage | None = None
        """The answer whose call runs."""
        self._store, self._host = store, host
        self._always: set[tuple[int, str]] = set()  # conversations and tools

    def waiting(self, messages: Sequence[StoredMessage]) -> StoredMessage | None:
        """Return the answer at the end of a branch whose call waits for a word."""
        last = messages[-1] if messages else None
        if last is None or last.role != "assistant" or last.state != "complete" or last.call is None:
            return None
        return None if self.running is not None and self.running.id == last.id else last

    def begin(self, answer_id: int, shown: Sequence[StoredMessage]) -> Changes:
        """Run the call with which an answer has ended if it is allowed already; else a person is asked.

        `shown` are the messages of the branch that is open.
        """
        messages = self._store.messages_until(answer_id)
        if self._is_allowed(messages):
            return self.run(messages)
        if answer_id in {each.id for each in shown}:
            return ()
        return (f"a tool is called in {self._title(messages[-1])} and waits there for your word",)

    def _title(self, message: StoredMessage) -> str:
        return self._store.conversation(message.conversation_id).shown_title

    def _is_allowed(self, messages: Sequence[StoredMessage]) -> bool:
        last = messages[-1]
        behind_prompt = takewhile(lambda each: each.role != "user", reversed(messages))
        num_calls = sum(each.role == "tool" for each in behind_prompt)
        is_always = last.call is not None and (last.conversation_id, last.call.name) in self._always
        return is_always and num_calls < MAX_CALLS_IN_A_ROW

    def offered(self, model: Loaded | None) -> str | None:
        """Return the tools that a request of this model may call; None where it knows none, or none are there."""
        return self._host.offered() if model is not None and model.knows_tools else None

    def run(self, messages: Sequence[StoredMessage], *, is_always: bool = False) -> Changes:
        """Let the call at the end of a branch run, and if it `is_always` all of that tool in that conversation."""
        answer = self._expect(messages)
        assert answer.call is not None
        if is_always:
            self._always.add((answer.conversation_id, answer.call.name))
        self.running = answer
        self._host.call(answer.id, answer.call)
        return ()

    def refuse(self, messages: Sequence[StoredMessage], words: str = "") -> tuple[StoredMessage, ToolResult]:
        """Return the answer at the end of a branch, and what its model is told instead of what the tool would say."""
        return self._expect(messages), ToolResult(f"{REFUSED} They say: {words}" if words else REFUSED, "refused")

    def expect_none(self, messages: Sequence[StoredMessage]) -> None:
        """Raise BadInputError where a call waits."""
        if self.waiting(messages) is not None:
            raise BadInputError("a tool is called and waits for your word: /allow, or /refuse")

    def _expect(self, messages: Sequence[StoredMessage]) -> StoredMessage:
        if (waiting := self.waiting(messages)) is None:
            raise BadInputError("no tool waits for your word")
        return waiting

    def stop(self) -> None:
        """End the call that runs, if one does."""
        if self.running is not None:
            self._host.stop(self.running.id)

    def end(self, answer_id: int) -> StoredMessage | None:
        """Return the answer whose call has ended, if that is the one that ran."""
        if self.running is None or self.running.id != answer_id:
            return None
        ended, self.running = self.running, None
        return ended

    def keep(self, answer: StoredMessage, result: ToolResult, *, shown: Sequence[StoredMessage]) -> Changes:
        """Keep what came of a call, as a turn behind it, and return that if the branch shown ends with the call."""
        statistics = {
            "call": answer.statistics.get("call"),
            "outcome": result.outcome,
            "seconds": result.seconds,
        }
        kept = self._store.append_result(answer.id, result.text, statistics=statistics)
        if shown and shown[-1].id == answer.id:
            return (kept,)
        return (f"a tool has ended in {self._title(answer)}; /continue lets the model go on there",)
