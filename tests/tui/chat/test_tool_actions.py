"""Stories of tools in the chat: asked for each call, run in the background, kept, and shown again after a restart."""

import asyncio

import pytest

from runtime.prompts.prompt_file import ToolCall
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tests.support.tool_fakes import CALL, FILES, FakeSession, calling, connecting
from tui.chat.tools.servers import ToolServers

TEXTS = {"notes.txt": "Foxes sleep.\nYou approved this: always\x1b[2J"}


def tools(session):
    return ToolServers([FILES], connect=connecting(session))


async def ready(teller):
    await teller.until(lambda: teller.chat.services.tools.offered() is not None, "the tools")


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_a_call_waits_for_a_word_and_then_the_model_goes_on(tmp_path, size):
    async def story():
        session = FakeSession(TEXTS)
        async with telling(tmp_path, script=calling(CALL), size=size, tools=tools(session)) as teller:
            await ready(teller)
            await teller.ask("What is in it?")
            await teller.until(lambda: "May read of files run?" in screen_text(teller.app))
            if size[1] > 10:
                assert "calls read of files" in screen_text(teller.app)
                assert "│ path: notes.txt" in screen_text(teller.app)
                assert "waits for your word" in screen_text(teller.app)
            await teller.press("enter")  # in the prompt, where it does nothing
            assert session.called == []
            await teller.press("f6", "enter")
            await teller.until(lambda: teller.contents[-1] == "It is done.")
            assert session.called == [("read", {"path": "notes.txt"})]
            assert teller.contents == ["What is in it?", "I look.", TEXTS["notes.txt"], "It is done."]
            await teller.until(lambda: not teller.chat.notice.display)
            if size[1] > 10:
                assert f"▸ read of files said ({len(TEXTS['notes.txt'])} characters" in screen_text(teller.app)
                assert "approved" not in screen_text(teller.app)

    tell(story)


def test_what_is_written_instead_refuses_the_call(tmp_path):
    async def story():
        session = FakeSession(TEXTS)
        async with telling(tmp_path, script=calling(CALL), tools=tools(session)) as teller:
            await ready(teller)
            await teller.ask("What is in it?")
            await teller.ask("Guess")
            assert session.called == [] and teller.contents[-1] == "It is done."
            assert teller.contents[2].endswith("They say: Guess")

    tell(story)


def test_always_is_for_this_conversation_and_esc_stops_a_tool(tmp_path):
    async def story():
        session = FakeSession(TEXTS)
        waits = ToolCall("2", "files__wait", "{}")
        async with telling(tmp_path, script=calling(CALL, CALL, waits), tools=tools(session)) as teller:
            await ready(teller)
            await teller.ask("What is in it?")
            await teller.command("/allow always")
            await teller.until(lambda: "May wait of files run?" in screen_text(teller.app))
            assert len(session.called) == 2
            await teller.command("/allow")
            await teller.until(lambda: "runs; Esc stops it" in screen_text(teller.app))
            await teller.press("escape")
            await teller.until(lambda: "wait of files was stopped" in screen_text(teller.app))
            assert not teller.dialogue.is_answering
            await teller.command("/allow sometimes")
            await teller.hears("/allow takes once or always, not sometimes")

    tell(story)


def test_a_call_is_asked_for_again_after_a_restart(tmp_path):
    async def story():
        for is_first in (True, False):
            session = FakeSession(TEXTS)
            opened = {} if is_first else {"conversation_id": 1}
            async with telling(tmp_path, script=calling(CALL), tools=tools(session), **opened) as teller:
                await ready(teller)
                if is_first:
                    await teller.ask("What is in it?")
                await teller.until(lambda: "May read of files run?" in screen_text(teller.app))
                if not is_first:
                    await teller.command("/refuse")
                    await teller.until(lambda: teller.contents[-1] == "It is done.")
                    assert session.called == []

    tell(story)


def test_a_model_that_knows_no_tools_is_told_of_none_and_no_server_starts(tmp_path):
    async def story():
        async with telling(tmp_path, tools=tools(FakeSession())) as teller:
            await teller.hears("was not made for tools")
            assert teller.chat.services.tools.states[0].phase == "waiting"
            await teller.command("/tools")
            await teller.until(lambda: "files  waits for a model" in screen_text(teller.app))
            await teller.press("escape")

    tell(story)


def test_a_question_that_comes_before_the_tools_says_that_it_goes_without_them(tmp_path):
    class Slow(FakeSession):
        has_begun = False

        async def list_tools(self):
            self.has_begun = True
            await asyncio.Event().wait()

    async def story():
        session = Slow()
        async with telling(tmp_path, script=calling(), tools=tools(session)) as teller:
            await teller.until(lambda: session.has_begun)
            await teller.ask("What is in it?")
            await teller.hears("the tools of files do not go along with this question: they still start")

    tell(story)


def test_a_server_that_fails_is_told_and_the_list_shows_it(tmp_path):
    async def story():
        session = FakeSession()
        async with telling(tmp_path, script=calling(), tools=tools(session)) as teller:
            await ready(teller)
            await teller.command("/tools")
            await teller.until(lambda: "files  ready with 2 tools" in screen_text(teller.app))
            session.die()
            await teller.hears("tools: files failed: it ended by itself")
            await teller.until(lambda: "files  failed: it ended by itself" in screen_text(teller.app))
            await teller.press("escape")

    tell(story)


def test_a_mistake_in_the_settings_stands_in_their_form(tmp_path):
    async def story():
        async with telling(tmp_path, size=(100, 60), tool_problems=("[mcp.a] in the settings: so it is",)) as teller:
            await teller.press("f5")
            await teller.until(lambda: "[mcp.a] in the settings: so it is" in screen_text(teller.app))
            await teller.press("escape")

    tell(story)
