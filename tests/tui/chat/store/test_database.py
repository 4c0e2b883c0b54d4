"""A file that is private, checked when it is opened, and whose faults are sentences; its tables are made once."""

import os
import re
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.paths import ROOT
from tui.chat.store import database
from tui.chat.store.database import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    ConversationDatabase,
    ConversationStoreError,
    ForeignSchemaError,
    NewerSchemaError,
    prepare_schema,
)
from tui.chat.store.drafts import Draft
from tui.chat.store.store import UNDO_SECONDS, ConversationStore

PATH = "conversations.db"
SUPPORT = ROOT / "tests" / "support"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / PATH


def fill(path):
    """A sound database of many pages, closed."""
    with ConversationStore(path) as store:
        conversation = store.create_conversation(title="kept")
        for number in range(50):
            store.append_prompt(conversation.id, f"{number} " * 200)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_folder_and_files_are_for_their_owner_alone(path):
    with ConversationStore(path) as store:
        store.create_conversation()
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {PATH: 0o600, f"{PATH}-wal": 0o600, f"{PATH}-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    ConversationDatabase(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_log_is_written_ahead_and_emptied_when_the_last_one_closes(path):
    database = ConversationDatabase(path)
    with database.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    database.close()
    assert [file.name for file in path.parent.iterdir()] == [PATH]


def test_what_raises_is_not_saved(path):
    database = ConversationDatabase(path)
    with pytest.raises(KeyError), database.writing() as connection:
        connection.execute("INSERT INTO conversations VALUES (1, 'a', '', 0, 0, NULL, 0)")
        raise KeyError
    with database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM conversations").fetchone()[0] == 0
    database.close()


def garbage(path):
    path.write_bytes(b"this is no database" * 1000)


def short_garbage(path):
    path.write_bytes(b"x")


def truncated(path):
    fill(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def overwritten_pages(path):
    fill(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x55" * 8 * 4096)


def of_another_program(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE conversations (id INTEGER PRIMARY KEY)")
    connection.close()


def without_a_column(path):
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE messages DROP COLUMN model")
    connection.close()


def without_a_table(path):
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE messages")
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [garbage, short_garbage, truncated, overwritten_pages, of_another_program, without_a_column, without_a_table],
)
def test_a_damaged_database_is_set_aside_and_told(path, damage):
    path.parent.mkdir()
    damage(path)
    content = path.read_bytes()
    with ConversationStore(path) as store:
        (aside,) = (file for file in path.parent.iterdir() if not file.name.startswith(PATH))
        assert aside.name.startswith("conversations-damaged-") and aside.suffix == ".db"
        assert store.notice is not None and store.notice.isprintable()
        assert store.notice.startswith(f"{path} could not be read (")
        assert store.notice.endswith(f"), so it was renamed to {aside.name} and a new one begun")
        assert store.list_conversations() == []
        store.create_conversation(title="new")
    assert aside.read_bytes() == content
    with ConversationStore(path) as store:
        assert store.notice is None
        assert [each.title for each in store.list_conversations()] == ["new"]


def test_the_log_of_a_damaged_database_goes_along(path):
    path.parent.mkdir()
    garbage(path)
    path.with_name(f"{PATH}-wal").write_bytes(b"log")
    with ConversationStore(path) as store:
        assert store.notice is not None
        (log,) = path.parent.glob("conversations-damaged-*.db-wal")
        assert log.read_bytes() == b"log"


def test_an_empty_file_is_an_empty_database(path):
    path.parent.mkdir()
    path.touch()
    with ConversationStore(path) as store:
        assert store.notice is None and store.list_conversations() == []


def test_a_database_of_a_later_version_is_refused_and_stays(path):
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(NewerSchemaError) as caught:
        ConversationStore(path)
    assert str(caught.value) == (
        f"{path} cannot be used: its schema version is {SCHEMA_VERSION + 1}, and this program knows none above "
        f"{SCHEMA_VERSION}; update overstory, or set OVERSTORY_DATA"
    )
    assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConversationStoreError) as caught:
        ConversationDatabase(tmp_path / "file" / PATH)
    assert str(caught.value) == (
        f"{tmp_path / 'file' / PATH} cannot be made: Not a directory; make its folder writable, or set OVERSTORY_DATA"
    )


def test_a_read_only_folder_is_one_sentence(path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # tests may run as root, who may write anywhere
    with pytest.raises(ConversationStoreError, match="cannot be made: Permission denied; make its folder writable"):
        ConversationDatabase(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_in_the_place_of_the_file_does_not_wait_for_ever(path):
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(ConversationStoreError, match="is not a regular file"):
        ConversationDatabase(path)


def test_a_database_that_turns_read_only_is_one_sentence(path):
    database = ConversationDatabase(path)
    with database.reading() as connection:
        connection.execute("PRAGMA query_only = ON")
    with pytest.raises(ConversationStoreError) as caught, database.writing() as connection:
        connection.execute("INSERT INTO conversations VALUES (1, 'a', '', 0, 0, NULL, 0)")
    assert str(caught.value) == (
        f"{path}: it cannot be written; make the file and its folder writable, or set OVERSTORY_DATA"
    )
    database.close()


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed on Windows")
def test_a_database_that_is_removed_says_so_at_the_next_write(path):
    """SQLite went on writing into a file without a name, and everything was gone at the end."""
    with ConversationStore(path) as store:
        store.create_conversation(title="kept")
        path.rename(path.with_name("elsewhere"))
        store.create_conversation(title="still kept")
        path.with_name("elsewhere").unlink()
        with pytest.raises(ConversationStoreError, match="was removed while it was open; start again"):
            store.create_conversation(title="lost")
    with ConversationStore(path) as store:
        store.create_conversation(title="kept again")


def test_a_write_that_another_instance_does_not_end_is_one_sentence(path):
    database = ConversationDatabase(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with database.reading() as connection:
        connection.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(ConversationStoreError, match="another program has been writing to it"), database.writing():
        pass
    other.execute("COMMIT")
    with database.writing() as connection:
        connection.execute("INSERT INTO conversations VALUES (1, 'a', '', 0, 0, NULL, 0)")
    other.close()
    database.close()


def test_damage_while_running_says_what_to_do(path):
    fill(path)
    store = ConversationStore(path)
    overwrite_behind(store, path)
    with pytest.raises(ConversationStoreError, match="it is damaged; start overstory chat again"):
        store.messages(1)
    store.close()


def overwrite_behind(store, path):
    """Damage the tables' pages, and let the connection forget what it read of them."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x55" * (path.stat().st_size - 4096))
    with store._database.reading() as connection:
        connection.execute("PRAGMA shrink_memory")


def test_any_other_fault_is_one_sentence_too(path):
    database = ConversationDatabase(path)
    with (
        pytest.raises(ConversationStoreError, match="SQLite says 'no such table: nowhere'; try again"),
        database.reading() as connection,
    ):
        connection.execute("SELECT * FROM nowhere")
    database.close()
    database.close()
    with pytest.raises(ConversationStoreError, match="closed database"), database.reading() as connection:
        connection.execute("SELECT 1")


def test_a_name_that_a_terminal_would_obey_is_safe_to_print(tmp_path):
    folder = tmp_path / "a\x1b[2Jb"
    folder.mkdir()
    garbage(folder / PATH)
    with ConversationStore(folder / PATH) as store:
        assert store.notice is not None and store.notice.isprintable()


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
    assert {"conversations", "messages"} <= {name for name, _ in tables(connection)}
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


def fill_version_4(connection, *, without="^$"):
    """What the program of that version wrote, with answers written anew, changed prompts, and what was cleared."""
    script = (SUPPORT / "databases" / "conversations-4.sql").read_text(encoding="utf-8")
    connection.executescript(re.sub(without, "", script))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 4")


def columns(connection):
    """Names of tables, indexes and columns."""
    names = [name for name, _ in tables(connection)]
    return {name: {row[1] for row in connection.execute(f"PRAGMA table_info({name})")} for name in names}


def columns_of_a_new_one():
    new = sqlite3.connect(":memory:", isolation_level=None)
    prepare_schema(new)
    found = columns(new)
    new.close()
    return found


def file_of_version_4(path):
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path, isolation_level=None)
    fill_version_4(connection)
    connection.close()


def branches_of(store, conversation_id):
    """The contents of each branch, the one written to last in front."""
    leaf_ids = [branch.leaf_id for branch in store.branches(conversation_id)]
    return [[each.content for each in store.messages_until(leaf_id)] for leaf_id in leaf_ids]


def test_what_was_replaced_before_there_were_branches_is_on_branches_now(path):
    file_of_version_4(path)
    with ConversationStore(path) as store:
        assert [each.content for each in store.messages(1)] == [
            *("Name a fox.", "Vulpes", "Why?"),
            "Because it is Latin.",
        ]
        assert branches_of(store, 1) == [
            ["Name a fox.", "Vulpes", "Why Latin?", "Linnaeus chose it."],
            ["Name a fox.", "Vulpes", "Why?", "Because it is Latin."],
            ["Name a fox.", "Fennec", "And an owl?", "Barn owl"],
            ["Name a fox.", "Reynard"],
        ]
        assert (store.messages(3), branches_of(store, 3)) == ([], [["gone", "for now"]])
        assert store.step_back(3) is not None  # which brings back what was cleared
        assert [each.content for each in store.messages(3)] == ["gone", "for now"]
        store.show(9)
        assert [each.content for each in store.messages(1)][-2:] == ["Why Latin?", "Linnaeus chose it."]
        (barn,) = (each for each in store.all_messages(1) if each.id == 5)
        assert (barn.state, barn.model) == ("stopped", "SmolLM2 135M")
        assert barn.statistics == {"num_new_tokens": 2, "seed": 1}


def test_nothing_else_is_lost_when_branches_come(path):
    file_of_version_4(path)
    with ConversationStore(path) as store:
        assert [each.is_left_out for each in store.messages(2)] == [True, True, False, False]
        assert store.draft(2) == Draft(text="half a thought", edited_id=13, edit="Second, edited again")
        assert [each.shown_title for each in store.list_deleted()] == ["deleted"]
        assert store.undo_delete(4).num_messages == 2
        assert store.conversation(1).system_prompt == "Be brief."
        assert store.append_prompt(1, "new").id == 20  # 19 was that of a message that was purged


def test_nothing_is_lost_when_tools_come(path):
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript((SUPPORT / "databases" / "conversations-5.sql").read_text(encoding="utf-8"))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 5")
    connection.close()
    with ConversationStore(path) as store:
        assert store.notice is not None and "conversations-version-5.db" in store.notice
        assert [(each.content, each.is_left_out) for each in store.messages(1)] == [
            *(("Name a fox.", True), ("Reynard", False), ("Why?", False)),
        ]
        assert branches_of(store, 1) == [["Name a fox.", "Reynard", "Why?"], ["Name a fox.", "Vulpes"]]
        assert store.draft(1) == Draft(text="half a thought", edited_id=1, edit="again")
        answer = store.begin_answer(1, model="m")
        assert answer.id == 6  # 5 was that of a message that was purged
        assert store.append_result(answer.id, "42", statistics={}).role == "tool"
    connection = sqlite3.connect(path, isolation_level=None)
    assert columns(connection) == columns_of_a_new_one()
    connection.close()


def test_what_an_earlier_version_wrote_is_kept_for_a_while(path):
    file_of_version_4(path)
    copy = path.with_name("conversations-version-4.db")
    with ConversationStore(path) as store:
        assert store.notice is not None and copy.name in store.notice
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600 or os.name != "posix"
        earlier = sqlite3.connect(copy)
        assert earlier.execute("PRAGMA user_version").fetchone() == (4,)
        assert earlier.execute("SELECT count(*) FROM messages WHERE drop_number IS NOT NULL").fetchone() == (8,)
        earlier.close()
    with ConversationStore(path) as store:
        assert store.notice is None and copy.exists()
    with ConversationStore(path, clock=lambda: copy.stat().st_mtime + UNDO_SECONDS + 1):
        assert not copy.exists()


def test_what_is_removed_for_good_is_not_kept_in_an_earlier_version(path):
    file_of_version_4(path)
    with ConversationStore(path) as store:
        store.purge_conversation(4)
    assert [file.name for file in path.parent.iterdir()] == [PATH]


def test_branches_come_completely_or_not_at_all(path, monkeypatch):
    """A program that ends in the middle leaves the earlier version, which the next start brings up to date."""
    file_of_version_4(path)
    statements = (*database._UPGRADES[4][:-1], "SELECT * FROM nowhere")
    with monkeypatch.context() as context:
        context.setitem(database._UPGRADES, 4, statements)
        with pytest.raises(ForeignSchemaError):
            connection = sqlite3.connect(path, isolation_level=None)
            prepare_schema(connection)
        assert connection.execute("PRAGMA user_version").fetchone() == (4,)
        connection.close()
    with ConversationStore(path) as store:
        assert len(store.branches(1)) == 4


def test_tables_of_the_first_version_are_brought_up_to_date(connection):
    fill_version_4(connection, without=r",\s*--[^\n]*\s*first_kept_id [^\n]*|(?<=NULL|00.0),\d+(?=\);)")
    connection.execute("DROP TABLE drafts")
    connection.execute("PRAGMA user_version = 1")
    prepare_schema(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    first = connection.execute("SELECT title, leaf_id FROM conversations WHERE id = 1").fetchone()
    assert first == ("Name a fox.", 8)
    assert columns(connection) == columns_of_a_new_one()
    assert not connection.in_transaction


def test_the_index_of_the_second_version_goes(connection):
    """Dropping it must leave the messages as they are, and new ones must not look for it."""
    fill_version_4(connection)
    connection.execute(
        "CREATE VIRTUAL TABLE message_index USING fts5 (content, content='messages', content_rowid='id')"
    )
    for event, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
        name = event.lower().removesuffix("e")
        connection.execute(
            f"CREATE TRIGGER message_{name}ed AFTER {event} ON messages BEGIN "
            f"INSERT INTO message_index (rowid, content) VALUES ({row}.id, {row}.content); END"
        )
    before = connection.execute("SELECT content FROM messages").fetchall()
    connection.execute("DROP TABLE drafts")
    connection.execute("PRAGMA user_version = 2")
    prepare_schema(connection)
    assert columns(connection) == columns_of_a_new_one()
    connection.execute(
        "INSERT INTO messages (conversation_id, parent_id, role, content, state, model, statistics, created_at) "
        "VALUES (1, 8, 'user', 'text', 'complete', '', '{}', 0)"
    )
    assert connection.execute("SELECT content FROM messages").fetchall() == [*before, ("text",)]


def test_what_only_claims_to_be_the_first_version_stays_as_it_is(connection):
    prepare_schema(connection)
    connection.execute("PRAGMA user_version = 1")
    before = tables(connection)
    with pytest.raises(ForeignSchemaError, match="table drafts already exists"):
        prepare_schema(connection)
    assert tables(connection) == before and not connection.in_transaction


@pytest.mark.parametrize("column", ["role", "state"])
def test_a_word_that_nobody_knows_cannot_be_stored(connection, column):
    prepare_schema(connection)
    connection.execute("INSERT INTO conversations VALUES (1, 'a', '', 0, 0, NULL, 0)")
    row = {"conversation_id": 1, "role": "user", "content": "", "state": "complete", "model": "", "statistics": "{}"}
    row |= {"parent_id": 0, "created_at": 0, column: "other"}
    with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
        connection.execute(
            f"INSERT INTO messages ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values())
        )
