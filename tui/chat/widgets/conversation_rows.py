"""Reads and writes rows of the conversation database as values; the caller holds the transaction."""

import json
import sqlite3
from typing import Any

from tui.chat.errors import UnknownConversationError
from tui.chat.store.records import Conversation, Message, storable

_CONVERSATIONS = """
SELECT id, title, system_prompt, created_at, updated_at,
    (SELECT count(*) FROM messages WHERE conversation_id = c.id AND drop_number IS NULL),
    first_kept_id
FROM conversations c WHERE deleted_at IS NULL
"""
_MESSAGES = "SELECT id, conversation_id, role, content, state, model, statistics, created_at FROM messages"


def select_conversation(connection: sqlite3.Connection, conversation_id: int) -> Conversation:
    """One that is not deleted. Raises UnknownConversationError."""
    row = connection.execute(f"{_CONVERSATIONS} AND id = ?", (conversation_id,)).fetchone()
    if row is None:
        raise UnknownConversationError(f"conversation {conversation_id} is not there, or no longer; choose another one")
    return _to_conversation(row)


def select_conversations(connection: sqlite3.Connection, *, limit: int) -> list[Conversation]:
    """Those that are not deleted, the one used last in front; all of them for a negative limit."""
    rows = connection.execute(f"{_CONVERSATIONS} ORDER BY updated_at DESC, id DESC LIMIT ?", (limit,))
    return [_to_conversation(row) for row in rows]


def insert_conversation(
    connection: sqlite3.Connection, *, title: str, system_prompt: str, created_at: float, updated_at: float
) -> int:
    """The new row's id."""
    cursor = connection.execute(
        "INSERT INTO conversations (title, system_prompt, created_at, updated_at) VALUES (?, ?, ?, ?)",
        (title_line(title), storable(system_prompt), created_at, updated_at),
    )
    return _id_of(cursor)


def update_conversation(connection: sqlite3.Connection, conversation_id: int, **values: str | float) -> None:
    """Set columns of one that is not deleted. Raises UnknownConversationError."""
    select_conversation(connection, conversation_id)
    columns = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE conversations SET {columns} WHERE id = ?", (*values.values(), conversation_id))


def purge_conversations(connection: sqlite3.Connection, *, deleted_until: float) -> int:
    """Remove those that were deleted by then, with every trace in the index; returns how many."""
    num_purged = connection.execute("DELETE FROM conversations WHERE deleted_at <= ?", (deleted_until,)).rowcount
    if num_purged:
        # The index only marks what was deleted until it is merged: 0.7 s for 12 MB of text, once in a long while.
        connection.execute("INSERT INTO message_index (message_index) VALUES ('optimize')")
    return num_purged


def select_message(connection: sqlite3.Connection, message_id: int) -> Message:
    """One message, even a dropped one. Raises UnknownConversationError."""
    row = connection.execute(f"{_MESSAGES} WHERE id = ?", (message_id,)).fetchone()
    if row is None:
        raise UnknownConversationError(f"message {message_id} is not there, or no longer; choose another one")
    return _to_message(row)


def select_messages(connection: sqlite3.Connection, conversation_id: int) -> list[Message]:
    """Those that are not dropped, oldest first."""
    query = f"{_MESSAGES} WHERE conversation_id = ? AND drop_number IS NULL ORDER BY id"
    return [_to_message(row) for row in connection.execute(query, (conversation_id,))]


def select_prompts(connection: sqlite3.Connection, *, limit: int) -> list[str]:
    """What was asked in any conversation that is not deleted, each text once, the newest first; dropped ones too."""
    rows = connection.execute(
        "SELECT content FROM messages m JOIN conversations c ON c.id = m.conversation_id "
        "WHERE role = 'user' AND deleted_at IS NULL GROUP BY content ORDER BY max(m.id) DESC LIMIT ?",
        (limit,),
    )
    return [content for (content,) in rows]


def insert_message(
    connection: sqlite3.Connection,
    conversation_id: int,
    *,
    role: str,
    content: str,
    created_at: float,
    state: str = "complete",
    model: str = "",
    statistics: str = "{}",
    writer: str | None = None,
) -> int:
    """The new row's id; `statistics` is JSON text."""
    cursor = connection.execute(
        "INSERT INTO messages (conversation_id, role, content, created_at, state, model, statistics, writer) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (conversation_id, role, storable(content), created_at, state, storable(model), statistics, writer),
    )
    return _id_of(cursor)


