"""Rows over one connection: what is written is read again, and an id that is not there is one sentence."""

import pytest

from profiles.errors import BadInputError
from tui.chat.store.records import StoredMessage
from tui.chat.store.rows import (
    add_message,
    go_to,
    insert_message,
    is_there,
    select_conversation,
    select_message,
    select_tree,
    stop_answers,
    title_line,
    update_conversation,
)
from tui.chat.store.store import ConversationStore


@pytest.fixture
def store():
    with ConversationStore(None) as opened:
        yield opened


@pytest.fixture
def connection(store):
    with store._database.writing() as opened:
        yield opened


def message(conversation_id, content, **changes):
    values = {"role": "assistant", "state": "complete", "created_at": 1.0}
    return StoredMessage(conversation_id=conversation_id, content=content, **(values | changes))


@pytest.fixture
def conversation_id(connection):
    query = "INSERT INTO conversations (title, system_prompt, created_at, updated_at) VALUES ('', '', 1, 1)"
    return connection.execute(query).lastrowid


def test_a_message_is_read_as_it_was_written(connection, conversation_id):
    written = insert_message(connection, message(conversation_id, "x\0", statistics={"a": [1.5]}, is_left_out=True))
    assert select_message(connection, written.id) == written
    assert (written.content, written.statistics, written.is_left_out) == ("x\ufffd", {"a": [1.5]}, True)


def test_what_is_added_ends_the_branch_that_is_shown(connection, conversation_id):
    first = add_message(connection, message(conversation_id, "first"))
    second = add_message(connection, message(conversation_id, "second"))
    go_to(connection, conversation_id, first.id)
    third = add_message(connection, message(conversation_id, "third"))
    assert (first.parent_id, second.parent_id, third.parent_id) == (0, first.id, first.id)
    assert select_conversation(connection, conversation_id).leaf_id == third.id
    assert (
        select_tree(connection, conversation_id).latest_leaf(first.id) == second.id
    )  # which was left as the shown one


def test_only_what_that_process_writes_is_stopped(connection, conversation_id):
    mine, other = (
        insert_message(connection, message(conversation_id, "", state="streaming"), writer=writer).id
        for writer in ("me", "you")
    )
    stop_answers(connection, "me")
    assert [select_message(connection, each).state for each in (mine, other)] == ["stopped", "streaming"]


def test_what_is_not_there_is_one_sentence(connection, conversation_id):
    update_conversation(connection, conversation_id, deleted_at=2.0)
    assert is_there(connection, conversation_id) and not is_there(connection, 99)
    for select in (
        lambda: select_conversation(connection, conversation_id),
        lambda: select_message(connection, 99),
        lambda: update_conversation(connection, 99, title="x"),
    ):
        with pytest.raises(BadInputError, match="is not there, or no longer"):
            select()


def test_a_title_is_one_line_that_can_be_stored():
    assert title_line(" My\nplan\0 ") == "My plan\ufffd"
