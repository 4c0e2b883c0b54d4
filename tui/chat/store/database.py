"""The SQLite file below the conversation store: opened privately, checked, replaced if damaged; faults as sentences.

Commits reach the operating system at once: a killed process loses none, only a power cut can lose the last ones (WAL
with `synchronous=NORMAL`: waiting for the disk, which also delivers layers, would stall the interface).
"""

import glob
import os
import sqlite3
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from profiles.errors import OverstoryError
from tui.chat.store.private_files import make_private_folder, set_aside
from tui.terminal_text import one_line

BUSY_SECONDS = 5.0
"""How long to wait for another instance's write; one takes milliseconds."""

_PRIVATE_FILE = 0o600
_MAGIC = b"SQLite format 3\0"
_COMPANIONS = ("-wal", "-shm")
_SENTENCES = (
    ("SQLITE_FULL", "the disk is full; make room, nothing that was saved is lost"),
    ("SQLITE_READONLY", "it cannot be written; make the file and its folder writable, or set OVERSTORY_DATA"),
    ("SQLITE_CANTOPEN", "it cannot be opened; make its folder writable, or set OVERSTORY_DATA"),
    ("SQLITE_PERM", "it may not be opened; make it yours, or set OVERSTORY_DATA"),
    ("SQLITE_BUSY", f"another program has been writing to it for {BUSY_SECONDS:g} seconds; close that, or try again"),
    ("SQLITE_CORRUPT", "it is damaged; start overstory chat again, which sets it aside and begins a new one"),
    ("SQLITE_NOTADB", "it is damaged; start overstory chat again, which sets it aside and begins a new one"),
    ("SQLITE_IOERR", "its disk does not answer; check the disk, or set OVERSTORY_DATA"),
)

APPLICATION_ID = 0x4F565354
"""`OVST` in the file's header: SQLite's own place for whose database this is."""
SCHEMA_VERSION = 6
"""Kept as `user_version`."""

_DRAFTS = """
CREATE TABLE drafts (
    id INTEGER PRIMARY KEY,
    -- NULL for a conversation that is yet to begin
    conversation_id INTEGER REFERENCES conversations (id) ON DELETE CASCADE,
    -- the process that it is written in
    writer TEXT NOT NULL,
    text TEXT NOT NULL,
    -- the prompt that `edit` is to take the place of, 0 if none
    edited_id INTEGER NOT NULL,
    edit TEXT NOT NULL
);
"""
_MESSAGES = """
CREATE TABLE messages (
    -- higher than that of the message that it follows
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    -- the message that it follows, 0 for none
    parent_id INTEGER NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'tool')),
    content TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('complete', 'streaming', 'stopped', 'failed')),
    model TEXT NOT NULL,
    -- a JSON object
    statistics TEXT NOT NULL,
    created_at REAL NOT NULL,
    -- whether a model reads it no longer
    is_left_out INTEGER NOT NULL DEFAULT 0,
    -- the process that streams into it
    writer TEXT,
    -- the later a branch that was shown and ended here was left, the higher
    last_shown INTEGER NOT NULL DEFAULT 0
);
"""
_INDEXES = """
CREATE INDEX messages_by_conversation ON messages (conversation_id, id);
CREATE INDEX messages_being_written ON messages (writer) WHERE state = 'streaming';
"""
_TABLES = f"""{_DRAFTS}
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    system_prompt TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    -- NULL unless deleted, which can be undone until it is purged
    deleted_at REAL,
    -- the last message of the branch that is shown, 0 if none is
    leaf_id INTEGER NOT NULL DEFAULT 0
);
{_MESSAGES}{_INDEXES}
"""
_MAKE_A_TREE = (  # of messages that were dropped together, in place of which others came
    "ALTER TABLE conversations ADD COLUMN leaf_id INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE messages RENAME TO messages_4",
    _MESSAGES,
    """
    INSERT INTO messages (
        id, conversation_id, parent_id, role, content, state, model, statistics, created_at, is_left_out, writer
    )
    SELECT m.id, m.conversation_id, coalesce(
            (SELECT p.id FROM messages_4 p WHERE p.conversation_id = m.conversation_id AND p.id < m.id
                AND p.drop_number IS m.drop_number ORDER BY p.id DESC LIMIT 1),
            (SELECT p.id FROM messages_4 p WHERE p.conversation_id = m.conversation_id AND p.id < m.id
                AND p.id = m.dropped_after),
            0
        ), m.role, m.content, m.state, m.model, m.statistics, m.created_at, m.id < c.first_kept_id, m.writer
    FROM messages_4 m JOIN conversations c ON c.id = m.conversation_id
    """,
    "UPDATE messages SET last_shown = number FROM (SELECT max(id) AS last_id, drop_number AS number FROM messages_4 "
    "WHERE drop_number IS NOT NULL GROUP BY conversation_id, drop_number) WHERE id = last_id",
    "UPDATE conversations SET leaf_id = coalesce("
    "(SELECT max(id) FROM messages_4 WHERE conversation_id = conversations.id AND drop_number IS NULL), 0)",
    # No id is used again, not even that of a message that is gone.
    "UPDATE sqlite_sequence SET seq = (SELECT seq FROM sqlite_sequence WHERE name = 'messages_4') "
    "WHERE name = 'messages'",
    "DROP TABLE messages_4",
    *_INDEXES.strip().splitlines(),
    "ALTER TABLE conversations DROP COLUMN first_kept_id",
)
_COLUMNS_OF_5 = (
    "id, conversation_id, parent_id, role, content, state, model, statistics, created_at, is_left_out, writer, "
    "last_shown"
)
_LET_TOOLS_SPEAK = (  # SQLite changes no CHECK of a table that is there
    "ALTER TABLE messages RENAME TO messages_5",
    _MESSAGES,
    f"INSERT INTO messages ({_COLUMNS_OF_5}) SELECT {_COLUMNS_OF_5} FROM messages_5",
    "DELETE FROM sqlite_sequence WHERE name = 'messages'",
    "UPDATE sqlite_sequence SET name = 'messages' WHERE name = 'messages_5'",  # no id is used again
    "DROP TABLE messages_5",
    *_INDEXES.strip().splitlines(),
)
_UPGRADES = {
    1: ("ALTER TABLE conversations ADD COLUMN first_kept_id INTEGER NOT NULL DEFAULT 0",),
    2: (  # an index of trigrams, larger than the text itself, which is looked through faster than a person types
        *(f"DROP TRIGGER IF EXISTS message_{event}" for event in ("inserted", "deleted", "updated")),
        "DROP TABLE IF EXISTS message_index",
    ),
    3: (_DRAFTS,),
    4: _MAKE_A_TREE,
    5: _LET_TOOLS_SPEAK,
}
"""What makes the next version's tables of a version's."""