def extend_answer(
    connection: sqlite3.Connection,
    message_id: int,
    text: str,
    *,
    state: str,
    writer: str | None,
    statistics: str | None,
) -> None:
    """Append text; statistics None keeps those that are there. Raises UnknownConversationError."""
    num_found = connection.execute(
        "UPDATE messages SET content = content || ?, state = ?, writer = ?, statistics = coalesce(?, statistics) "
        "WHERE id = ? AND role = 'assistant'",
        (text, state, writer, statistics, message_id),
    ).rowcount
    if num_found == 0:
        raise UnknownConversationError(f"answer {message_id} is not there, or no longer; choose another one")


def touch_conversation_of(connection: sqlite3.Connection, message_id: int, *, now: float) -> None:
    """Let the conversation of that message count as used now."""
    query = "UPDATE conversations SET updated_at = ? WHERE id = (SELECT conversation_id FROM messages WHERE id = ?)"
    connection.execute(query, (now, message_id))


def stop_answers(connection: sqlite3.Connection, writer: str | None) -> int:
    """Let what that process was writing count as stopped; returns how many answers."""
    return connection.execute(
        "UPDATE messages SET state = 'stopped', writer = NULL WHERE state = 'streaming' AND writer IS ?", (writer,)
    ).rowcount


def drop_messages(connection: sqlite3.Connection, conversation_id: int, *, after: int) -> int:
    """Drop those that follow the message `after`, which is not dropped, or all of them for 0; returns how many."""
    return connection.execute(
        "UPDATE messages SET dropped_after = ?, drop_number = (SELECT coalesce(max(drop_number), 0) + 1 FROM messages) "
        "WHERE conversation_id = ? AND drop_number IS NULL AND id > ?",
        (after, conversation_id, after),
    ).rowcount


def message_before(connection: sqlite3.Connection, message: Message) -> int:
    """The id of the last message before this one that is not dropped; 0 if it is the first."""
    row = connection.execute(
        "SELECT coalesce(max(id), 0) FROM messages WHERE conversation_id = ? AND drop_number IS NULL AND id < ?",
        (message.conversation_id, message.id),
    ).fetchone()
    return int(row[0])


def restore_messages(connection: sqlite3.Connection, conversation_id: int) -> int:
    """Swap what was dropped last with what came after it; returns how many messages are back."""
    # What was dropped behind a message that is itself dropped cannot come back before that one does.
    last = connection.execute(
        "SELECT drop_number, dropped_after FROM messages m WHERE conversation_id = ? AND drop_number IS NOT NULL "
        "AND (dropped_after = 0 OR "
        "EXISTS (SELECT 1 FROM messages p WHERE p.id = m.dropped_after AND p.drop_number IS NULL)) "
        "ORDER BY drop_number DESC LIMIT 1",
        (conversation_id,),
    ).fetchone()
    if last is None:
        return 0
    number, after = last
    drop_messages(connection, conversation_id, after=after)
    return connection.execute(
        "UPDATE messages SET drop_number = NULL, dropped_after = NULL WHERE conversation_id = ? AND drop_number = ?",
        (conversation_id, number),
    ).rowcount


def title_line(title: str) -> str:
    """A title on one line."""
    return " ".join(storable(title).split())


def _to_conversation(row: tuple[Any, ...]) -> Conversation:
    conversation_id, title, system_prompt, created_at, updated_at, num_messages, first_kept_id = row
    return Conversation(
        id=conversation_id,
        title=title,
        system_prompt=system_prompt,
        created_at=created_at,
        updated_at=updated_at,
        num_messages=num_messages,
        first_kept_id=first_kept_id,
    )


def _to_message(row: tuple[Any, ...]) -> Message:
    message_id, conversation_id, role, content, state, model, statistics, created_at = row
    return Message(
        id=message_id,
        conversation_id=conversation_id,
        role=role,
        content=content,
        state=state,
        model=model,
        statistics=json.loads(statistics),
        created_at=created_at,
    )


def _id_of(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid
