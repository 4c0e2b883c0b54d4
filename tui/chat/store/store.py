"""Conversations, kept in SQLite: every prompt, every piece of every answer, as soon as it is there.

Deleted conversations and dropped messages stay restorable. Several instances of the app may use one database, each
with one store, which may be called from any thread. Knows no screen and no model.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tui.chat.engine.writer_process import is_writing, writer_token
from tui.chat.errors import ConversationStoreError
from tui.chat.store.database import ConversationDatabase
from tui.chat.store.records import Conversation, EndState, Message, MessageState, storable, title_of_prompt
from tui.chat.store.search import MAX_HITS, SearchHit, find_hits
from tui.chat.widgets.conversation_rows import (
    drop_messages,
    extend_answer,
    insert_conversation,
    insert_message,
    message_before,
    purge_conversations,
    restore_messages,
    select_conversation,
    select_conversations,
    select_message,
    select_messages,
    select_prompts,
    stop_answers,
    title_line,
    touch_conversation_of,
    update_conversation,
)

UNDO_SECONDS = 30 * 86400.0
"""How long a deleted conversation can be brought back."""
MAX_RECENT_PROMPTS = 200


class ConversationStore:
    """All conversations of one database; a context manager.

    Every method raises ConversationStoreError if the disk is full or the database cannot be used, and
    UnknownConversationError for an id that is not there, or no longer.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """Open the database at `path`, made if need be; None keeps everything in memory."""
        self._database = ConversationDatabase(path)
        self._clock = clock
        self._unsaved: dict[int, str] = {}  # text of answers that the disk has had no room for yet
        self._token: str | None = None
        try:
            self._stop_abandoned()
            self.purge_deleted(older_than_seconds=UNDO_SECONDS)
        except BaseException:
            self._database.close()
            raise

    @property
    def notice(self) -> str | None:
        """One sentence for the user if a damaged database had to be set aside."""
        return self._database.notice

    def close(self) -> None:
        """Close the database; answers of this process that still stream are stopped. Doing so again does nothing."""
        token, self._token = self._token, None
        try:
            if token is not None:
                with self._database.writing() as connection:
                    stop_answers(connection, token)
        finally:
            self._database.close()

    def __enter__(self) -> "ConversationStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_conversation(self, *, title: str = "", system_prompt: str = "") -> Conversation:
        """Begin a conversation; without a title, its first prompt gives it one."""
        with self._database.writing() as connection:
            now = self._clock()
            conversation_id = insert_conversation(
                connection, title=title, system_prompt=system_prompt, created_at=now, updated_at=now
            )
            return select_conversation(connection, conversation_id)

    def add_conversation(self, conversation: Conversation, messages: Sequence[Message]) -> Conversation:
        """Add a whole conversation, such as an imported one, under new ids; it counts as used now."""
        with self._database.writing() as connection:
            conversation_id = insert_conversation(
                connection,
                title=conversation.title,
                system_prompt=conversation.system_prompt,
                created_at=conversation.created_at,
                updated_at=self._clock(),
            )
            for message in messages:
                insert_message(
                    connection,
                    conversation_id,
                    role=message.role,
                    content=message.content,
                    created_at=message.created_at,
                    state="stopped" if message.state == "streaming" else message.state,
                    model=message.model,
                    statistics=_to_json(message.statistics),
                )
            return select_conversation(connection, conversation_id)

    def conversation(self, conversation_id: int) -> Conversation:
        """The conversation as it is now."""
        with self._database.reading() as connection:
            return select_conversation(connection, conversation_id)

    def list_conversations(self, *, limit: int = -1) -> list[Conversation]:
        """Those that are not deleted, the one used last in front; at most `limit`, unless that is negative."""
        with self._database.reading() as connection:
            return select_conversations(connection, limit=limit)

    def rename_conversation(self, conversation_id: int, title: str) -> None:
        """Give it another title, which becomes one line."""
        with self._database.writing() as connection:
            update_conversation(connection, conversation_id, title=title_line(title))

    def set_system_prompt(self, conversation_id: int, system_prompt: str) -> None:
        """Change what the model is told first, from the next answer on."""
        with self._database.writing() as connection:
            update_conversation(connection, conversation_id, system_prompt=storable(system_prompt))

    def leave_out_before(self, conversation_id: int, message_id: int) -> None:
        """Let a model read only that message and those after it from now on; 0 for all of them."""
        with self._database.writing() as connection:
            update_conversation(connection, conversation_id, first_kept_id=message_id)

    def delete_conversation(self, conversation_id: int) -> None:
        """Take it out of lists and searches; `undo_delete` brings it back for UNDO_SECONDS."""
        with self._database.writing() as connection:
            update_conversation(connection, conversation_id, deleted_at=self._clock())

    def undo_delete(self, conversation_id: int) -> Conversation:
        """Bring a deleted conversation back; one that is not deleted stays as it is."""
        with self._database.writing() as connection:
            connection.execute("UPDATE conversations SET deleted_at = NULL WHERE id = ?", (conversation_id,))
            return select_conversation(connection, conversation_id)

    def purge_deleted(self, *, older_than_seconds: float) -> int:
        """Remove for good what was deleted so long ago, and overwrite it; returns how many conversations."""
        with self._database.writing() as connection:
            return purge_conversations(connection, deleted_until=self._clock() - older_than_seconds)

    def messages(self, conversation_id: int) -> list[Message]:
        """The messages, oldest first, without those that were dropped."""
        with self._database.reading() as connection:
            select_conversation(connection, conversation_id)
            return select_messages(connection, conversation_id)

    def message(self, message_id: int) -> Message:
        """One message, even if it was dropped."""
        with self._database.reading() as connection:
            return select_message(connection, message_id)

    def recent_prompts(self, *, limit: int = MAX_RECENT_PROMPTS) -> list[str]:
        """What was asked in any conversation, each text once, the newest first: for a history of prompts."""
        with self._database.reading() as connection:
            return select_prompts(connection, limit=limit)

    def append_prompt(self, conversation_id: int, content: str) -> Message:
        """Add what the user says; names the conversation if it has no title yet."""
        with self._database.writing() as connection:
            now = self._clock()
            conversation = select_conversation(connection, conversation_id)
            title = conversation.title or title_line(title_of_prompt(content))
            update_conversation(connection, conversation_id, title=title, updated_at=now)
            message_id = insert_message(connection, conversation_id, role="user", content=content, created_at=now)
            return select_message(connection, message_id)

    def begin_answer(self, conversation_id: int, *, model: str) -> Message:
        """Add an empty answer that streams."""
        token = self._writer_token()
        with self._database.writing() as connection:
            now = self._clock()
            update_conversation(connection, conversation_id, updated_at=now)
            message_id = insert_message(
                connection,
                conversation_id,
                role="assistant",
                content="",
                created_at=now,
                state="streaming",
                model=model,
                writer=token,
            )
            return select_message(connection, message_id)

    def continue_answer(self, message_id: int) -> Message:
        """Let an answer that has ended stream again, from its end on."""
        self.append_text(message_id, "")
        return self.message(message_id)

    def append_text(self, message_id: int, text: str) -> None:
        """Save more of an answer, which streams from now on if it did not.

        Text that could not be saved is kept for the next call: after a full disk nothing is missing in between.
        """
        self._extend(message_id, text, state="streaming", writer=self._writer_token())

    def finish_answer(
        self, message_id: int, *, state: EndState = "complete", statistics: Mapping[str, Any] | None = None
    ) -> Message:
        """End an answer; `statistics`, JSON values by name, replace those it has, if given."""
        self._extend(message_id, "", state=state, statistics=None if statistics is None else _to_json(statistics))
        return self.message(message_id)

    def drop_messages_from(self, message_id: int) -> int:
        """Take this message and all after it out of the conversation; returns how many.

        For another answer to the same prompt, or another prompt in place of one: `restore_dropped` takes it back.
        """
        with self._database.writing() as connection:
            message = select_message(connection, message_id)
            return drop_messages(connection, message.conversation_id, after=message_before(connection, message))

    def restore_dropped(self, conversation_id: int) -> int:
        """Bring back what was dropped last in place of what came after; returns how many messages, 0 if none.

        What it replaces counts as dropped in turn, so that doing this twice changes nothing.
        """
        with self._database.writing() as connection:
            select_conversation(connection, conversation_id)
            return restore_messages(connection, conversation_id)

    def search(self, query: str, *, limit: int = MAX_HITS) -> list[SearchHit]:
        """Where all terms of the query occur, in titles and messages; any text is a query."""
        with self._database.reading() as connection:
            return find_hits(connection, query, limit=limit)

    def _extend(
        self,
        message_id: int,
        text: str,
        *,
        state: MessageState,
        writer: str | None = None,
        statistics: str | None = None,
    ) -> None:
        pending = self._unsaved.get(message_id, "") + storable(text)
        try:
            with self._database.writing() as connection:
                extend_answer(connection, message_id, pending, state=state, writer=writer, statistics=statistics)
                if state != "streaming":
                    touch_conversation_of(connection, message_id, now=self._clock())
        except ConversationStoreError:
            self._unsaved[message_id] = pending
            raise
        self._unsaved.pop(message_id, None)

    def _writer_token(self) -> str:
        if self._token is None:
            self._token = writer_token()
        return self._token

    def _stop_abandoned(self) -> None:
        """Answers whose process is gone were stopped by that."""
        with self._database.reading() as connection:
            writers = connection.execute("SELECT DISTINCT writer FROM messages WHERE state = 'streaming'").fetchall()
        gone = [writer for (writer,) in writers if writer is None or not is_writing(writer)]
        if gone:
            with self._database.writing() as connection:
                for writer in gone:
                    stop_answers(connection, writer)


def _to_json(statistics: Mapping[str, Any]) -> str:
    return json.dumps(dict(statistics), allow_nan=False)
