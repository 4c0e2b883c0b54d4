"""Stories of conversations: several of them, found, renamed, deleted and brought back, written to files and read."""

import json

from runtime.prompts.prompt_file import Message
from tests.support.chat_fakes import endless
from tests.support.chat_stories import tell, telling


def listed(teller):
    options = teller.chat.side.query_one("#conversations")
    return [str(option.prompt) for option in options.options]


async def three_conversations(teller):
    for text in ("About foxes", "About owls", "About bears"):
        await teller.press("ctrl+n")
        await teller.ask(text)


def test_a_new_conversation_leaves_the_others_in_the_list(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await three_conversations(teller)
            await teller.press("f3")
            await teller.until(lambda: len(listed(teller)) == 3)
            assert [line.splitlines()[0].split("About ")[1] for line in listed(teller)] == ["bears", "owls", "foxes"]
            await teller.press("down", "down", "enter")
            await teller.until(lambda: teller.contents[0] == "About foxes")
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.contents == [])
            assert len(teller.store.list_conversations()) == 3

    tell(story)


def test_the_list_comes_and_goes(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for way in ("f3", "/list"):
                await teller.ask_for(way)
                await teller.until(lambda: teller.chat.side.display)
                await teller.press("escape")
                await teller.until(lambda: not teller.chat.side.display)
                assert teller.chat.prompt.has_focus

    tell(story)


def test_a_search_goes_over_all_conversations(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await three_conversations(teller)
            for way in ("ctrl+f", "/search owl"):
                await teller.ask_for(way)
                if way == "ctrl+f":
                    await teller.type("owl")
                await teller.until(lambda: len(listed(teller)) == 1, "the search")
                await teller.press("enter")
                await teller.until(lambda: teller.contents[0] == "About owls")
                await teller.press("f3")
                await teller.until(lambda: len(listed(teller)) == 3, "the whole list again")
                await teller.press("f3")
                await teller.press("ctrl+n")
                await teller.until(lambda: teller.contents == [])

    tell(story)


def test_a_hit_is_opened_where_it_stands_and_escape_closes_the_search(tmp_path):
    async def story():
        async with telling(tmp_path, size=(120, 24)) as teller:
            conversation = teller.store.create_conversation(title="long")
            for number in range(60):
                prompt = "a needle" if number == 4 else f"prompt {number}"
                teller.store.append_prompt(conversation.id, prompt)
                answer = teller.store.begin_answer(conversation.id, model="m")
                teller.store.append_text(answer.id, f"answer {number}\n\n" + "line\n\n" * 5)
                teller.store.finish_answer(answer.id)
            await teller.press("ctrl+f")
            await teller.type("needle")
            await teller.until(lambda: len(listed(teller)) == 1, "the search")
            await teller.press("enter")

            def is_shown():
                turns = [turn for turn in teller.chat.view.query(".turn") if turn.message.content == "a needle"]
                return turns and 0 <= turns[0].region.y < teller.chat.view.region.bottom - 2

            await teller.until(is_shown, "the hit")
            assert teller.chat.side.display
            await teller.press("escape")
            await teller.until(lambda: not teller.chat.side.display and teller.chat.prompt.has_focus)
            await teller.press("ctrl+end")
            await teller.until(lambda: teller.chat.view.scroll_y == teller.chat.view.max_scroll_y)
            await teller.press("ctrl+n")

    tell(story)


def test_a_conversation_gets_another_title_or_is_left_as_it_was(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:

            def title():
                return teller.store.list_conversations()[0].title

            await teller.ask("About foxes")
            await teller.command("/rename Foxes")
            await teller.until(lambda: title() == "Foxes")
            await teller.press("f3", "r")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("x", "escape")
            await teller.until(lambda: teller.app.screen is teller.screen)
            assert title() == "Foxes"
            await teller.press("r")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("ctrl+u")
            await teller.type("Old foxes")
            await teller.press("enter")
            await teller.until(lambda: title() == "Old foxes")
            await teller.until(lambda: "Old foxes" in listed(teller)[0])

    tell(story)


def test_a_conversation_is_deleted_and_brought_back(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await three_conversations(teller)
            for way, back in (("/delete", "/undo"), ("delete", "ctrl+z")):
                if way == "delete":
                    await teller.press("f3")
                await teller.ask_for(way)
                await teller.until(lambda: len(teller.store.list_conversations()) == 2)
                assert teller.contents == []
                await teller.ask_for(back)
                await teller.until(lambda: len(teller.store.list_conversations()) == 3)
                assert teller.contents[0] == "About bears"
            assert len(listed(teller)) == 3 and teller.chat.side.has_focus_within

    tell(story)


def test_a_deleted_conversation_is_brought_back_after_a_restart_or_removed_for_good(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for text in ("About foxes", "About owls", "About bears"):
                await teller.press("ctrl+n")
                await teller.ask(text)
                await teller.command("/delete")
                await teller.until(lambda: teller.contents == [])
        async with telling(tmp_path) as teller:
            await teller.command("/undo")
            await teller.until(lambda: teller.contents == ["About bears", "Hello there."])
            await teller.command("/undo")
            await teller.hears("/deleted brings back About owls")
            await teller.command("/deleted")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("delete", "delete")
            await teller.until(lambda: [each.title for each in teller.store.list_deleted()] == ["About foxes"])
            await teller.press("enter")
            await teller.hears("About foxes is back in the list")
            assert teller.contents == ["About bears", "Hello there."]

    tell(story)


def test_a_conversation_that_is_being_answered_can_be_deleted(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("About foxes", is_awaited=False)
            await teller.command("/delete")
            await teller.until(lambda: not teller.dialogue.is_answering)
            assert teller.store.list_conversations() == []

    tell(story)


def test_turns_are_cleared_and_brought_back(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.command("/clear")
            await teller.hears("there is nothing to clear")
            await teller.ask("About foxes")
            await teller.command("/clear")
            await teller.until(lambda: teller.contents == [])
            await teller.command("/undo")
            await teller.until(lambda: teller.contents == ["About foxes", "Hello there."])
            await teller.command("/undo")
            await teller.hears("there is nothing to undo in this conversation")

    tell(story)


def test_a_system_prompt_is_set(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.command("/system Be kind.")
            await teller.until(lambda: teller.dialogue.system_prompt() == "Be kind.")
            await teller.command("/system")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("ctrl+k")
            await teller.type("Be brief.")
            await teller.press("ctrl+s")
            await teller.until(lambda: teller.dialogue.system_prompt() == "Be brief.")
            await teller.ask("One?")
            assert teller.engine.requests[-1].prompt.messages[0] == Message("system", "Be brief.")

    tell(story)


def test_a_conversation_is_exported_and_imported(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.command("/export")
            await teller.hears("this conversation is empty")
            await teller.ask("About foxes")
            await teller.command("/export")
            await teller.until(lambda: teller.app.screen is not teller.screen)
            await teller.press("enter")
            await teller.until(lambda: list(tmp_path.glob("*about-foxes.md")), "the Markdown file")
            await teller.command(f"/export {tmp_path}/talk.json")
            await teller.until(lambda: (tmp_path / "talk.json").exists(), "the JSON file")
            assert [each["content"] for each in json.loads((tmp_path / "talk.json").read_text())["messages"]] == [
                "About foxes",
                "Hello there.",
            ]
            await teller.command(f"/import {tmp_path}/talk.json")
            await teller.until(lambda: len(teller.store.list_conversations()) == 2)
            assert teller.contents == ["About foxes", "Hello there."]

    tell(story)


def test_a_file_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "wrong.json").write_text("{}")

    async def story():
        async with telling(tmp_path) as teller:
            await teller.command(f"/import {tmp_path}/wrong.json")
            await teller.hears("is no conversation")
            await teller.ask("About foxes")
            await teller.command(f"/export {tmp_path}/wrong.json")
            await teller.hears("is there already")

    tell(story)


def test_another_conversation_can_be_read_while_an_answer_is_written(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("About foxes", is_awaited=False)
            foxes = teller.dialogue.conversation_id
            await teller.press("ctrl+n")
            await teller.until(lambda: teller.contents == [])
            await teller.press("f3", "enter")
            await teller.until(lambda: teller.dialogue.conversation_id == foxes)
            await teller.until(lambda: teller.chat.view.query(".-streaming"))
            await teller.press("escape")
            await teller.until(lambda: not teller.dialogue.is_answering)
            assert teller.contents == ["About foxes", "Once upon "]

    tell(story)
