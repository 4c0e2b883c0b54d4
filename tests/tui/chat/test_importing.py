"""Stories of conversations that come from other programs."""

import json

from tests.support.chat_stories import tell, telling
from tests.tui.chat.store.test_foreign import SHAREGPT, TREE


def test_many_conversations_are_imported_behind_those_of_today_and_what_is_left_out_is_said(tmp_path):
    (tmp_path / "conversations.json").write_text(json.dumps([TREE, SHAREGPT]))

    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("About foxes")
            await teller.command(f"/import {tmp_path}/conversations.json")
            await teller.until(lambda: teller.chat.notice.display, "the end of the import")
            told = "2 conversations with 5 turns imported; 1 call of a tool, 1 image and 1 result of a tool left out"
            assert teller.chat.notice.sentence == told
            assert teller.contents == ["About foxes", "Hello there."]
            titles = [each.title for each in teller.store.list_conversations()]
            assert sorted(titles) == ["About foxes", "Foxes", "Owls?"] and titles[-1] == "Foxes"
            await teller.press("f6", "enter")
            await teller.until(lambda: teller.chat.side.display, "the list")

    tell(story)


def test_a_single_conversation_is_opened(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(SHAREGPT))

    async def story():
        async with telling(tmp_path) as teller:
            await teller.command(f"/import {tmp_path}/one.json")
            await teller.until(lambda: teller.contents == ["Owls?\nNow", "Hello."])
            await teller.hears("2 turns imported")

    tell(story)
