"""What was said is there again, in order, whatever happened in between."""

from dataclasses import replace

import pytest

from profiles.errors import BadInputError
from tui.chat.store.branches import Place
from tui.chat.store.records import Conversation, StoredMessage
from tui.chat.store.store import UNDO_SECONDS, ConversationStore


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        self.now += 1
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    with ConversationStore(tmp_path / "data" / "conversations.db", clock=clock) as store:
        yield store


def contents(store, conversation):
    return [message.content for message in store.messages(conversation.id)]


def answer(store, conversation, text):
    message = store.begin_answer(conversation.id, model="target")
    store.append_text(message.id, text)
    return store.finish_answer(message.id)


def test_a_conversation_is_there_after_closing(tmp_path, clock):
    path = tmp_path / "conversations.db"
    with ConversationStore(path, clock=clock) as store:
        made = store.create_conversation(system_prompt="Be brief.")
        prompt = store.append_prompt(made.id, "What is\na ring?")
        begun = store.begin_answer(made.id, model="qwen")
        store.append_text(begun.id, "A ")
        store.append_text(begun.id, "circle.\x1b[0m\0")
        ended = store.finish_answer(begun.id, statistics={"seconds_per_token": 0.5, "finish_reason": "stop"})
    with ConversationStore(path, clock=clock) as store:
        (conversation,) = store.list_conversations()
        assert (conversation.title, conversation.system_prompt) == ("What is", "Be brief.")
        assert (conversation.created_at, conversation.updated_at, conversation.num_messages) == (1002, 1006, 2)
        assert store.conversation(made.id) == conversation
        assert store.messages(made.id) == [prompt, ended]
        assert store.message(ended.id) == ended
    assert (prompt.role, prompt.content, prompt.state, prompt.model) == ("user", "What is\na ring?", "complete", "")
    assert (ended.role, ended.content, ended.state) == ("assistant", "A circle.\x1b[0m\ufffd", "complete")
    assert (ended.model, ended.statistics) == ("qwen", {"seconds_per_token": 0.5, "finish_reason": "stop"})
    assert (begun.content, begun.state, begun.statistics) == ("", "streaming", {})


def test_everything_that_was_put_in_is_there(store):
    """Text that neither UTF-8 nor the search could hold aside."""
    whole = Conversation(
        id=7, title=" a\nb ", system_prompt="s\0", created_at=1.5, updated_at=2.5, num_messages=1, leaf_id=8
    )
    failed = StoredMessage(
        id=8,
        conversation_id=9,
        role="assistant",
        content="x\ud800",
        state="failed",
        model="m",
        statistics={"a": [1.5]},
        created_at=3.0,
    )
    added = store.add_conversation(whole, [failed])
    assert added == replace(
        whole, id=added.id, title="a b", system_prompt="s\ufffd", updated_at=added.updated_at, leaf_id=added.leaf_id
    )
    (message,) = store.messages(added.id)
    assert message.id == added.leaf_id
    assert message == replace(failed, id=message.id, conversation_id=added.id, content="x\ufffd")


def test_a_title_that_was_given_stays(store):
    conversation = store.create_conversation(title=" My\nplan ")
    store.append_prompt(conversation.id, "Hello")
    assert store.conversation(conversation.id).title == "My plan"
    store.rename_conversation(conversation.id, "Another\tone")
    assert store.conversation(conversation.id).title == "Another one"


def test_the_system_prompt_can_change(store):
    conversation = store.create_conversation()
    store.set_system_prompt(conversation.id, "Speak\nFrench.")
    assert store.conversation(conversation.id).system_prompt == "Speak\nFrench."


def test_the_conversation_used_last_stands_first(store):
    first, second, third = (store.create_conversation(title=title) for title in "abc")
    assert [each.title for each in store.list_conversations()] == ["c", "b", "a"]
    begun = store.begin_answer(first.id, model="m")
    store.append_prompt(second.id, "x")
    assert [each.title for each in store.list_conversations()] == ["b", "a", "c"]
    store.finish_answer(begun.id)
    store.rename_conversation(third.id, "d")
    assert [each.title for each in store.list_conversations(limit=2)] == ["a", "b"]


