"""Goes back and forth between what was written at one place of a conversation: answers to a prompt, edited prompts.

Messages that were dropped together are an alternative to what follows the message they followed. The alternatives of
one place have the order in which they were begun, so that back and forth reach each of them, after a restart as well.
"""

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a conversation one stands after a step."""

    number: int
    """Of the alternative that is shown, from 1 in the order in which they were begun."""
    num_alternatives: int
    is_answer: bool
    """Whether they are answers to one prompt; else prompts that took each other's place."""


@dataclass(frozen=True, slots=True)
class _Alternative:
    first_id: int
    drop_number: int | None
    """None for the one that is shown."""


def drop_messages(connection: sqlite3.Connection, conversation_id: int, *, after: int) -> int:
    """Drop those that follow the message `after`, which is not dropped, or all of them for 0; return how many."""
    return connection.execute(
        "UPDATE messages SET dropped_after = ?, drop_number = (SELECT coalesce(max(drop_number), 0) + 1 FROM messages) "
        "WHERE conversation_id = ? AND drop_number IS NULL AND id > ?",
        (after, conversation_id, after),
    ).rowcount


def step(connection: sqlite3.Connection, conversation_id: int, *, is_back: bool) -> Place | None:
    """Show the alternative before, or after, at the last place that has one; None if no place has.

    What is shown now is dropped in turn. What was cleared comes back first of all, the last that was cleared.
    """
    for after, alternatives in _places(connection, conversation_id):
        wanted = _neighbour(alternatives, is_back=is_back)
        if wanted is None:
            continue
        drop_messages(connection, conversation_id, after=after)
        connection.execute(
            "UPDATE messages SET drop_number = NULL, dropped_after = NULL "
            "WHERE conversation_id = ? AND drop_number = ?",
            (conversation_id, wanted.drop_number),
        )
        (role,) = connection.execute("SELECT role FROM messages WHERE id = ?", (wanted.first_id,)).fetchone()
        return Place(alternatives.index(wanted) + 1, len(alternatives), is_answer=role == "assistant")
    return None


def _places(connection: sqlite3.Connection, conversation_id: int) -> list[tuple[int, list[_Alternative]]]:
    """Return where the conversation has alternatives, the last place first: the message before, and all of them."""
    rows = connection.execute(
        "SELECT id, drop_number, dropped_after FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,)
    ).fetchall()
    shown_ids = [message_id for message_id, number, _ in rows if number is None]
    dropped: dict[int, dict[int, int]] = {after: {} for after in (0, *shown_ids)}
    for message_id, number, after in rows:
        if number is not None and after in dropped:
            dropped[after].setdefault(number, message_id)
    places = []
    for after in sorted((after for after, groups in dropped.items() if groups), reverse=True):
        alternatives = [_Alternative(first_id, number) for number, first_id in dropped[after].items()]
        following = next((message_id for message_id in shown_ids if message_id > after), None)
        if following is not None:
            alternatives.append(_Alternative(following, None))
        places.append((after, sorted(alternatives, key=lambda each: each.first_id)))
    return places


def _neighbour(alternatives: list[_Alternative], *, is_back: bool) -> _Alternative | None:
    shown = next((index for index, each in enumerate(alternatives) if each.drop_number is None), None)
    if shown is None:  # nothing stands there since it was cleared
        return max(alternatives, key=lambda each: each.drop_number or 0) if is_back else None
    index = shown - 1 if is_back else shown + 1
    return alternatives[index] if 0 <= index < len(alternatives) else None
