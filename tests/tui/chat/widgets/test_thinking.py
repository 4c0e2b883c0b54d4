"""What an answer thought is one line that counts along, opened by a click or a key and shown as it was written."""

import asyncio

import pytest
from textual.app import App

from tests.support.screen_text import STYLES, places_of, screen_rows, screen_text
from tests.support.widget_screens import until
from tui.chat.store.records import Thinking
from tui.chat.widgets.thinking import ThinkingFold, thinking_words

THOUGHT = Thinking(text="They greet.\n\nI greet.", num_tokens=312, seconds=40.2)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Window(App):
    CSS_PATH = STYLES
    AUTO_FOCUS = None

    def __init__(self, fold):
        super().__init__()
        self.fold = fold

    def compose(self):
        yield self.fold


def watch(story, fold, *, size=(40, 10)):
    async def run():
        app = Window(fold)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await story(app, pilot)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("thinking", "seconds", "is_over", "words"),
    [
        (THOUGHT, 40.2, False, "thinking, 312 tokens, 40 s"),
        (THOUGHT, 40.2, True, "thought, 312 tokens, 40 s"),
        (Thinking(text="a", num_tokens=1), 0.2, True, "thought, 1 token"),
        (Thinking(text="a"), 0.2, False, "thinking, 0 s"),
        (Thinking(text="a", num_tokens=1234), 605, True, "thought, 1,234 tokens, 10:05 min"),
    ],
)
def test_how_much_was_thought(thinking, seconds, is_over, words):
    assert thinking_words(thinking, seconds=seconds, is_over=is_over) == words


def test_it_is_a_line_until_it_is_opened():
    async def story(app, pilot):
        assert screen_rows(app)[0] == "▸ thought, 312 tokens, 40 s"
        assert "greet" not in screen_text(app)
        await pilot.click(offset=places_of(app, "thought")[0])
        await pilot.pause()
        assert screen_rows(app)[:4] == ["▾ thought, 312 tokens, 40 s", "  They greet.", "", "  I greet."]
        assert app.focused is None, "a click leaves the focus where it is"
        app.fold.focus()
        await pilot.press("enter")
        assert "greet" not in screen_text(app)
        await pilot.press("space")
        assert screen_text(app).count("I greet.") == 1

    watch(story, ThinkingFold(THOUGHT))


def test_nothing_thought_takes_no_room():
    async def story(app, pilot):
        assert not app.fold.display
        app.fold.open(True)
        app.fold.end()
        await pilot.pause()
        assert screen_text(app).strip() == ""

    watch(story, ThinkingFold())


def test_it_counts_while_more_is_thought(monkeypatch):
    monkeypatch.setattr("tui.chat.widgets.thinking.TICK_SECONDS", 0.01)
    clock = Clock()

    async def story(app, pilot):
        app.fold.grow(Thinking(text="They ", num_tokens=3, seconds=2.0))
        await until(pilot, lambda: "▸ thinking, 3 tokens, 2 s" in screen_text(app))
        clock.now += 7  # and a pass takes its time
        await until(pilot, lambda: "▸ thinking, 3 tokens, 9 s" in screen_text(app))
        app.fold.open(True)
        app.fold.grow(Thinking(text="They greet.", num_tokens=5, seconds=9.5))
        await until(pilot, lambda: "They greet." in screen_text(app))
        app.fold.end()
        clock.now += 50
        await until(pilot, lambda: "▾ thought, 5 tokens, 9 s" in screen_text(app))
        app.fold.end(Thinking(text="They greet.\x1b[2J", num_tokens=6, seconds=10))
        await until(pilot, lambda: "▾ thought, 6 tokens, 10 s" in screen_text(app))
        assert "They greet.␛[2J" in screen_text(app)

    watch(story, ThinkingFold(clock=clock))


def test_what_came_before_it_is_on_the_screen_is_not_lost():
    async def story(app, pilot):
        await until(pilot, lambda: "thinking, 2 tokens" in screen_text(app))

    fold = ThinkingFold()
    fold.grow(Thinking(text="Hm", num_tokens=2))
    watch(story, fold)