def test_a_deleted_conversation_can_be_brought_back(store):
    conversation = store.create_conversation(title="plan")
    store.append_prompt(conversation.id, "unmistakable")
    before = store.conversation(conversation.id)
    store.delete_conversation(conversation.id)
    assert store.list_conversations() == []
    assert store.search("unmistakable") == [] and store.search("plan") == []
    for use in (store.conversation, store.messages, store.delete_conversation):
        with pytest.raises(BadInputError, match=f"conversation {conversation.id} is not there"):
            use(conversation.id)
    assert store.undo_delete(conversation.id) == before
    assert len(store.search("unmistakable")) == 1
    assert store.undo_delete(conversation.id) == before


def test_what_was_deleted_long_ago_is_purged_at_the_next_start(tmp_path, clock):
    path = tmp_path / "conversations.db"
    with ConversationStore(path, clock=clock) as store:
        old, recent = store.create_conversation(title="old"), store.create_conversation(title="recent")
        store.append_prompt(old.id, "unmistakable")
        store.delete_conversation(old.id)
        clock.now += UNDO_SECONDS / 2
        store.delete_conversation(recent.id)
        clock.now += UNDO_SECONDS / 2
    with ConversationStore(path, clock=clock) as store:
        with pytest.raises(BadInputError):
            store.undo_delete(old.id)
        assert store.undo_delete(recent.id).title == "recent"
        assert store.create_conversation().id > recent.id
    remains = path.read_bytes()
    assert b"unmistakable" not in remains
    assert b"unm" not in remains  # as a term of the index, which says where in the text it stood


def test_an_id_is_never_used_again(store):
    """Undo of a deletion must not bring back, nor an answer end in, what somebody else has begun since."""
    gone = store.create_conversation()
    message = store.append_prompt(gone.id, "x")
    store.delete_conversation(gone.id)
    assert store.purge_deleted(older_than_seconds=0) == 1
    other = store.create_conversation()
    assert other.id > gone.id and store.append_prompt(other.id, "y").id > message.id


def test_an_answer_that_ended_can_be_continued(store):
    conversation = store.create_conversation()
    message = store.begin_answer(conversation.id, model="m")
    store.append_text(message.id, "One")
    assert store.finish_answer(message.id, state="stopped", statistics={"num_rounds": 1}).state == "stopped"
    assert store.continue_answer(message.id).state == "streaming"
    store.append_text(message.id, ", two")
    ended = store.finish_answer(message.id)
    assert (ended.content, ended.state, ended.statistics) == ("One, two", "complete", {"num_rounds": 1})
    assert [hit.conversation_id for hit in store.search("one, two")] == [message.conversation_id]


def test_an_answer_can_fail_and_ending_it_twice_is_harmless(store):
    conversation = store.create_conversation()
    message = answer(store, conversation, "part")
    assert store.finish_answer(message.id, state="failed").state == "failed"
    assert [hit.conversation_id for hit in store.search("part")] == [message.conversation_id]


def test_another_answer_replaces_one_that_can_be_restored(store):
    conversation = store.create_conversation()
    store.append_prompt(conversation.id, "question")
    first = answer(store, conversation, "first answer")
    store.branch_off(first.id)
    assert contents(store, conversation) == ["question"]
    assert store.conversation(conversation.id).num_messages == 1
    second = answer(store, conversation, "second answer")
    store.append_prompt(conversation.id, "thanks")
    assert store.step_back(conversation.id) == Place(1, 2, is_answer=True, message_id=first.id)
    assert contents(store, conversation) == ["question", "first answer"]
    assert store.step_forth(conversation.id) == Place(2, 2, is_answer=True, message_id=second.id)
    assert contents(store, conversation) == ["question", "second answer", "thanks"]


def test_an_edited_first_prompt_replaces_everything_and_can_be_restored(store):
    conversation = store.create_conversation()
    first = store.append_prompt(conversation.id, "a")
    answered = answer(store, conversation, "b")
    store.branch_off(answered.id)
    answer(store, conversation, "c")
    store.branch_off(first.id)
    assert contents(store, conversation) == []
    store.append_prompt(conversation.id, "A")
    assert store.step_back(conversation.id) == Place(1, 2, is_answer=False, message_id=first.id)
    assert contents(store, conversation) == ["a", "c"]


def test_what_was_dropped_behind_a_dropped_message_waits_for_that_one(store):
    conversation = store.create_conversation()
    first = store.append_prompt(conversation.id, "a")
    store.branch_off(answer(store, conversation, "b").id)
    store.branch_off(first.id)
    assert store.step_back(conversation.id) is not None
    assert contents(store, conversation) == ["a"]


