"""Conversations and messages as rows of the database: each is selected, added and changed over one connection."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from profiles.errors import BadInputError
from tui.chat.store.branches import Branch, MessageTree, Node
from tui.chat.store.records import Conversation, StoredMessage, storable

MAX_BRANCH_WORDS = 200
"""Characters of the messages that tell a branch from others."""

SHOWN = "WITH RECURSIVE shown (id) AS (SELECT {leaf} UNION SELECT parent_id FROM messages JOIN shown USING (id))"
"""The messages of the branch that ends with a leaf, and 0."""
ALL_CONVERSATIONS = f"""
SELECT id, title, system_prompt, created_at, updated_at, deleted_at, leaf_id,
    ({SHOWN.format(leaf="c.leaf_id")} SELECT count(*) FROM messages JOIN shown USING (id)) AS num_messages
FROM conversations c
"""
CONVERSATIONS = f"{ALL_CONVERSATIONS} WHERE deleted_at IS NULL"
MESSAGES = (
    "SELECT id, conversation_id, parent_id, role, content, state, model, statistics, created_at, is_left_out "
    "FROM messages"
)


def unknown(what: str) -> BadInputError:
    """Say that something is not there."""
    return BadInputError(f"{what} is not there, or no longer; choose another one")


def select_conversation(connection: sqlite3.Connection, conversation_id: int | None) -> Conversation:
    """Return a conversation that is not deleted; BadInputError if it is, or was never there."""
    row = connection.execute(f"{CONVERSATIONS} AND id = ?", (conversation_id,)).fetchone()
    if row is None:
        raise unknown(f"conversation {conversation_id}")
    return Conversation(**row)


def is_there(connection: sqlite3.Connection, conversation_id: int) -> bool:
    """Return whether the conversation was not purged; it may be deleted."""
    query = "SELECT 1 FROM conversations WHERE id = ?"
    return connection.execute(query, (conversation_id,)).fetchone() is not None


def select_message(connection: sqlite3.Connection, message_id: int | None) -> StoredMessage:
    """Return one message; BadInputError if it is not there."""
    row = connection.execute(f"{MESSAGES} WHERE id = ?", (message_id,)).fetchone()
    if row is None:
        raise unknown(f"message {message_id}")
    return to_message(row)


def select_tree(connection: sqlite3.Connection, conversation_id: int) -> MessageTree:
    """Return what follows what in a conversation."""
    query = "SELECT id, parent_id, last_shown FROM messages WHERE conversation_id = ?"
    return MessageTree(Node(*row) for row in connection.execute(query, (conversation_id,)))


def select_branch(connection: sqlite3.Connection, tree: MessageTree, leaf_id: int, *, is_shown: bool) -> Branch:
    """Return the branch that ends there, as a list shows it."""
    parting = select_message(connection, tree.parting(leaf_id))
    parent = select_message(connection, parting.parent_id) if parting.parent_id else None
    return Branch(
        leaf_id=leaf_id,
        num_messages=len(tree.path(leaf_id)),
        role=parting.role,
        words=parting.content[:MAX_BRANCH_WORDS],
        follows=parent.content[:MAX_BRANCH_WORDS] if parent is not None else "",
        parting_number=len(tree.path(parting.id)),
        updated_at=select_message(connection, leaf_id).created_at,
        is_shown=is_shown,
    )


def go_to(connection: sqlite3.Connection, conversation_id: int, leaf_id: int) -> None:
    """Show the branch that ends there, and remember where the one shown so far does."""
    connection.execute(
        "UPDATE messages SET last_shown = 1 + (SELECT max(last_shown) FROM messages WHERE conversation_id = ?1) "
        "WHERE id = (SELECT leaf_id FROM conversations WHERE id = ?1)",
        (conversation_id,),
    )
    connection.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", (leaf_id, conversation_id))


def add_message(connection: sqlite3.Connection, message: StoredMessage, *, writer: str | None = None) -> StoredMessage:
    """Store a message at the end of the branch that is shown."""
    parent_id = select_conversation(connection, message.conversation_id).leaf_id
    added = insert_message(connection, replace(message, parent_id=parent_id), writer=writer)
    connection.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", (added.id, added.conversation_id))
    return added


def insert_message(
    connection: sqlite3.Connection, message: StoredMessage, *, writer: str | None = None
) -> StoredMessage:
    """Store a message under a new id, and return it as it is stored."""
    values = asdict(message) | {
        "id": None,
        "content": storable(message.content),
        "model": storable(message.model),
        "statistics": to_json(message.statistics),
        "writer": writer,
    }
    columns, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    inserted = connection.execute(f"INSERT INTO messages ({columns}) VALUES ({places})", values)
    return select_message(connection, inserted.lastrowid)


def update_conversation(connection: sqlite3.Connection, conversation_id: int, **values: str | float) -> None:
    """Change columns of a conversation that is not deleted."""
    select_conversation(connection, conversation_id)
    columns = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE conversations SET {columns} WHERE id = ?", (*values.values(), conversation_id))


def stop_answers(connection: sqlite3.Connection, writer: str | None) -> None:
    """Mark what a process was writing as stopped."""
    connection.execute(
        "UPDATE messages SET state = 'stopped', writer = NULL WHERE state = 'streaming' AND writer IS ?", (writer,)
    )


def to_message(row: sqlite3.Row) -> StoredMessage:
    """Return the message of a row that MESSAGES selects."""
    read = {"statistics": json.loads(row["statistics"]), "is_left_out": bool(row["is_left_out"])}
    return StoredMessage(**{**row, **read})


def to_json(statistics: Mapping[str, Any]) -> str:
    """Write statistics as they are kept."""
    return json.dumps(dict(statistics), allow_nan=False)


def title_line(title: str) -> str:
    """Return a title as one line that can be stored."""
    return " ".join(storable(title).split())
