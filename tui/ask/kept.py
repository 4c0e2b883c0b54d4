"""Where questions of `ask` and their answers are kept: among the chat's conversations, as the chat keeps its own."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from profiles.errors import BadInputError, OverstoryError
from profiles.files import parse_json_text, read_regular_file
from runtime.prompts.prompt_file import Message
from tui.ask.pieces import Ended, Piece, Said
from tui.chat.store.private_files import replace_private_file
from tui.chat.store.records import Conversation, EndState, StoredMessage, Thinking, chat_turns, readable
from tui.chat.store.store import ConversationStore
from tui.commands.chat import open_conversations
from tui.environment import data_folder
from tui.terminal_text import one_line

LAST_FILE = "last-ask.json"
"""Names the conversation that `--continue` goes on with."""
_ASK_ONCE = 'leave out --continue, and ask as in overstory ask "Hi"'


@contextmanager
def kept_conversation(*, goes_on: bool, is_kept: bool) -> Iterator["KeptConversation"]:
    """Lend the conversation that a question belongs to: the last one of `ask` if it `goes_on`, else a new one.

    Raises BadInputError where there is none to go on with.
    """
    if not (goes_on or is_kept):
        yield KeptConversation(None)
        return
    store, notices = open_conversations()
    with store:
        for notice in notices:
            _tell(notice)
        conversation = _last_conversation(store) if goes_on else None
        earlier = [] if conversation is None else store.messages(conversation.id)
        yield KeptConversation(store if is_kept else None, conversation, earlier)


def _last_conversation(store: ConversationStore) -> Conversation:
    try:
        record = parse_json_text(read_regular_file(data_folder() / LAST_FILE, max_bytes=1000))
        conversation_id = msgspec.convert(record, dict[str, int])["conversation_id"]
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"there is no conversation of ask to continue; {_ASK_ONCE}") from error
    try:
        return store.conversation(conversation_id)
    except BadInputError as error:
        raise BadInputError(f"the last conversation of ask was deleted; {_ASK_ONCE}") from error


def _remember(conversation: Conversation) -> None:
    content = msgspec.json.encode({"conversation_id": conversation.id})
    replace_private_file(data_folder() / LAST_FILE, content)


@dataclass(slots=True)
class KeptConversation:
    """One conversation of `ask`; what cannot be kept is told once, and the answer goes on."""

    store: ConversationStore | None
    """None keeps nothing."""
    conversation: Conversation | None = None
    """None until one is begun."""
    earlier: list[StoredMessage] = field(default_factory=list)
    answer_id: int = 0
    thought: str = ""
    """What the answer thought so far."""
    begun: float = field(default_factory=time.perf_counter)

    def messages(self, question: str, *, system: str | None) -> tuple[Message, ...]:
        """Return what a model is shown: what was said before, and the question; `system` None is what was told then."""
        told = "" if self.conversation is None else self.conversation.system_prompt
        turns = chat_turns(told if system is None else system, readable(self.earlier))
        if turns and turns[-1].role == "user":  # whose answer never came: many templates want one turn of two
            question = f"{turns[-1].content}\n\n{question}"
            turns = turns[:-1]
        return (*turns, Message("user", question))

    def begin(self, question: str, *, system: str | None, model: str) -> None:
        """Keep the question, to which an answer is about to come."""

        def save(store: ConversationStore) -> None:
            if self.conversation is None:
                self.conversation = store.create_conversation(system_prompt=system or "")
            elif system is not None:
                store.set_system_prompt(self.conversation.id, system)
            store.append_prompt(self.conversation.id, question)
            self.answer_id = store.begin_answer(self.conversation.id, model=model).id
            _remember(self.conversation)

        self._save(save)

    def add(self, piece: Piece) -> None:
        """Keep a piece of the answer."""
        if isinstance(piece, Said) and piece.is_thinking:
            self.thought += piece.text
        elif isinstance(piece, Said):
            self._save(lambda store: store.append_text(self.answer_id, piece.text))
        elif isinstance(piece, Ended):
            self.end("stopped" if piece.finish_reason == "stopped" else "complete", piece)

    def end(self, state: EndState, ended: Ended | None = None, *, error: str | None = None) -> None:
        """Keep how the answer ended; nothing more is kept of it."""
        statistics: dict[str, Any] = {"seconds": time.perf_counter() - self.begun}
        if ended is not None:
            statistics["finish_reason"] = ended.finish_reason
            statistics["num_new_tokens"] = ended.usage.get("completion_tokens", 0)
        if error is not None:
            statistics["error"] = error
        if self.thought:
            statistics["thinking"] = Thinking(text=self.thought).to_record()
        self._save(lambda store: store.finish_answer(self.answer_id, state=state, statistics=statistics))
        self.store = None

    def _save(self, save: Callable[[ConversationStore], object]) -> None:
        if self.store is None:
            return
        try:
            save(self.store)
        except (OverstoryError, OSError) as error:
            self.store = None
            _tell(f"question and answer are not kept: {error}")


def _tell(sentence: str) -> None:
    sys.stderr.write(f"overstory: {one_line(sentence)}\n")