_COLUMNS = (
    "SELECT id, title, system_prompt, created_at, updated_at, deleted_at, leaf_id FROM conversations LIMIT 0",
    "SELECT id, conversation_id, parent_id, role, content, state, model, statistics, created_at, is_left_out, writer, "
    "last_shown FROM messages LIMIT 0",
    "SELECT id, conversation_id, writer, text, edited_id, edit FROM drafts LIMIT 0",
)


class ConversationStoreError(OverstoryError):
    """The database cannot be opened, read or written; what was saved before is kept."""


class ForeignSchemaError(ConversationStoreError):
    """The database holds tables that are not ours."""


class NewerSchemaError(ConversationStoreError):
    """The database is ours, but of a later version of the program."""


class ConversationDatabase:
    """One connection, for any thread, one at a time; `path` None keeps everything in memory.

    A process has at most one for a file: opening another one closes a handle of the file, with which POSIX ends all
    locks that the process has on it.

    Raises:
        NewerSchemaError: a later version of the program wrote the file, which stays as it is.
        ConversationStoreError: the file can be neither opened nor made.
    """

    notice: str | None = None
    """One sentence if a damaged file had to be set aside, or one of an earlier version was brought up to date."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._held: int | None = None  # the file, to see whether it still has a name
        if path is None:
            self._connection, _ = _connect(":memory:", None)
            return
        with _as_sentences(path):
            _make_private(path)
            try:
                _check_header(path)
                self._connection, earlier = _connect(str(path), path)
            except (ForeignSchemaError, sqlite3.DatabaseError) as error:
                if not _is_damage(error):
                    raise
                aside = set_aside(path, now=datetime.now(), companions=_COMPANIONS)
                self.notice = (
                    f"{one_line(str(path))} could not be read ({one_line(str(error))}), so it was renamed to "
                    f"{one_line(aside.name)} and a new one begun"
                )
                _make_private(path)
                self._connection, earlier = _connect(str(path), path)
            if earlier is not None:
                self.notice = (
                    "conversations can have branches and tools from now on; as they were before, they stay in "
                    f"{one_line(earlier.name)} for 30 days"
                )
            self._held = os.open(path, os.O_RDONLY)

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection, None, None]:
        """Lend the connection for queries. Raises ConversationStoreError for whatever SQLite objects to."""
        with self._lock, _as_sentences(self._path):
            yield self._connection

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection, None, None]:
        """Lend the connection within a transaction: all of the block is saved when it ends, or nothing if it raises."""
        with self._lock, _as_sentences(self._path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            if self._held is not None and os.fstat(self._held).st_nlink == 0:
                raise ConversationStoreError(
                    f"{one_line(str(self._path))} was removed while it was open; start again to begin a new one"
                )
            yield self._connection

    def remove_earlier(self, *, until: float) -> None:
        """Remove copies of earlier versions that were made by then, in Unix time."""
        if self._path is None:
            return
        for copy in self._path.parent.glob(f"{glob.escape(self._path.stem)}-version-*{self._path.suffix}"):
            with suppress(OSError):
                if copy.stat().st_mtime <= until:
                    copy.unlink()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            if self._held is not None:
                os.close(self._held)
                self._held = None


def _make_private(path: Path) -> None:
    """Make the folder and the file for this user alone; SQLite gives its companions the file's mode."""
    make_private_folder(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), _PRIVATE_FILE))
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ConversationStoreError(f"{one_line(str(path))} is not a regular file; set OVERSTORY_DATA to a folder")
    if os.name == "posix" and stat.S_IMODE(mode) & ~_PRIVATE_FILE:
        path.chmod(_PRIVATE_FILE)


