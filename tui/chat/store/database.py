"""The SQLite file below the conversation store: opened privately, checked, replaced if damaged; faults as sentences.

Commits reach the operating system at once, so that a killed process loses none; only a power cut can lose the last
ones (WAL with `synchronous=NORMAL`: waiting for the disk, which also delivers layers, would stall the interface).
Knows no conversation.
"""

import os
import sqlite3
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tui.chat.errors import ConversationStoreError, ForeignSchemaError, NewerSchemaError
from tui.chat.store.conversation_schema import prepare_schema
from tui.chat.store.private_files import make_private_folder
from tui.chat.store.set_aside import set_aside
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


class ConversationDatabase:
    """One connection, for any thread, one at a time; `path` None keeps everything in memory.

    A process has at most one for a file: opening another one closes a handle of the file, with which POSIX ends all
    locks that the process has on it.

    Raises:
        NewerSchemaError: a later version of the program wrote the file, which stays as it is.
        ConversationStoreError: the file can be neither opened nor made.
    """

    notice: str | None = None
    """One sentence if a damaged file had to be set aside."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        if path is None:
            self._connection = _connect(":memory:")
            return
        with _as_sentences(path):
            _make_private(path)
            try:
                _check_header(path)
                self._connection = _connect(str(path))
            except (ForeignSchemaError, sqlite3.DatabaseError) as error:
                if not _is_damage(error):
                    raise
                aside = set_aside(path, now=datetime.now(), companions=_COMPANIONS)
                self.notice = (
                    f"{one_line(str(path))} could not be read ({one_line(str(error))}), so it was renamed to "
                    f"{one_line(aside.name)} and a new one begun"
                )
                _make_private(path)
                self._connection = _connect(str(path))

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection, None, None]:
        """The connection, for queries. Raises ConversationStoreError for whatever SQLite objects to."""
        with self._lock, _as_sentences(self._path):
            yield self._connection

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection, None, None]:
        """The connection within a transaction: all of the block is saved when it ends, or nothing if it raises."""
        with self._lock, _as_sentences(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself ends some that failed
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file; doing so again does nothing."""
        with self._lock:
            self._connection.close()


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


def _connect(name: str) -> sqlite3.Connection:
    """Open, check and prepare; the connection is closed if any of that fails."""
    connection = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what is purged is overwritten
        # Checking every page takes 0.06 s for 6000 messages, 57 MB with their index.
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise ForeignSchemaError("its pages are damaged")
        prepare_schema(connection)
        connection.execute("PRAGMA journal_mode = WAL")  # not before, since it writes into the file
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


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
