"""The page of commands and keys, and the sentence about one command."""

import pytest
from textual.binding import Binding

from runtime.errors import OptionError
from tests.support.screen_text import STYLES
from tests.support.widget_screens import WidgetApp, run, screen_rows, screen_text
from tui.chat.commands.registry import COMMANDS
from tui.chat.widgets.help import HelpScreen, command_help

KEYS = (
    Binding("tab", "complete", tooltip="Take the completion."),
    Binding("shift+enter,ctrl+j", "begin_line", tooltip="Begin another line of the prompt."),
    Binding("f7", "do('new')", tooltip=COMMANDS[0].help),
    Binding("f12", "unexplained"),
)


def test_the_page_lists_every_command_and_key():
    app = WidgetApp(screen=HelpScreen(KEYS), css=STYLES.read_text())

    async def story(pilot):
        text = screen_text(app)
        assert [command.name for command in COMMANDS if f"{command.usage}" not in text] == []
        assert " │ /new                  Ctrl+N  Start an empty conversation; the others stay in the list." in text
        assert " │ Shift+Enter, Ctrl+J           Begin another line of the prompt." in text
        assert "F7" not in text and "F12" not in text

    run(app, story, size=(100, 60))


def test_it_is_closed_by_what_people_press():
    app = WidgetApp(css=STYLES.read_text())

    async def story(pilot):
        for key in ("escape", "enter", "q", "f1"):
            await app.push_screen(HelpScreen())
            await pilot.press(key)
            await pilot.pause()
            assert not isinstance(app.screen, HelpScreen), key

    run(app, story)


def test_it_scrolls_in_a_small_terminal():
    app = WidgetApp(screen=HelpScreen(KEYS), css=STYLES.read_text())

    async def story(pilot):
        assert "Take the completion." not in screen_text(app)
        assert "Esc closes" in screen_text(app)
        await pilot.press("end")
        await pilot.pause()
        assert "Take the completion." in screen_text(app)
        assert max(map(len, screen_rows(app))) <= 60

    run(app, story, size=(60, 16))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("rename", "/rename TITLE: Give this conversation another title. Also /title."),
        ("/quit", "/quit: End the app; every conversation is kept. Key: Ctrl+Q. Also /exit, /bye."),
        ("undo", "/undo: Bring back what was deleted, cleared or written anew last."),
    ],
)
def test_one_command_is_told_in_a_few_sentences(name, sentence):
    assert command_help(name) == sentence


def test_the_help_of_set_names_the_settings():
    assert "Names: temperature, top_p" in command_help("set")


def test_an_unknown_command_is_told_with_a_near_one():
    with pytest.raises(OptionError, match="there is no command /renam; did you mean /rename"):
        command_help("renam")
