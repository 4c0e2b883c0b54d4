"""Rows are what was put in; dropped ones are out of sight and come back in their place."""

import pytest

from tui.chat.errors import UnknownConversationError
from tui.chat.store.database import ConversationDatabase
from tui.chat.store.records import Conversation, Message
from tui.chat.widgets.conversation_rows import (
    drop_messages,
    extend_answer,
    insert_conversation,
    insert_message,
    message_before,
    purge_conversations,
    restore_messages,
    select_conversation,
    select_conversations,
    select_message,
    select_messages,
    select_prompts,
    stop_answers,
    title_line,
    touch_conversation_of,
    update_conversation,
)


@pytest.fixture
def connection():
    database = ConversationDatabase(None)
    with database.writing() as connection:
        yield connection
    database.close()


@pytest.fixture
def chat(connection):
    return insert_conversation(connection, title=" a\nb ", system_prompt="s\0", created_at=1.5, updated_at=2.5)


def add(connection, chat, content, **values):
    return insert_message(connection, chat, role="assistant", content=content, created_at=3.0, **values)


def texts(connection, chat):
    return [message.content for message in select_messages(connection, chat)]


def test_a_conversation_is_what_was_put_in(connection, chat):
    add(connection, chat, "x")
    expected = Conversation(
        id=chat, title="a b", system_prompt="s\ufffd", created_at=1.5, updated_at=2.5, num_messages=1
    )
    assert select_conversation(connection, chat) == expected
    assert select_conversations(connection, limit=-1) == [expected]
    assert select_conversations(connection, limit=0) == []
    update_conversation(connection, chat, title="c", updated_at=9.0)
    changed = select_conversation(connection, chat)
    assert (changed.title, changed.updated_at, changed.system_prompt) == ("c", 9.0, "s\ufffd")


def test_a_message_is_what_was_put_in(connection, chat):
    message_id = add(connection, chat, "x\ud800", state="failed", model="m", statistics='{"a": [1.5]}')
    expected = Message(
        id=message_id,
        conversation_id=chat,
        role="assistant",
        content="x\ufffd",
        state="failed",
        model="m",
        statistics={"a": [1.5]},
        created_at=3.0,
    )
    assert select_message(connection, message_id) == expected
    assert select_messages(connection, chat) == [expected]
    touch_conversation_of(connection, message_id, now=8.0)
    assert select_conversation(connection, chat).updated_at == 8.0


def test_prompts_are_those_of_the_user_newest_first(connection, chat):
    for role, content in (("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "a")):
        insert_message(connection, chat, role=role, content=content, created_at=0)
    assert select_prompts(connection, limit=9) == ["a", "b"]


def test_extending_appends_and_keeps_statistics_that_are_not_given(connection, chat):
    message_id = add(connection, chat, "a", statistics='{"a": 1}')
    extend_answer(connection, message_id, "b", state="streaming", writer="w", statistics=None)
    assert select_message(connection, message_id).statistics == {"a": 1}
    extend_answer(connection, message_id, "c", state="complete", writer=None, statistics="{}")
    message = select_message(connection, message_id)
    assert (message.content, message.state, message.statistics) == ("abc", "complete", {})


def test_only_the_answers_of_one_writer_are_stopped(connection, chat):
    mine, other, nobody = (add(connection, chat, "", state="streaming", writer=each) for each in ("w", "v", None))
    ended = add(connection, chat, "", writer="w")
    assert stop_answers(connection, "w") == 1
    states = [select_message(connection, each).state for each in (mine, other, nobody, ended)]
    assert states == ["stopped", "streaming", "streaming", "complete"]
    assert stop_answers(connection, None) == 1
    assert select_message(connection, nobody).state == "stopped"


def test_dropped_messages_swap_places_with_what_came_after(connection, chat):
    first, second, third = (add(connection, chat, each) for each in "abc")
    assert message_before(connection, select_message(connection, first)) == 0
    assert message_before(connection, select_message(connection, third)) == second
    assert drop_messages(connection, chat, after=first) == 2
    assert message_before(connection, select_message(connection, third)) == first
    add(connection, chat, "d")
    assert texts(connection, chat) == ["a", "d"]
    assert restore_messages(connection, chat) == 2
    assert texts(connection, chat) == ["a", "b", "c"]
    assert restore_messages(connection, chat) == 1
    assert texts(connection, chat) == ["a", "d"]


def test_purging_takes_what_was_deleted_by_then_with_its_messages(connection, chat):
    other = insert_conversation(connection, title="", system_prompt="", created_at=0, updated_at=0)
    message_id, kept = add(connection, chat, "a"), add(connection, other, "b")
    update_conversation(connection, chat, deleted_at=5.0)
    update_conversation(connection, other, deleted_at=6.0)
    assert purge_conversations(connection, deleted_until=4.9) == 0
    assert purge_conversations(connection, deleted_until=5.0) == 1
    with pytest.raises(UnknownConversationError):
        select_message(connection, message_id)
    assert select_message(connection, kept).content == "b"


def test_dropping_in_one_conversation_leaves_the_others(connection, chat):
    other = insert_conversation(connection, title="", system_prompt="", created_at=0, updated_at=0)
    add(connection, chat, "a")
    add(connection, other, "b")
    drop_messages(connection, chat, after=0)
    assert (texts(connection, chat), texts(connection, other)) == ([], ["b"])
    assert restore_messages(connection, other) == 0
    assert restore_messages(connection, chat) == 1


@pytest.mark.parametrize("select", [select_conversation, select_message])
def test_what_is_not_there_is_one_sentence(connection, select):
    with pytest.raises(UnknownConversationError, match="5 is not there, or no longer; choose another one"):
        select(connection, 5)


def test_a_title_is_one_line():
    assert title_line(" a\n\tb\ud800 ") == "a b\ufffd"