def test_nothing_dropped_is_nothing_to_restore(store):
    conversation, other = store.create_conversation(), store.create_conversation()
    store.branch_off(store.append_prompt(other.id, "x").id)
    store.append_prompt(conversation.id, "y")
    assert store.step_back(conversation.id) is store.step_forth(conversation.id) is None
    assert contents(store, conversation) == ["y"]


def test_what_is_dropped_in_one_conversation_leaves_the_others(store):
    conversation, other = store.create_conversation(), store.create_conversation()
    first = answer(store, conversation, "a")
    answer(store, other, "b")
    store.branch_off(first.id)
    assert (contents(store, conversation), contents(store, other)) == ([], ["b"])
    assert store.step_back(other.id) is None
    assert store.step_back(conversation.id) == Place(1, 1, is_answer=True, message_id=first.id)


def test_only_answers_whose_process_is_gone_are_stopped_at_the_start(tmp_path):
    path = tmp_path / "conversations.db"
    with ConversationStore(path) as store:
        conversation = store.create_conversation()
        living, gone, nobody, ended = (store.begin_answer(conversation.id, model="m").id for _ in range(4))
        store.finish_answer(ended)
        with store._database.writing() as connection:
            for message_id, writer in ((gone, "1 0.00"), (nobody, None)):
                connection.execute("UPDATE messages SET writer = ? WHERE id = ?", (writer, message_id))
        with ConversationStore(path) as other:
            states = [other.message(each).state for each in (living, gone, nobody, ended)]
            assert states == ["streaming", "stopped", "stopped", "complete"]


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.rename_conversation(99, "x"),
        lambda store: store.append_prompt(99, "x"),
        lambda store: store.begin_answer(99, model="m"),
        lambda store: store.append_text(99, "x"),
        lambda store: store.finish_answer(99),
        lambda store: store.branch_off(99),
        lambda store: store.show(99),
        lambda store: store.versions(99),
        lambda store: store.branches(99),
        lambda store: store.step_back(99),
        lambda store: store.message(99),
        lambda store: store.undo_delete(99),
    ],
)
def test_an_unknown_id_is_one_sentence(store, use):
    with pytest.raises(BadInputError, match="99 is not there, or no longer"):
        use(store)


def test_a_prompt_is_no_answer(store):
    prompt = store.append_prompt(store.create_conversation().id, "x")
    with pytest.raises(BadInputError):
        store.append_text(prompt.id, "y")
    assert store.message(prompt.id).content == "x"


def test_closing_stops_what_still_streams(tmp_path):
    path = tmp_path / "conversations.db"
    store = ConversationStore(path)
    message = store.begin_answer(store.create_conversation().id, model="m")
    store.append_text(message.id, "half")
    store.close()
    store.close()
    with ConversationStore(path) as reopened:
        assert (reopened.message(message.id).state, reopened.message(message.id).content) == ("stopped", "half")
        assert [hit.conversation_id for hit in reopened.search("half")] == [message.conversation_id]


def test_without_a_path_everything_is_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ConversationStore(None) as store:
        conversation = store.create_conversation()
        answer(store, conversation, "kept for now")
        assert len(store.search("kept")) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_was_purged_is_not_found(store):
    gone = store.create_conversation()
    store.append_prompt(gone.id, "gone for good")
    store.delete_conversation(gone.id)
    store.purge_deleted(older_than_seconds=0)
    assert store.search("gone") == []


def test_what_a_tool_said_follows_its_call_and_is_shown_where_the_call_is(store):
    made = store.create_conversation()
    store.append_prompt(made.id, "a")
    answer = store.begin_answer(made.id, model="m")
    store.finish_answer(answer.id)
    result = store.append_result(answer.id, "half \ud83d of it", statistics={"outcome": "failed", "seconds": 1.5})
    assert (result.role, result.content, result.outcome, result.parent_id) == (
        *("tool", "half \ufffd of it", "failed"),
        answer.id,
    )
    assert [each.role for each in store.messages(made.id)] == ["user", "assistant", "tool"]
    store.branch_off(result.id)
    store.branch_off(answer.id)
    other = store.begin_answer(made.id, model="m")
    store.append_result(answer.id, "late", statistics={})
    assert store.messages(made.id)[-1].id == other.id
