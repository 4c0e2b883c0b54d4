"""Conversations, kept in SQLite: every prompt, every piece of every answer, as soon as it is there.

Deleted conversations and dropped messages stay restorable. Several instances of the app may use one database, each
with one store, which may be called from any thread.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from profiles.errors import BadInputError
from tui.chat.store.database import ConversationDatabase, ConversationStoreError
from tui.chat.store.records import Conversation, EndState, MessageState, StoredMessage, storable, title_of_prompt
from tui.chat.store.search import SearchHit, find_hits

UNDO_SECONDS = 30 * 86400.0
"""How long a deleted conversation can be brought back."""
_CLOCK_SECONDS = 10.0
"""A process's start time is derived from the system's clock, which may have been set since."""

_CONVERSATIONS = """
SELECT id, title, system_prompt, created_at, updated_at, first_kept_id,
    (SELECT count(*) FROM messages WHERE conversation_id = c.id AND drop_number IS NULL) AS num_messages
FROM conversations c WHERE deleted_at IS NULL
"""
_MESSAGES = "SELECT id, conversation_id, role, content, state, model, statistics, created_at FROM messages"


class ConversationStore:
    """All conversations of one database; a context manager.

    Every method raises ConversationStoreError if the disk is full or the database cannot be used, and
    BadInputError for an id that is not there, or no longer.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """Open the database at `path`, made if need be; None keeps everything in memory."""
        self._database = ConversationDatabase(path)
        self.notice = self._database.notice
        """One sentence for the user if a damaged database had to be set aside."""
        self._clock = clock
        self._unsaved: dict[int, str] = {}  # text of answers that the disk has had no room for yet
        self._token: str | None = None
        try:
            self._stop_abandoned()
            self.purge_deleted(older_than_seconds=UNDO_SECONDS)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database; answers of this process that still stream are stopped. Doing so again does nothing."""
        token, self._token = self._token, None
        try:
            if token is not None:
                with self._database.writing() as connection:
                    _stop_answers(connection, token)
        finally:
            self._database.close()

    def __enter__(self) -> "ConversationStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_conversation(self, *, title: str = "", system_prompt: str = "") -> Conversation:
        """Begin a conversation; without a title, its first prompt gives it one."""
        now = self._clock()
        begun = Conversation(title=title, system_prompt=system_prompt, created_at=now, updated_at=now)
        return self.add_conversation(begun, ())

    def add_conversation(self, conversation: Conversation, messages: Sequence[StoredMessage]) -> Conversation:
        """Add a whole conversation, such as an imported one, under new ids; it counts as used now."""
        title, system_prompt = _title_line(conversation.title), storable(conversation.system_prompt)
        with self._database.writing() as connection:
            added_id = (
                connection.execute(
                    "INSERT INTO conversations (title, system_prompt, created_at, updated_at) VALUES (?, ?, ?, ?)",
                    (title, system_prompt, conversation.created_at, self._clock()),
                ).lastrowid
                or 0
            )
            for message in messages:
                state: MessageState = "stopped" if message.state == "streaming" else message.state
                _insert(connection, replace(message, conversation_id=added_id, state=state))
            return _select_conversation(connection, added_id)

    def conversation(self, conversation_id: int) -> Conversation:
        """Return the conversation as it is now."""
        with self._database.reading() as connection:
            return _select_conversation(connection, conversation_id)

    def list_conversations(self, *, limit: int = -1) -> list[Conversation]:
        """Return those that are not deleted, the one used last in front; at most `limit`, unless that is negative."""
        with self._database.reading() as connection:
            query = f"{_CONVERSATIONS} ORDER BY updated_at DESC, id DESC LIMIT ?"
            return [Conversation(**row) for row in connection.execute(query, (limit,))]

    def rename_conversation(self, conversation_id: int, title: str) -> None:
        """Give it another title, which becomes one line."""
        self._update(conversation_id, title=_title_line(title))

    def set_system_prompt(self, conversation_id: int, system_prompt: str) -> None:
        """Change what the model is told first, from the next answer on."""
        self._update(conversation_id, system_prompt=storable(system_prompt))

    def leave_out_before(self, conversation_id: int, message_id: int) -> None:
        """Let a model read only that message and those after it from now on; 0 for all of them."""
        self._update(conversation_id, first_kept_id=message_id)

    def delete_conversation(self, conversation_id: int) -> None:
        """Take it out of lists and searches; `undo_delete` brings it back for UNDO_SECONDS."""
        self._update(conversation_id, deleted_at=self._clock())

    def undo_delete(self, conversation_id: int) -> Conversation:
        """Bring a deleted conversation back; one that is not deleted stays as it is."""
        with self._database.writing() as connection:
            connection.execute("UPDATE conversations SET deleted_at = NULL WHERE id = ?", (conversation_id,))
            return _select_conversation(connection, conversation_id)

    def purge_deleted(self, *, older_than_seconds: float) -> int:
        """Remove for good what was deleted so long ago, overwrite it, and return how many conversations that were."""
        with self._database.writing() as connection:
            deleted_until = self._clock() - older_than_seconds
            deleted = connection.execute("DELETE FROM conversations WHERE deleted_at <= ?", (deleted_until,))
            return deleted.rowcount

    def messages(self, conversation_id: int) -> list[StoredMessage]:
        """Return the messages, oldest first, without those that were dropped."""
        with self._database.reading() as connection:
            _select_conversation(connection, conversation_id)
            query = f"{_MESSAGES} WHERE conversation_id = ? AND drop_number IS NULL ORDER BY id"
            return [_to_message(row) for row in connection.execute(query, (conversation_id,))]

    def message(self, message_id: int) -> StoredMessage:
        """Return one message, even if it was dropped."""
        with self._database.reading() as connection:
            return _select_message(connection, message_id)

    def append_prompt(self, conversation_id: int, content: str) -> StoredMessage:
        """Add what the user says; names the conversation if it has no title yet."""
        with self._database.writing() as connection:
            now = self._clock()
            title = _select_conversation(connection, conversation_id).title or _title_line(title_of_prompt(content))
            _update_conversation(connection, conversation_id, title=title, updated_at=now)
            prompt = StoredMessage(
                conversation_id=conversation_id, role="user", content=content, state="complete", created_at=now
            )
            return _insert(connection, prompt)

    def begin_answer(self, conversation_id: int, *, model: str) -> StoredMessage:
        """Add an empty answer that streams."""
        token = self._writer_token()
        with self._database.writing() as connection:
            now = self._clock()
            _update_conversation(connection, conversation_id, updated_at=now)
            answer = StoredMessage(
                conversation_id=conversation_id,
                role="assistant",
                content="",
                state="streaming",
                model=model,
                created_at=now,
            )
            return _insert(connection, answer, writer=token)

    def continue_answer(self, message_id: int) -> StoredMessage:
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
    ) -> StoredMessage:
        """End an answer; `statistics`, JSON values by name, replace those it has, if given."""
        self._extend(message_id, "", state=state, statistics=None if statistics is None else _to_json(statistics))
        return self.message(message_id)

    def drop_messages_from(self, message_id: int) -> int:
        """Take this message and all after it out of the conversation, and return how many.

        For another answer to the same prompt, or another prompt in place of one: `restore_dropped` takes it back.
        """
        with self._database.writing() as connection:
            conversation_id = _select_message(connection, message_id).conversation_id
            query = "SELECT coalesce(max(id), 0) FROM messages WHERE conversation_id = ? AND drop_number IS NULL"
            (before,) = connection.execute(f"{query} AND id < ?", (conversation_id, message_id)).fetchone()
            return _drop_messages(connection, conversation_id, after=before)

    def restore_dropped(self, conversation_id: int) -> int:
        """Bring back what was dropped last in place of what came after, and return how many messages, 0 if none.

        What it replaces counts as dropped in turn, so that doing this twice changes nothing.
        """
        with self._database.writing() as connection:
            _select_conversation(connection, conversation_id)
            # What was dropped behind a message that is itself dropped cannot come back before that one does.
            last = connection.execute(
                "SELECT drop_number, dropped_after FROM messages m "
                "WHERE conversation_id = ? AND drop_number IS NOT NULL AND (dropped_after = 0 OR "
                "EXISTS (SELECT 1 FROM messages p WHERE p.id = m.dropped_after AND p.drop_number IS NULL)) "
                "ORDER BY drop_number DESC LIMIT 1",
                (conversation_id,),
            ).fetchone()
            if last is None:
                return 0
            number, after = last
            _drop_messages(connection, conversation_id, after=after)
            return connection.execute(
                "UPDATE messages SET drop_number = NULL, dropped_after = NULL "
                "WHERE conversation_id = ? AND drop_number = ?",
                (conversation_id, number),
            ).rowcount

    def search(self, query: str) -> list[SearchHit]:
        """Find where all terms of the query occur, in titles and messages; any text is a query."""
        with self._database.reading() as connection:
            return find_hits(connection, query)

    def _update(self, conversation_id: int, **values: str | float) -> None:
        with self._database.writing() as connection:
            _update_conversation(connection, conversation_id, **values)

    def _extend(
        self,
        message_id: int,
        text: str,
        *,
        state: MessageState,
        writer: str | None = None,
        statistics: str | None = None,
    ) -> None:
        """Append text to an answer; statistics None keeps those that are there."""
        pending = self._unsaved.get(message_id, "") + storable(text)
        try:
            with self._database.writing() as connection:
                extended = connection.execute(
                    "UPDATE messages SET content = content || ?, state = ?, writer = ?, "
                    "statistics = coalesce(?, statistics) WHERE id = ? AND role = 'assistant'",
                    (pending, state, writer, statistics, message_id),
                )
                if not extended.rowcount:
                    raise _unknown(f"answer {message_id}")
                if state != "streaming":
                    connection.execute(
                        "UPDATE conversations SET updated_at = ? "
                        "WHERE id = (SELECT conversation_id FROM messages WHERE id = ?)",
                        (self._clock(), message_id),
                    )
        except ConversationStoreError:
            self._unsaved[message_id] = pending
            raise
        self._unsaved.pop(message_id, None)

    def _writer_token(self) -> str:
        if self._token is None:
            self._token = writer_token()
        return self._token

    def _stop_abandoned(self) -> None:
        """Mark answers as stopped whose process is gone."""
        with self._database.writing() as connection:
            query = "SELECT DISTINCT writer FROM messages WHERE state = 'streaming'"
            for (writer,) in connection.execute(query).fetchall():
                if writer is None or not is_writing(writer):
                    _stop_answers(connection, writer)


def writer_token() -> str:
    """Name this process among all that ever ran on this machine: its number is used again, its start time not."""
    import psutil  # here, since an app that only shows old conversations needs none of it

    return f"{os.getpid()} {psutil.Process().create_time():.2f}"


def is_writing(token: str) -> bool:
    """Return whether the process that the token names still runs; False for what is no token."""
    import psutil

    try:
        number, started_at = token.split()
        process = psutil.Process(int(number))
        is_same = abs(process.create_time() - float(started_at)) < _CLOCK_SECONDS
        return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except (ValueError, OverflowError, psutil.Error):
        return False


def _unknown(what: str) -> BadInputError:
    return BadInputError(f"{what} is not there, or no longer; choose another one")


def _select_conversation(connection: sqlite3.Connection, conversation_id: int | None) -> Conversation:
    row = connection.execute(f"{_CONVERSATIONS} AND id = ?", (conversation_id,)).fetchone()
    if row is None:
        raise _unknown(f"conversation {conversation_id}")
    return Conversation(**row)


def _select_message(connection: sqlite3.Connection, message_id: int | None) -> StoredMessage:
    row = connection.execute(f"{_MESSAGES} WHERE id = ?", (message_id,)).fetchone()
    if row is None:
        raise _unknown(f"message {message_id}")
    return _to_message(row)


def _insert(connection: sqlite3.Connection, message: StoredMessage, *, writer: str | None = None) -> StoredMessage:
    """Store a message under a new id, and return it as it is stored."""
    values = asdict(message) | {
        "id": None,
        "content": storable(message.content),
        "model": storable(message.model),
        "statistics": _to_json(message.statistics),
        "writer": writer,
    }
    columns, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    inserted = connection.execute(f"INSERT INTO messages ({columns}) VALUES ({places})", values)
    return _select_message(connection, inserted.lastrowid)


def _update_conversation(connection: sqlite3.Connection, conversation_id: int, **values: str | float) -> None:
    _select_conversation(connection, conversation_id)
    columns = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE conversations SET {columns} WHERE id = ?", (*values.values(), conversation_id))


def _drop_messages(connection: sqlite3.Connection, conversation_id: int, *, after: int) -> int:
    """Drop those that follow the message `after`, which is not dropped, or all of them for 0; return how many."""
    return connection.execute(
        "UPDATE messages SET dropped_after = ?, drop_number = (SELECT coalesce(max(drop_number), 0) + 1 FROM messages) "
        "WHERE conversation_id = ? AND drop_number IS NULL AND id > ?",
        (after, conversation_id, after),
    ).rowcount


def _stop_answers(connection: sqlite3.Connection, writer: str | None) -> None:
    connection.execute(
        "UPDATE messages SET state = 'stopped', writer = NULL WHERE state = 'streaming' AND writer IS ?", (writer,)
    )


def _to_message(row: sqlite3.Row) -> StoredMessage:
    return StoredMessage(**{**row, "statistics": json.loads(row["statistics"])})


def _to_json(statistics: Mapping[str, Any]) -> str:
    return json.dumps(dict(statistics), allow_nan=False)


def _title_line(title: str) -> str:
    return " ".join(storable(title).split())
