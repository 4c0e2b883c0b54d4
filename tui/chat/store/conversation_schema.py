"""The tables of the conversation database, and how to tell ours from anybody else's.

Full-text search uses FTS5 with trigrams: any three characters find their place, in the middle of an identifier or of a
sentence without spaces too. An answer is indexed when it ends, not at every piece of text, or long answers would take
quadratic time.
"""

import sqlite3

from tui.chat.errors import ForeignSchemaError, NewerSchemaError

APPLICATION_ID = 0x4F565354
"""`OVST` in the file's header: SQLite's own place for whose database this is."""
SCHEMA_VERSION = 2
"""Kept as `user_version`."""

_TABLES = """
CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    system_prompt TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    -- NULL unless deleted, which can be undone until it is purged
    deleted_at REAL,
    -- the first message that a model still reads, 0 for all of them
    first_kept_id INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE messages (
    -- also the order within a conversation
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('complete', 'streaming', 'stopped', 'failed')),
    model TEXT NOT NULL,
    -- a JSON object
    statistics TEXT NOT NULL,
    created_at REAL NOT NULL,
    -- the process that streams into it
    writer TEXT,
    -- NULL unless dropped; messages dropped together share it, and later drops have higher ones
    drop_number INTEGER,
    -- the message that they followed, 0 if none
    dropped_after INTEGER
);
CREATE INDEX messages_by_conversation ON messages (conversation_id, id);
CREATE INDEX messages_being_written ON messages (writer) WHERE state = 'streaming';
CREATE VIRTUAL TABLE message_index USING fts5 (
    content, content='messages', content_rowid='id', tokenize='trigram'
);
CREATE TRIGGER message_inserted AFTER INSERT ON messages WHEN new.state != 'streaming' BEGIN
    INSERT INTO message_index (rowid, content) VALUES (new.id, new.content);
END;
CREATE TRIGGER message_deleted AFTER DELETE ON messages WHEN old.state != 'streaming' BEGIN
    INSERT INTO message_index (message_index, rowid, content) VALUES ('delete', old.id, old.content);
END;
CREATE TRIGGER message_updated AFTER UPDATE OF content, state ON messages
WHEN old.state != 'streaming' OR new.state != 'streaming' BEGIN
    INSERT INTO message_index (message_index, rowid, content)
    SELECT 'delete', old.id, old.content WHERE old.state != 'streaming';
    INSERT INTO message_index (rowid, content)
    SELECT new.id, new.content WHERE new.state != 'streaming';
END;
"""
_UPGRADES = {1: "ALTER TABLE conversations ADD COLUMN first_kept_id INTEGER NOT NULL DEFAULT 0"}
"""What makes the next version's tables of a version's."""

_COLUMNS = (
    "SELECT id, title, system_prompt, created_at, updated_at, deleted_at, first_kept_id FROM conversations LIMIT 0",
    "SELECT id, conversation_id, role, content, state, model, statistics, created_at, writer, drop_number, "
    "dropped_after FROM messages LIMIT 0",
    "SELECT rowid, content FROM message_index LIMIT 0",
)


def prepare_schema(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty database, or check them; those of an earlier version are brought up to date.

    The connection must be in no transaction.

    Raises:
        ForeignSchemaError: it holds other tables, or ours without some column.
        NewerSchemaError: a later version of the program has written it.
    """
    # Two programs may start at the same time: the second one waits here and finds the tables of the first.
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _is_empty(connection):
            _make_tables(connection)
        else:
            _bring_up_to_date(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _is_empty(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) = 0 FROM sqlite_master").fetchone()[0])


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
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != APPLICATION_ID or version < 1:
        raise ForeignSchemaError("it is the database of another program")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"its schema version is {version}, and this program knows none above {SCHEMA_VERSION}; update overstory"
        )
    try:
        for earlier in range(version, SCHEMA_VERSION):
            connection.execute(_UPGRADES[earlier])
            connection.execute(f"PRAGMA user_version = {earlier + 1}")
        for query in _COLUMNS:
            connection.execute(query)
    except sqlite3.OperationalError as error:
        raise ForeignSchemaError(f"its tables are not ours ({error})") from error
