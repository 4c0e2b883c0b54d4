"""Keys and commands: every one has an action and words, and none is taken twice."""

from typing import get_args

import pytest

from tests.support.chat_fakes import endless
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tui.chat.actions import Actions
from tui.chat.changes import TroubleKind
from tui.chat.commands.keymap import NO_KEY
from tui.chat.commands.registry import COMMANDS, find_command
from tui.chat.display import CHOICES
from tui.chat.screen import FOOTER_WORDS, ChatScreen


def test_every_command_has_its_action(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            actions = Actions(teller.chat)
            assert [each.name for each in COMMANDS if not hasattr(actions, f"do_{each.name}")] == []

    tell(story)


def test_every_kind_of_trouble_has_its_choices():
    assert set(CHOICES) == set(get_args(TroubleKind))


def test_every_choice_has_an_action_and_explains_itself():
    choices = [choice for offered in CHOICES.values() for choice in offered]
    assert all(choice.help and find_command(choice.command) is not None for choice in choices)


def test_every_binding_has_a_key_of_its_own_and_explains_itself():
    keys = [key for binding in ChatScreen.BINDINGS for key in binding.key.split(",") if key != NO_KEY]
    assert len(keys) == len(set(keys))
    assert all(binding.tooltip and binding.description for binding in ChatScreen.BINDINGS)
    assert {command.name for command in COMMANDS} >= set(FOOTER_WORDS)


def test_every_binding_on_the_screen_explains_itself(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.press("f3")
            own = [
                active.binding
                for active in teller.screen.active_bindings.values()
                if type(active.node).__module__.startswith("tui.")
            ]
            assert len(own) > 15
            inherited = {"copy_text", "minimize"}
            unexplained = [
                each.key
                for each in own
                if not (each.tooltip or each.description) and each.action.split(".")[-1] not in inherited
            ]
            assert unexplained == []

    tell(story)


def test_a_command_that_does_not_exist_comes_back_with_a_near_one(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.command("/regenrate")
            await teller.hears("did you mean /regenerate")
            await teller.until(lambda: teller.chat.prompt.text == "/regenrate")
            assert teller.num_requests("Answer") == 0

    tell(story)


def test_a_message_may_begin_with_a_slash(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("//new is a command")
            assert teller.contents[0] == "/new is a command"

    tell(story)


def test_completions_come_while_a_command_is_typed_and_tab_takes_one(tmp_path):
    (tmp_path / "talk.json").touch()

    async def story():
        async with telling(tmp_path) as teller:
            completions = teller.chat.completions
            await teller.type("/the")
            await teller.until(lambda: completions.display)
            await teller.press("tab")
            await teller.until(lambda: teller.chat.prompt.text == "/theme ")
            await teller.type("nor")
            await teller.until(lambda: completions.chosen is not None and completions.chosen.label == "nord")
            await teller.press("tab", "enter")
            await teller.until(lambda: teller.app.theme == "nord")
            await teller.type(f"/import {tmp_path}/ta")
            await teller.until(lambda: completions.display, "paths")
            await teller.press("tab")
            await teller.until(lambda: teller.chat.prompt.text == f"/import {tmp_path}/talk.json")

    tell(story)


def test_escape_puts_completions_away_before_it_stops_anything(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("Tell.", is_awaited=False)
            completions = teller.chat.completions
            await teller.type("/cl")
            await teller.until(lambda: completions.display)
            await teller.press("escape")
            await teller.until(lambda: not completions.display)
            assert teller.dialogue.is_answering
            await teller.press("escape")
            await teller.until(lambda: not teller.dialogue.is_answering)

    tell(story)


def test_a_click_takes_a_completion(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.type("/cl")
            completions = teller.chat.completions
            await teller.until(lambda: completions.display)
            await teller.pilot.click(completions, offset=(3, 0))
            await teller.until(lambda: teller.chat.prompt.text == "/clear")

    tell(story)


def test_pages_scroll_while_the_prompt_has_the_focus(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            for index in range(6):
                await teller.ask(f"Number {index}")
            view = teller.chat.view
            await teller.until(lambda: view.scroll_y == view.max_scroll_y > 0)
            await teller.press("pageup")
            await teller.until(lambda: view.scroll_y < view.max_scroll_y)
            await teller.press("ctrl+home")
            await teller.until(lambda: view.scroll_y == 0)
            await teller.press("pagedown")
            await teller.until(lambda: view.scroll_y > 0)
            await teller.press("ctrl+end")
            await teller.until(lambda: view.scroll_y == view.max_scroll_y)
            assert teller.chat.prompt.has_focus

    tell(story)


def test_escape_is_in_the_footer_while_there_is_something_to_stop(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            assert "Stop" not in screen_text(teller.app)
            await teller.ask("Tell.", is_awaited=False)
            await teller.until(lambda: "Stop" in screen_text(teller.app))

    tell(story)


def test_commands_do_what_their_keys_do(tmp_path):
    async def story():
        async with telling(tmp_path, script=endless) as teller:
            await teller.ask("Tell.", is_awaited=False)
            await teller.command("/stop")
            await teller.until(lambda: not teller.dialogue.is_answering)
            await teller.command("/code")
            await teller.hears("there is no code block")
            await teller.command("/new")
            await teller.until(lambda: teller.contents == [])
            await teller.command("/quit")
            await teller.until(lambda: teller.engine.is_closed)

    tell(story)


@pytest.mark.parametrize("keys", [("ctrl+q",), ("ctrl+c", "ctrl+c")])
def test_quitting_ends_the_engine(tmp_path, monkeypatch, keys):
    monkeypatch.setattr("tui.chat.screen.QUIT_SECONDS", 3600.0)  # on a busy machine two keys may be seconds apart

    async def story():
        async with telling(tmp_path) as teller:
            await teller.press(*keys)
            await teller.until(lambda: teller.engine.is_closed)
            assert teller.app.return_value == 0

    tell(story)


def test_one_ctrl_c_copies_what_is_selected_or_says_how_to_quit(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.press("ctrl+c")
            await teller.hears("press Ctrl+C again to quit")
            await teller.type("abc")
            await teller.press("shift+left", "ctrl+c")
            await teller.until(lambda: teller.app.clipboard == "c")
            assert not teller.engine.is_closed

    tell(story)


def test_the_notice_is_reached_without_losing_what_is_written(tmp_path):
    async def story():
        async with telling(tmp_path) as teller:
            await teller.type("half a prompt")
            teller.engine.die()
            await teller.until(lambda: teller.chat.notice.display)
            assert teller.chat.prompt.has_focus
            await teller.press("f6", "enter")
            await teller.until(lambda: teller.engine.num_starts == 2)
            assert teller.chat.prompt.text == "half a prompt"

    tell(story)


def test_the_footer_says_what_esc_does_now(tmp_path):
    """It said Stop where there was nothing to stop."""

    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("Hi?")
            await teller.type("/he")
            await teller.until(lambda: "esc Back" in screen_text(teller.app))
            await teller.press("escape")
            await teller.until(lambda: "esc " not in screen_text(teller.app))
            teller.chat.prompt.put("")
            await teller.press("ctrl+o")
            await teller.until(lambda: "esc Back" in screen_text(teller.app))
            assert "Stop" not in screen_text(teller.app) and "f5 Settings" in screen_text(teller.app)

    tell(story)