def _check_header(path: Path) -> None:
    """SQLite itself would take a few bytes for an empty database, and remove the log beside a damaged one."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if start not in (b"", _MAGIC):
        raise ForeignSchemaError("it is no SQLite database")


def _connect(name: str, path: Path | None) -> tuple[sqlite3.Connection, Path | None]:
    """Open, check and prepare; the connection is closed if any of that fails.

    Return also the copy of what an earlier version of the program wrote, if it did.
    """
    connection = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what is purged is overwritten
        # Checking every page takes 0.06 s for 6000 messages, 12 MB of text.
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise ForeignSchemaError("its pages are damaged")
        earlier = None if path is None else _copy_earlier(connection, path)
        prepare_schema(connection)
        connection.execute("PRAGMA journal_mode = WAL")  # not before, since it writes into the file
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection, earlier


def _copy_earlier(connection: sqlite3.Connection, path: Path) -> Path | None:
    """Copy a database of an earlier version before its tables are changed; None if it is of no such version."""
    version = _version(connection)
    if not 1 <= version < SCHEMA_VERSION:
        return None
    kept = path.with_stem(f"{path.stem}-version-{version}")
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE))
        copy = sqlite3.connect(part)
        try:
            connection.backup(copy)
            is_earlier = _version(copy) == version  # else another program that started now has just changed it
        finally:
            copy.close()
        if is_earlier:
            part.replace(kept)
    finally:
        part.unlink(missing_ok=True)
    return kept if is_earlier else None


def _version(connection: sqlite3.Connection) -> int:
    """Return the version of our tables; 0 if they are not ours, or not there yet."""
    is_ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    return int(connection.execute("PRAGMA user_version").fetchone()[0]) if is_ours else 0


def _is_damage(error: Exception) -> bool:
    names = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
    return isinstance(error, ForeignSchemaError) or getattr(error, "sqlite_errorname", "").startswith(names)


@contextmanager
def _as_sentences(path: Path | None) -> Generator[None, None, None]:
    where = "the conversations in memory" if path is None else one_line(str(path))
    try:
        yield
    except NewerSchemaError as error:
        raise NewerSchemaError(f"{where} cannot be used: {error}, or set OVERSTORY_DATA") from error
    except OSError as error:
        raise ConversationStoreError(
            f"{where} cannot be made: {error.strerror or error}; make its folder writable, or set OVERSTORY_DATA"
        ) from error
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        known = (sentence for prefix, sentence in _SENTENCES if name.startswith(prefix))
        reason = next(known, f"SQLite says {one_line(str(error))!r}; try again, or set OVERSTORY_DATA")
        raise ConversationStoreError(f"{where}: {reason}") from error


def prepare_schema(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty database, or check them; those of an earlier version are brought up to date.

    The connection must be in no transaction.

    Raises:
        ForeignSchemaError: it holds other tables, or ours without some column.
        NewerSchemaError: a later version of the program has written it.
    """
    # Two programs may start at the same time: the second one waits here and finds the tables of the first.
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            _bring_up_to_date(connection)
        else:
            _make_tables(connection)


def _make_tables(connection: sqlite3.Connection) -> None:
    statement = ""
    for line in _TABLES.splitlines(keepends=True):  # executescript would commit first
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Check that the tables are ours, after adding what their version lacks."""
    version = _version(connection)
    if version < 1:
        raise ForeignSchemaError("it is the database of another program")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"its schema version is {version}, and this program knows none above {SCHEMA_VERSION}; update overstory"
        )
    try:
        for earlier in range(version, SCHEMA_VERSION):
            for statement in _UPGRADES[earlier]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {earlier + 1}")
        for query in _COLUMNS:
            connection.execute(query)
    except sqlite3.OperationalError as error:
        raise ForeignSchemaError(f"its tables are not ours ({error})") from error
