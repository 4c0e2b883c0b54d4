"""Dialogs hand over what was written, or nothing with Esc; the help page lists all commands and keys."""

from textual.binding import Binding

from tests.support.screen_text import screen_rows, screen_text
from tests.support.widget_screens import WidgetApp, run, until
from tui.chat.commands.registry import COMMANDS, find_command
from tui.chat.settings.settings import TYPED_SETTINGS
from tui.chat.widgets.dialogs import HelpScreen, LineDialog, TextDialog


def answers_to(*dialogs_and_keys):
    app, answers = WidgetApp(), []

    async def story(pilot):
        for dialog, *keys in dialogs_and_keys:
            await app.push_screen(dialog, answers.append)
            await pilot.press(*keys)
            await pilot.pause()

    run(app, story)
    return answers


def test_a_line_is_handed_over_unless_it_says_nothing_or_is_not_wanted():
    assert answers_to(
        (LineDialog("Title"), "x", "enter"),
        (LineDialog("Title"), "x", "escape"),
        (LineDialog("Title"), "space", "enter"),
        (LineDialog("Title", "old"), "enter"),
    ) == ["x", None, None, "old"]


def test_several_lines_may_be_empty():
    assert answers_to(
        (TextDialog("System prompt"), "a", "enter", "b", "ctrl+s"),
        (TextDialog("System prompt"), "a", "escape"),
        (TextDialog("System prompt"), "ctrl+s"),
    ) == ["a\nb", None, ""]


KEYS = (
    Binding("tab", "complete", tooltip="Take the completion."),
    Binding("shift+enter,ctrl+j", "begin_line", tooltip="Begin another line of the prompt."),
    Binding("f11", "do('new')", tooltip=COMMANDS[0].help),
    Binding("f12", "unexplained"),
)


def test_the_page_lists_every_command_and_key():
    app = WidgetApp(screen=HelpScreen(KEYS))

    async def story(pilot):
        text = screen_text(app)
        listed = {str(each.content) for each in app.screen.query(".help-name")}
        assert [command.name for command in COMMANDS if command.usage not in listed] == []
        assert " │ /new                  Ctrl+N  Start an empty conversation; the others stay in the list." in text
        await pilot.press("end")
        await until(pilot, lambda: "Take the completion." in screen_text(app))
        text = screen_text(app)
        assert " │ Shift+Enter, Ctrl+J           Begin another line of the prompt." in text
        assert "F11" not in text and "F12" not in text

    run(app, story, size=(130, 70))


def test_the_commands_stand_in_groups():
    app = WidgetApp(screen=HelpScreen())

    async def story(pilot):
        rows = [row.strip(" │") for row in screen_rows(app)]
        places = [rows.index(group) for group in ("Answers", "Conversations", "Model", "Looks")]
        assert places == sorted(places)
        assert places[2] < next(index for index, row in enumerate(rows) if row.startswith("/model")) < places[3]

    run(app, story, size=(100, 90))


def test_one_command_is_explained_with_all_that_it_takes():
    """The help on /set was once a toast of eight rows over the prompt."""
    app = WidgetApp(screen=HelpScreen(command=find_command("set")))

    async def story(pilot):
        text = screen_text(app)
        assert "/set [NAME] [VALUE]   F5" in text and "/settings, /config" in text
        assert set(TYPED_SETTINGS) <= {str(each.content) for each in app.screen.query(".help-name")}
        assert "/new" not in text

    run(app, story, size=(100, 70))


def test_it_is_closed_by_what_people_press():
    app = WidgetApp()

    async def story(pilot):
        for key in ("escape", "enter", "q", "f1"):
            await app.push_screen(HelpScreen())
            await pilot.press(key)
            await pilot.pause()
            assert not isinstance(app.screen, HelpScreen), key

    run(app, story)


def test_it_scrolls_in_a_small_terminal():
    app = WidgetApp(screen=HelpScreen(KEYS))

    async def story(pilot):
        assert "Take the completion." not in screen_text(app)
        assert "Esc closes" in screen_text(app)
        await pilot.press("end")
        await until(pilot, lambda: "Take the completion." in screen_text(app))
        assert max(map(len, screen_rows(app))) <= 60

    run(app, story, size=(60, 16))
