"""The line of a selected turn says what its keys do, has the focus, and goes with it."""

import asyncio

import pytest
from textual.app import App
from textual.widgets import Input

from tests.support.conversation_factory import message
from tests.support.screen_text import STYLES, screen_rows
from tui.chat.widgets.conversation import ConversationView
from tui.chat.widgets.turn_keys import TurnKeys


class Window(App):
    CSS_PATH = STYLES

    def __init__(self):
        super().__init__()
        self.view = ConversationView()
        self.keys = TurnKeys(self.view)
        self.field = Input()

    def compose(self):
        yield from (self.view, self.keys, self.field)


def watch(story, *, size=(80, 24), keymap=None):
    async def run():
        app = Window()
        app.set_keymap(keymap or {})
        async with app.run_test(size=size) as pilot:
            await app.view.show([message(id=1), message("assistant", id=2)])
            await app.view.select(2)
            app.keys.show("2/2", "1/3")
            await pilot.pause()
            await story(app, pilot)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (80, "turn 2/2 ↑↓ · e edit · r ask again · c copy · version 1/3 ←→ · Esc prompt"),
        (40, "e edit  r again  c copy  ←→ 1/3  Esc"),
    ],
)
def test_it_says_what_keys_do_in_the_room_there_is(columns, line):
    async def story(app, pilot):
        assert line in [row.strip() for row in screen_rows(app)]
        app.keys.show("2/2", "")
        await pilot.pause()
        assert not any("1/3" in row or "←" in row for row in screen_rows(app))

    watch(story, size=(columns, 10))


def test_it_names_the_keys_that_hold():
    async def story(app, pilot):
        assert any("x edit" in row and "Ctrl+L copy" in row for row in screen_rows(app))

    watch(story, keymap={"turn_edit": "x", "turn_copy": "ctrl+l"})


def test_who_takes_the_focus_ends_the_selection():
    async def story(app, pilot):
        assert app.keys.has_focus and app.view.query(".-selected")
        app.field.focus()
        await pilot.pause()
        assert not app.keys.display and app.view.selected_id == 0 and not app.view.query(".-selected")

    watch(story)


def test_the_selection_stays_while_another_window_has_the_focus():
    async def story(app, pilot):
        app.app_focus = False
        await pilot.pause()
        assert app.keys.display and app.view.selected_id == 2
        app.app_focus = True
        await pilot.pause()
        assert app.keys.has_focus and app.view.selected_id == 2

    watch(story)
