"""What was written in the prompt and not sent, kept for each conversation, also for one that is yet to begin."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from tui.chat.store.records import storable


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Words that wait to be sent."""

    text: str = ""
    edited_id: int = 0
    """The message that `edit` is to take the place of; 0 for none."""
    edit: str = ""
    """What was written beside the text: an earlier message that is being changed."""


def select_draft(
    connection: sqlite3.Connection, conversation_id: int | None, *, writer: str, is_writing: Callable[[str], bool]
) -> Draft:
    """Return a conversation's draft, an empty one if it has none.

    None is the conversation that `writer`, a process, has yet to begin; what a process that is gone left there is taken
    over, the newest first.
    """
    if conversation_id is None and _row(connection, None, writer) is None:
        for (left_by,) in connection.execute(
            "SELECT writer FROM drafts WHERE conversation_id IS NULL ORDER BY id DESC"
        ).fetchall():
            if not is_writing(left_by):
                connection.execute(
                    "UPDATE drafts SET writer = ? WHERE conversation_id IS NULL AND writer = ?", (writer, left_by)
                )
                break
    row = _row(connection, conversation_id, writer)
    return Draft() if row is None else Draft(**row)


def replace_draft(connection: sqlite3.Connection, conversation_id: int | None, draft: Draft, *, writer: str) -> None:
    """Keep a conversation's draft in place of the one before; an empty one is none."""
    connection.execute(f"DELETE FROM drafts WHERE {_WHERE}", (conversation_id, writer))
    if draft.text or draft.edit:
        connection.execute(
            "INSERT INTO drafts (conversation_id, writer, text, edited_id, edit) VALUES (?, ?, ?, ?, ?)",
            (conversation_id, writer, storable(draft.text), draft.edited_id, storable(draft.edit)),
        )


_WHERE = "conversation_id IS ?1 AND (conversation_id IS NOT NULL OR writer = ?2)"


def _row(connection: sqlite3.Connection, conversation_id: int | None, writer: str) -> sqlite3.Row | None:
    query = f"SELECT text, edited_id, edit FROM drafts WHERE {_WHERE} ORDER BY id DESC"
    row: sqlite3.Row | None = connection.execute(query, (conversation_id, writer)).fetchone()
    return row
