"""Tables of ours are made once and recognised; others are left alone."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from tui.chat.errors import ForeignSchemaError, NewerSchemaError
from tui.chat.store.conversation_schema import APPLICATION_ID, SCHEMA_VERSION, prepare_schema


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def tables(connection):
    return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def test_an_empty_database_gets_tables_and_says_whose_it_is(connection):
    prepare_schema(connection)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert {"conversations", "messages", "message_index"} <= {name for name, _ in tables(connection)}
    assert not connection.in_transaction


def test_preparing_again_changes_nothing(connection):
    prepare_schema(connection)
    connection.execute("INSERT INTO conversations VALUES (1, 'a', '', 0, 0, NULL, 0)")
    before = tables(connection)
    prepare_schema(connection)
    assert tables(connection) == before
    assert connection.execute("SELECT count(*) FROM conversations").fetchone() == (1,)


def test_two_programs_that_start_together_make_the_tables_once(tmp_path):
    path = tmp_path / "conversations.db"

    def prepare(_):
        connection = sqlite3.connect(path, isolation_level=None)
        prepare_schema(connection)
        found = tables(connection)
        connection.close()
        return found

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(prepare, range(8)))
    assert found[0] and all(each == found[0] for each in found)


@pytest.mark.parametrize(
    "change",
    [
        "PRAGMA application_id = 1",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = -1",
        "DROP TABLE messages",
        "DROP TABLE message_index",
        "ALTER TABLE conversations RENAME COLUMN title TO name",
    ],
)
def test_other_tables_are_refused_and_stay(connection, change):
    prepare_schema(connection)
    connection.execute(change)
    before = tables(connection)
    with pytest.raises(ForeignSchemaError, match=r"another program|not ours"):
        prepare_schema(connection)
    assert tables(connection) == before and not connection.in_transaction


def test_a_later_version_is_refused_by_its_number(connection):
    prepare_schema(connection)
    connection.execute("DROP TABLE messages")
    connection.execute("PRAGMA user_version = 7")
    with pytest.raises(NewerSchemaError, match=f"version is 7, and this program knows none above {SCHEMA_VERSION}"):
        prepare_schema(connection)
    assert not connection.in_transaction


def test_tables_of_the_first_version_are_brought_up_to_date(connection):
    prepare_schema(connection)
    whole = tables(connection)
    connection.execute("DROP TABLE conversations")
    connection.execute(
        "CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, "
        "system_prompt TEXT NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL, deleted_at REAL)"
    )
    connection.execute("INSERT INTO conversations VALUES (1, 'a', '', 0, 0, NULL)")
    connection.execute("PRAGMA user_version = 1")
    prepare_schema(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert connection.execute("SELECT title, first_kept_id FROM conversations").fetchall() == [("a", 0)]
    assert {name for name, _ in tables(connection)} == {name for name, _ in whole}
    assert not connection.in_transaction


def test_what_only_claims_to_be_the_first_version_stays_as_it_is(connection):
    prepare_schema(connection)
    connection.execute("PRAGMA user_version = 1")
    before = tables(connection)
    with pytest.raises(ForeignSchemaError, match="duplicate column"):
        prepare_schema(connection)
    assert tables(connection) == before and not connection.in_transaction


@pytest.mark.parametrize("column", ["role", "state"])
def test_a_word_that_nobody_knows_cannot_be_stored(connection, column):
    prepare_schema(connection)
    connection.execute("INSERT INTO conversations VALUES (1, 'a', '', 0, 0, NULL, 0)")
    row = {"conversation_id": 1, "role": "user", "content": "", "state": "complete", "model": "", "statistics": "{}"}
    row |= {"created_at": 0, column: "other"}
    with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
        connection.execute(
            f"INSERT INTO messages ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values())
        )
