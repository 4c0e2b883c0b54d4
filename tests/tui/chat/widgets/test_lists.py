"""The side list shows titles and hits as text and says what is wanted of them; completions go around."""

import asyncio

import pytest
from textual.app import App
from textual.screen import Screen

from tests.support.conversation_factory import conversation
from tests.support.screen_text import STYLES, screen_text
from tests.support.widget_screens import WidgetApp
from tests.support.widget_screens import run as run_app
from tui.chat.commands.slash import Completion
from tui.chat.store.search import SearchHit
from tui.chat.widgets.lists import CompletionList, ConversationList, age_words


class ShelfScreen(Screen):
    def compose(self):
        yield ConversationList()

    def action_open_conversation(self, conversation_id):
        self.app.heard.append(("open", conversation_id))

    def action_rename_conversation(self, conversation_id):
        self.app.heard.append(("rename", conversation_id))

    def action_delete_conversation(self, conversation_id):
        self.app.heard.append(("delete", conversation_id))

    def action_undo_in_list(self):
        self.app.heard.append("undo")

    def action_do(self, name):
        self.app.heard.append(name)

    def on_input_changed(self):
        self.app.heard.append(("search", self.query_one(ConversationList).search_text))


class Shelf(App):
    CSS_PATH = STYLES

    def __init__(self):
        super().__init__()
        self.heard = []

    def get_default_screen(self):
        return ShelfScreen()


def browse(story):
    async def run():
        app = Shelf()
        async with app.run_test(size=(60, 14)) as pilot:
            side = app.screen.query_one(ConversationList)
            side.show_conversations([conversation(id=7, title="Owls"), conversation(id=3, title="Foxes")], open_id=3)
            side.action_focus_list()
            await pilot.pause()
            await story(app, side, pilot)

    asyncio.run(run())


def test_what_is_chosen_in_a_list_is_seen_without_colours(monkeypatch):
    """A completion that Enter would take differed from the others by a little of its grey alone."""
    monkeypatch.setenv("NO_COLOR", "1")
    app = WidgetApp(CompletionList())

    async def story(pilot):
        found = app.query_one(CompletionList)
        found.show([Completion("/theme ", "/theme NAME"), Completion("/think ", "/think HOW")])
        await pilot.pause()
        pieces = [piece for strip in app.screen._compositor.render_strips() for piece in strip]
        looks = [next(piece.style.underline for piece in pieces if word in piece.text) for word in ("/theme", "/think")]
        assert looks[0] and not looks[1]

    run_app(app, story)


def test_keys():
    async def story(app, side, pilot):
        for key, heard in (
            ("enter", ("open", 3)),
            ("r", ("rename", 3)),
            ("delete", ("delete", 3)),
            ("ctrl+z", "undo"),
            ("escape", "list"),
        ):
            await pilot.press(key)
            await pilot.pause()
            assert app.heard == [heard], key
            app.heard.clear()
        await pilot.press("up", "enter")
        await pilot.pause()
        assert app.heard == [("open", 7)]

    browse(story)


def test_typing_in_the_field_searches_and_enter_opens_the_first():
    async def story(app, side, pilot):
        side.search_for("f")
        await pilot.press("o")
        await pilot.pause()
        assert app.heard[-1] == ("search", "fo")
        hit = SearchHit(conversation_id=3, title="Foxes", snippet="a fox \x1b[2J", matches=((2, 5),))
        side.show_hits([hit])
        await pilot.press("enter")
        await pilot.pause()
        assert app.heard[-1] == ("open", 3)
        assert "a fox ␛[2J" in screen_text(app)

    browse(story)


def test_a_search_that_finds_nothing_says_so():
    async def story(app, side, pilot):
        side.show_hits([])
        await pilot.pause()
        assert "nothing found" in screen_text(app)

    browse(story)


def test_a_hostile_title_is_text():
    async def story(app, side, pilot):
        side.show_conversations([conversation(title="\x1b]0;x\x07[b]Foxes[/b]")], open_id=None)
        await pilot.pause()
        assert "[b]Foxes[/b]" in screen_text(app)

    browse(story)


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "now"), (59, "now"), (300, "5 min"), (7200, "2 h"), (864000, "10 d"), (1e7, "3 mo")]
)
def test_ages(seconds, words):
    assert age_words(seconds) == words


WAYS = [Completion(f"/{name}", f"/{name}", "words") for name in ("a", "b", "c")]


class DeskScreen(Screen):
    def compose(self):
        yield CompletionList()

    def action_begin(self, text):
        self.app.taken.append(text)


class Desk(App):
    CSS_PATH = STYLES

    def __init__(self):
        super().__init__()
        self.taken = []

    def get_default_screen(self):
        return DeskScreen()


def look(story):
    async def run():
        app = Desk()
        async with app.run_test(size=(40, 12)) as pilot:
            await story(app, app.screen.query_one(CompletionList), pilot)

    asyncio.run(run())


def test_choosing_goes_around():
    async def story(app, completions, pilot):
        assert completions.chosen is None
        completions.show(WAYS)
        assert completions.chosen == WAYS[0]
        completions.action_cursor_up()
        assert completions.chosen == WAYS[2]
        completions.action_cursor_down()
        assert completions.chosen == WAYS[0]
        completions.show(())
        assert completions.chosen is None
        assert not completions.display

    look(story)


def test_a_click_takes_one():
    async def story(app, completions, pilot):
        completions.show([WAYS[0], Completion("/b 'quoted' (\\)", "/b")])
        await pilot.pause()
        await pilot.click(completions, offset=(3, 1))
        await pilot.pause()
        assert app.taken == ["/b 'quoted' (\\)"]

    look(story)


def test_it_never_has_the_focus():
    assert not CompletionList().can_focus
