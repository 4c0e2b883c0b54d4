"""A notice says one sentence and offers what can be done; it can always be put away."""

import asyncio

from textual.app import App
from textual.screen import Screen
from textual.widgets import Button, Input

from tests.support.screen_text import STYLES
from tui.chat.widgets.notice import Choice, NoticeBar

CHOICES = (Choice("Restart", "restart", "Start it again"), Choice("Model", "choose", "Choose another"))


class RoomScreen(Screen):
    def compose(self):
        yield NoticeBar()
        yield Input()

    def action_do(self, name):
        self.app.made.append(name)


class Room(App):
    CSS_PATH = STYLES

    def __init__(self):
        super().__init__()
        self.made = []
        self.num_dismissed = 0

    def get_default_screen(self):
        return RoomScreen()

    def on_notice_bar_dismissed(self):
        self.num_dismissed += 1


def notice(story):
    async def run():
        app = Room()
        async with app.run_test(size=(60, 12)) as pilot:
            await story(app, app.screen.query_one(NoticeBar), pilot)

    asyncio.run(run())


def test_enter_takes_the_first_choice_of_who_goes_there():
    async def story(app, bar, pilot):
        assert not bar.display
        await bar.show("gone \x1b[31mred", CHOICES)
        assert bar.sentence == "gone red"
        await pilot.press("enter")  # nobody has gone there
        assert app.made == [] and bar.display
        bar.focus_choices()
        await pilot.press("enter")
        assert app.made == ["restart"]
        assert not bar.display

    notice(story)


def test_what_must_be_read_stays_above_the_others_until_it_is_put_away():
    async def story(app, bar, pilot):
        await bar.show_lasting("set aside")
        await bar.show("gone", CHOICES)
        assert bar.sentence == "set aside\ngone"
        await bar.withdraw()
        assert bar.sentence == "set aside"
        assert [str(button.label) for button in bar.query(Button)] == ["Dismiss"]
        bar.action_dismiss()
        await bar.show("gone", CHOICES)
        assert bar.sentence == "gone"
        await bar.withdraw()
        await pilot.pause()
        assert (bar.sentence, bar.display, app.num_dismissed) == ("", False, 2)
        await bar.withdraw()
        assert not bar.display

    notice(story)


def test_arrows_go_to_the_other_choices():
    async def story(app, bar, pilot):
        await bar.show("gone", CHOICES)
        bar.focus_choices()
        await pilot.press("right", "enter")
        assert app.made == ["choose"]

    notice(story)


def test_it_is_put_away_with_a_button_or_escape():
    async def story(app, bar, pilot):
        await bar.show("gone", CHOICES)
        await pilot.pause()
        await pilot.click(bar.query(Button).last())
        assert (app.made, bar.display) == ([], False)
        await bar.show("gone again", CHOICES)
        bar.focus_choices()
        await pilot.press("escape")
        await pilot.pause()
        assert (app.made, bar.display, app.num_dismissed) == ([], False, 2)

    notice(story)


def test_a_notice_leaves_the_focus_where_it_is():
    async def story(app, bar, pilot):
        app.screen.query_one(Input).focus()
        for choices in ((), CHOICES):
            await bar.show("the file was set aside", choices)
            await pilot.press("x")
        assert app.screen.query_one(Input).value == "xx"

    notice(story)


def test_every_button_explains_itself():
    async def story(app, bar, pilot):
        await bar.show("gone", CHOICES)
        assert all(button.tooltip for button in bar.query(Button))

    notice(story)
