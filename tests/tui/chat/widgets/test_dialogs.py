"""Dialogs hand over what was written, or nothing with Esc."""

from tests.support.widget_screens import WidgetApp, run
from tui.chat.widgets.dialogs import LineDialog, TextDialog


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
