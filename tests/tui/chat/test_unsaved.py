"""A full disk: what is on the screen is not lost, is said to be unsaved, and is saved or written elsewhere."""

import pytest

from offload.errors import WriteError
from runtime.events import TextDelta
from tests.support.chat_fakes import FINISHED, LOADED, answer_reports, of_answer
from tests.support.chat_stories import tell, telling
from tui.chat.engine.messages import Answer, LoadModel
from tui.chat.store.drafts import Draft
from tui.chat.store.store import ConversationStore
from tui.chat.unsaved import unsaved_text, write_elsewhere

LONG = "many words " * 2000


def begins(request):
    if isinstance(request, Answer):
        return answer_reports(request.answer_id, ["Once "], is_ended=False)
    return [LOADED] if isinstance(request, LoadModel) else []


def limit_pages(store, num_pages):
    with store._database.reading() as connection:
        connection.execute(f"PRAGMA max_page_count = {num_pages}")


async def filled(teller):
    """An answer of which the end found no room."""
    await teller.ask("Tell.", is_awaited=False)
    await teller.until(lambda: teller.contents == ["Tell.", "Once "])
    limit_pages(teller.store, 1)
    teller.engine.say(*of_answer(1, TextDelta(LONG), FINISHED))
    await teller.until(lambda: "not saved" in teller.chat.notice.sentence, "the notice")


def test_text_that_found_no_room_is_on_the_screen_and_saved_once_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tui.chat.screen.RETRY_SECONDS", 0.05)

    async def story():
        async with telling(tmp_path, script=begins) as teller:
            await filled(teller)
            assert "the disk is full" in teller.chat.notice.sentence
            assert "kept here only" in teller.chat.notice.sentence
            assert not teller.dialogue.is_answering
            await teller.press("ctrl+n")  # and when the conversation is shown anew
            await teller.until(lambda: teller.contents == [])
            await teller.press("f3", "enter")
            await teller.until(lambda: teller.contents == ["Tell.", f"Once {LONG}"])
            assert [each.state for each in teller.dialogue.messages()] == ["complete", "complete"]
            limit_pages(teller.store, 100_000)
            await teller.hears("everything is saved again")
            assert not teller.chat.notice.display
            with ConversationStore(tmp_path / "conversations.db") as other:
                assert [each.content for each in other.messages(1)] == ["Tell.", f"Once {LONG}"]
                assert other.messages(1)[1].statistics["finish_reason"] == "stop"

    tell(story)


def test_who_quits_with_unsaved_text_is_asked_where_to_write_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)

    async def story():
        async with telling(tmp_path, script=begins) as teller:
            await filled(teller)
            await teller.press("ctrl+q")
            await teller.until(lambda: teller.app.screen is not teller.screen, "the question")
            await teller.press("escape")
            await teller.until(lambda: teller.app.screen is teller.screen)
            assert not teller.engine.is_closed
            await teller.press("ctrl+q")
            await teller.until(lambda: teller.app.screen is not teller.screen, "the question")
            await teller.press("enter")
            await teller.until(lambda: teller.engine.is_closed, "the end")
            limit_pages(teller.store, 100_000)
        assert LONG.strip() in (tmp_path / "overstory-unsaved.md").read_text()

    tell(story)


def test_quitting_twice_quits_without_it(tmp_path):
    async def story():
        async with telling(tmp_path, script=begins) as teller:
            await filled(teller)
            await teller.press("ctrl+q")
            await teller.until(lambda: teller.app.screen is not teller.screen, "the question")
            await teller.press("ctrl+q")
            await teller.until(lambda: teller.engine.is_closed, "the end")
            limit_pages(teller.store, 100_000)

    tell(story)


def test_what_is_written_elsewhere_holds_whole_conversations_and_drafts(tmp_path):
    with ConversationStore(tmp_path / "conversations.db") as store:
        assert not store.is_unsaved and unsaved_text(store) == ""
        conversation = store.create_conversation(title="Foxes")
        answer = store.begin_answer(conversation.id, model="m")
        limit_pages(store, 1)
        for act in (
            lambda: store.append_text(answer.id, LONG),
            lambda: store.save_draft(conversation.id, Draft(text=f"draft {LONG}")),
        ):
            with pytest.raises(Exception, match="the disk is full"):
                act()
        assert store.draft(conversation.id).text == f"draft {LONG}"
        write_elsewhere(store, tmp_path / "elsewhere.md")
        text = (tmp_path / "elsewhere.md").read_text()
        assert "Foxes" in text and LONG.strip() in text and f"draft {LONG}" in text
        with pytest.raises(WriteError, match="cannot be written"):
            write_elsewhere(store, tmp_path / "elsewhere.md")
        limit_pages(store, 100_000)
        store.save_unsaved()
        assert not store.is_unsaved and store.message(answer.id).content == LONG
