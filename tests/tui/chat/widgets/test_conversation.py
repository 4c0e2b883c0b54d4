"""The turns follow what arrives, until the reader scrolls up; bursts are drawn as a steady flow."""

import asyncio

from textual.app import App

from tests.support.conversation_factory import message
from tests.support.screen_text import STYLES, screen_text
from tui.chat.widgets.conversation import NUM_SHOWN_TURNS, ConversationView


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Window(App):
    CSS_PATH = STYLES

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.view = ConversationView(clock=self.clock)

    def compose(self):
        yield self.view


def watch(story, *, size=(50, 12)):
    async def run():
        app = Window()
        async with app.run_test(size=size) as pilot:
            await story(app, app.view, pilot)

    asyncio.run(run())


async def until(pilot, condition):
    for _ in range(1000):
        if condition():
            return
        await pilot.pause(0.01)
    raise AssertionError("it did not happen")


def turns(num_turns):
    return [message("assistant" if index % 2 else "user", f"turn {index}", id=index + 1) for index in range(num_turns)]


STREAMING = message("assistant", "", id=99, state="streaming")


def test_an_empty_conversation_says_how_to_begin():
    async def story(app, view, pilot):
        await view.show([])
        await pilot.pause()
        assert "Enter" in screen_text(app)
        await view.add(message(content="Hello"))
        await pilot.pause()
        assert "Enter" not in screen_text(app)

    watch(story)


def test_what_a_user_should_know_of_the_model_is_said_while_nothing_else_is():
    async def story(app, view, pilot):
        await view.show([])
        view.show_notes(["It streams \x1b[31mfrom disk."])
        await until(pilot, lambda: "It streams from disk." in screen_text(app))
        await view.show(turns(2))
        await until(pilot, lambda: "It streams" not in screen_text(app))
        await view.show([])
        await until(pilot, lambda: "It streams from disk." in screen_text(app))

    watch(story, size=(60, 16))


def test_a_conversation_opens_at_its_end():
    async def story(app, view, pilot):
        await view.show(turns(20))
        await pilot.pause()
        assert "turn 19" in screen_text(app)
        assert "turn 0" not in screen_text(app)

    watch(story)


def test_a_long_conversation_draws_its_beginning_when_it_is_asked_for():
    async def story(app, view, pilot):
        await view.show(turns(NUM_SHOWN_TURNS + 10))
        await pilot.pause()
        assert len(view.query(".turn")) == NUM_SHOWN_TURNS
        view.focus()
        await pilot.press("home")
        await until(pilot, lambda: len(view.query(".turn")) == NUM_SHOWN_TURNS + 10)
        await pilot.pause()
        assert "turn 0" in screen_text(app)
        await pilot.press("end")
        await pilot.pause()
        assert f"turn {NUM_SHOWN_TURNS + 9}" in screen_text(app)

    watch(story)


def test_a_second_burst_is_spread_over_the_time_between():
    async def story(app, view, pilot):
        await view.show([message(), STREAMING])
        view.append("a" * 20)
        await until(pilot, lambda: view.newest_answer_text() == "a" * 20)
        app.clock.now += 1.0
        view.append("b" * 20)
        await pilot.pause(0.1)
        assert view.newest_answer_text().count("b") <= 1
        app.clock.now += 0.45
        await until(pilot, lambda: view.newest_answer_text().count("b") in (10, 11))
        app.clock.now += 1.0
        await until(pilot, lambda: view.newest_answer_text().count("b") == 20)

    watch(story)


def test_the_end_of_an_answer_draws_what_waits():
    async def story(app, view, pilot):
        await view.show([message(), STREAMING])
        view.append("a" * 20)
        await until(pilot, lambda: view.newest_answer_text() == "a" * 20)
        app.clock.now += 1.0
        view.append("b" * 20)
        await view.end(message("assistant", "a" * 20 + "b" * 20, id=99))
        assert view.newest_answer_text() == "a" * 20 + "b" * 20
        assert not view.query(".-streaming")

    watch(story)


def test_it_follows_until_the_reader_scrolls_up_and_again_at_the_end():
    async def story(app, view, pilot):
        await view.show([*turns(10), STREAMING])
        await pilot.pause()
        view.append("\n\n".join(f"line {index}" for index in range(10)))
        await until(pilot, lambda: "line 9" in screen_text(app))
        view.scroll_up(animate=False)
        view.scroll_up(animate=False)
        await pilot.pause()
        before = view.scroll_y
        app.clock.now += 10
        view.append("\n\nmore\n\nand more")
        app.clock.now += 10
        await until(pilot, lambda: "and more" in view.newest_answer_text())
        await pilot.pause()
        assert view.scroll_y == before
        view.action_show_end()
        await pilot.pause()
        assert "and more" in screen_text(app)

    watch(story)


def test_left_out_turns_are_marked():
    async def story(app, view, pilot):
        await view.show(turns(4), first_kept_id=3)
        assert [turn.has_class("-left-out") for turn in view.query(".turn")] == [True, True, False, False]

    watch(story)


def test_text_for_an_answer_that_is_not_shown_is_left_to_the_store():
    async def story(app, view, pilot):
        await view.show(turns(2))
        view.append("lost?")
        await pilot.pause()
        assert "lost?" not in screen_text(app)

    watch(story)
