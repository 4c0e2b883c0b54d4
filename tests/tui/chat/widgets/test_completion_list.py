"""The ways on over the prompt: the first is highlighted, the ends are neighbours, nothing shows nothing."""

import asyncio

from textual.app import App

from tests.support.screen_text import STYLES
from tui.chat.commands.slash_commands import Completion
from tui.chat.widgets.completion_list import CompletionList

WAYS = [Completion(f"/{name}", f"/{name}", "words") for name in ("a", "b", "c")]


class Shelf(App):
    CSS_PATH = STYLES

    def __init__(self):
        super().__init__()
        self.taken = []

    def compose(self):
        yield CompletionList()

    def on_completion_list_taken(self, message):
        self.taken.append(message.completion)


def look(story):
    async def run():
        app = Shelf()
        async with app.run_test(size=(40, 12)) as pilot:
            await story(app, app.query_one(CompletionList), pilot)

    asyncio.run(run())


def test_choosing_goes_around():
    async def story(app, completions, pilot):
        assert completions.chosen is None
        completions.show(WAYS)
        assert completions.chosen == WAYS[0]
        completions.move(-1)
        assert completions.chosen == WAYS[2]
        completions.move(1)
        assert completions.chosen == WAYS[0]
        completions.hide()
        assert completions.chosen is None
        assert not completions.display

    look(story)


def test_a_click_takes_one():
    async def story(app, completions, pilot):
        completions.show(WAYS)
        await pilot.pause()
        await pilot.click(completions, offset=(3, 1))
        assert app.taken == [WAYS[1]]

    look(story)


def test_it_never_has_the_focus():
    assert not CompletionList().can_focus
