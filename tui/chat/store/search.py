"""Finds text in titles and messages: every term must occur, anywhere, upper case or lower; parts of words count.

Terms stand between spaces; within double quotes spaces belong to the term. No other sign means anything, so whatever
a person types is a query. Every message is looked through: 12 MB of text take 0.03 s.
"""

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tui.chat.store.records import storable
from tui.terminal_text import show_terminal_escapes

MAX_HITS = 50
MAX_TERMS = 32
"""SQLite refuses expressions that are too deep, and a person may paste a page into the search."""
SNIPPET_LENGTH = 80
_LEAD_LENGTH = 24
"""Characters of a snippet before the first match."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One conversation in whose title or messages all terms occur."""

    conversation_id: int
    title: str
    snippet: str
    """A piece of the newest such message, or else of the title: on one line, terminal escapes shown as text."""
    matches: tuple[tuple[int, int], ...]
    """Start and end of each term's occurrences within the snippet, in order."""
    message_id: int = 0
    """The newest such message, on whatever branch; 0 where only the title holds the terms."""


def search_terms(query: str) -> tuple[str, ...]:
    """Return what must occur, in the order typed; beyond MAX_TERMS different ones the rest is ignored."""
    pairs = re.findall(r'"([^"]+)"|(\S+)', storable(query))
    candidates = (quoted or bare.strip('"') for quoted, bare in pairs)
    return tuple(dict.fromkeys(term for term in candidates if term.strip()))[:MAX_TERMS]


def find_hits(connection: sqlite3.Connection, query: str) -> list[SearchHit]:
    """Return each conversation once: where the title was found, those used last in front, then the newest messages."""
    terms = search_terms(query)
    if not terms:
        return []
    connection.create_function("holds", 2, _holds, deterministic=True)
    found = {row[0]: row for row in (*_titles(connection, terms), *_messages(connection, terms))}
    return [
        SearchHit(conversation_id, title, *make_snippet(text, terms), message_id=message_id)
        for conversation_id, title, text, message_id in list(found.values())[:MAX_HITS]
    ]


def make_snippet(text: str, terms: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Cut `text` around its first match, on one line and safe to print; return that and where the terms stand in it."""
    # Spaces may have been line ends; longer terms are tried first, so that a term within another does not hide it.
    forms = (r"\s+".join(map(re.escape, term.split())) for term in sorted(terms, key=len, reverse=True))
    pattern = re.compile("|".join(forms), re.IGNORECASE)
    first = pattern.search(text)
    start = max(0, (first.start() if first else 0) - _LEAD_LENGTH)
    # Enough of the text that its spaces, once collapsed, still leave a whole snippet.
    piece = show_terminal_escapes(" ".join(text[start : start + 4 * SNIPPET_LENGTH].split()))
    is_cut = len(piece) > SNIPPET_LENGTH or start + 4 * SNIPPET_LENGTH < len(text.rstrip())
    snippet = f"{'…' if start else ''}{piece[:SNIPPET_LENGTH].rstrip()}{'…' if is_cut else ''}"
    return snippet, tuple(match.span() for match in pattern.finditer(snippet))


def _titles(connection: sqlite3.Connection, terms: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the conversation's id and title, the text that was found, and no message."""
    return connection.execute(
        "SELECT id, title, title, 0 FROM conversations "
        f"WHERE deleted_at IS NULL AND {_holds_all('title', terms)} ORDER BY updated_at DESC, id DESC LIMIT ?",
        (*terms, MAX_HITS),
    ).fetchall()


def _messages(connection: sqlite3.Connection, terms: Sequence[str]) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT c.id, c.title, m.content, max(m.id) AS newest "
        "FROM messages m JOIN conversations c ON c.id = m.conversation_id "
        f"WHERE c.deleted_at IS NULL AND {_holds_all('m.content', terms)} "
        "GROUP BY c.id ORDER BY newest DESC LIMIT ?",
        (*terms, MAX_HITS),
    ).fetchall()


def _holds_all(column: str, terms: Sequence[str]) -> str:
    return " AND ".join(f"holds({column}, ?)" for _ in terms)


def _holds(text: str, term: str) -> bool:
    return term.lower() in text.lower()
