"""Drafts: one a conversation, and one a process for what is yet to begin."""

from tui.chat.store.drafts import Draft
from tui.chat.store.store import ConversationStore

DRAFT = Draft(text="a\nb \x1b[0m", edited_id=3, edit="c")


def test_a_draft_is_kept_until_it_is_empty(tmp_path):
    path = tmp_path / "conversations.db"
    with ConversationStore(path) as store:
        first, second = store.create_conversation(), store.create_conversation()
        assert store.draft(first.id) == store.draft(None) == Draft()
        store.save_draft(first.id, DRAFT)
        store.save_draft(first.id, DRAFT)
        store.save_draft(None, Draft(text="new"))
        assert store.draft(second.id) == Draft()
    with ConversationStore(path) as store:
        assert (store.draft(first.id), store.draft(None)) == (DRAFT, Draft(text="new"))
        for conversation_id in (first.id, None):
            store.save_draft(conversation_id, Draft())
            assert store.draft(conversation_id) == Draft()


def test_what_a_killed_process_left_is_taken_over_one_by_one(tmp_path):
    """Two windows were open; what either had not sent comes back, and what a third one writes now stays its own."""
    with ConversationStore(tmp_path / "conversations.db") as store:
        for writer, text in (("1 0.00", "older"), ("2 0.00", "newer")):
            store.save_draft(None, Draft(text=text))
            with store._database.writing() as connection:
                connection.execute("UPDATE drafts SET writer = ? WHERE text = ?", (writer, text))
        assert [store.draft(None).text for _ in range(2)] == ["newer", "newer"]
        store.save_draft(None, Draft())
        assert store.draft(None).text == "older"
        store.save_draft(None, Draft())
        assert store.draft(None) == Draft()


def test_a_purged_conversation_takes_its_draft_along(tmp_path):
    with ConversationStore(tmp_path / "conversations.db") as store:
        conversation = store.create_conversation()
        store.save_draft(conversation.id, DRAFT)
        store.delete_conversation(conversation.id)
        assert store.draft(conversation.id) == DRAFT
        store.save_draft(conversation.id, DRAFT)
        store.purge_conversation(conversation.id)
        with store._database.reading() as connection:
            assert connection.execute("SELECT count(*) FROM drafts").fetchone()[0] == 0
