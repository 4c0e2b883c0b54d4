"""The palette finds the registry's commands and does what slashes do."""

import pytest
from textual.app import App
from textual.command import CommandPalette
from textual.fuzzy import Matcher
from textual.screen import Screen

from tests.support.widget_screens import run, screen_text
from tui.chat.app import ChatApp
from tui.chat.commands.registry import COMMANDS, find_command
from tui.chat.screen import CommandProvider, match_score


class HostScreen(Screen):
    COMMANDS = {CommandProvider}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.done = []

    async def action_do(self, name):
        self.done.append(name)

    def action_begin(self, text):
        self.done.append(text)


class PaletteApp(App):
    COMMANDS = ChatApp.COMMANDS

    def __init__(self, screen_of=HostScreen):
        super().__init__()
        self._screen_of = screen_of

    def get_default_screen(self):
        return self._screen_of()


async def settled(pilot):
    """Until the palette's search is over."""
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


@pytest.mark.parametrize(
    ("typed", "done"),
    [("regen", "regenerate"), ("rename", "/rename "), ("exit", "quit"), ("machine", "stats")],
)
def test_what_is_found_is_done_as_by_its_slash_command(typed, done):
    app, screens = PaletteApp(), []

    async def story(pilot):
        screens.append(app.screen)
        app.action_command_palette()
        await pilot.pause()
        await pilot.press(*typed)
        await settled(pilot)
        await pilot.press("enter")
        await settled(pilot)

    run(app, story)
    assert screens[0].done == [done]


def test_the_palette_lists_usage_key_and_help():
    app = PaletteApp()

    async def story(pilot):
        app.action_command_palette()
        await pilot.pause()
        await pilot.press(*"new conv")
        await settled(pilot)
        text = screen_text(app)
        assert "New conversation  /new  Ctrl+N" in text
        assert find_command("new").help in text

    run(app, story)


def test_a_screen_that_obeys_no_commands_offers_none():
    app = PaletteApp(Screen)

    async def story(pilot):
        app.action_command_palette()
        await pilot.pause()
        await pilot.press(*"regen")
        await settled(pilot)
        assert isinstance(app.screen, CommandPalette)
        assert "Regenerate" not in screen_text(app)

    run(app, story)


def test_every_command_is_found_first_by_its_own_title():
    for command in COMMANDS:
        matcher = Matcher(command.title)
        assert max(COMMANDS, key=lambda other: match_score(matcher, other)) is command


def test_an_alias_counts_less_than_a_title():
    assert match_score(Matcher("history"), find_command("list")) > 0
    assert match_score(Matcher("zzz"), find_command("list")) == 0
