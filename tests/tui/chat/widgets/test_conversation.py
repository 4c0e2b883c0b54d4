"""The turns follow what arrives, until the reader scrolls up; bursts are drawn as a steady flow.

A turn shows who said what; an answer grows, and in the end shows exactly what was saved.
"""

import asyncio
import time
from dataclasses import replace

import pytest
from textual.app import App

from tests.support.conversation_factory import message
from tests.support.screen_text import STYLES, screen_text
from tests.support.widget_screens import until
from tui.chat.widgets.conversation import (
    LONGEST_REST_SECONDS,
    NUM_SHOWN_CHARACTERS,
    NUM_SHOWN_TURNS,
    REST,
    AnswerTurn,
    ConversationView,
    PromptTurn,
    turn_caption,
    turn_view,
)
from tui.chat.widgets.welcome import Greeting


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


def turns(num_turns, *, num_left_out=0):
    roles = ["assistant" if index % 2 else "user" for index in range(num_turns)]
    return [
        message(role, f"turn {index}", id=index + 1, is_left_out=index < num_left_out)
        for index, role in enumerate(roles)
    ]


STREAMING = message("assistant", "", id=99, state="streaming")


def test_an_empty_conversation_says_how_to_begin():
    async def story(app, view, pilot):
        await view.show([])
        await pilot.pause()
        assert "Ask something below" in screen_text(app)
        await view.add(message(content="Hello"))
        await pilot.pause()
        assert "Ask something below" not in screen_text(app)

    watch(story)


def test_what_a_user_should_know_of_the_model_is_said_while_nothing_else_is():
    async def story(app, view, pilot):
        await view.show([])
        view.greet(Greeting("tiny is ready.", notes=("It streams \x1b[31mfrom disk.",)))
        await until(pilot, lambda: "It streams from disk." in screen_text(app))
        await view.show(turns(2))
        await until(pilot, lambda: "It streams" not in screen_text(app))
        await view.show([])
        await until(pilot, lambda: "It streams from disk." in screen_text(app))

    watch(story, size=(60, 22))


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
        await view.show_start()
        await until(pilot, lambda: len(view.query(".turn")) == NUM_SHOWN_TURNS + 10)
        await until(pilot, lambda: "turn 0" in screen_text(app))
        view.show_end()
        await until(pilot, lambda: f"turn {NUM_SHOWN_TURNS + 9}" in screen_text(app))

    watch(story)


def test_a_long_answer_above_is_drawn_when_the_reader_scrolls_there():
    """To open a conversation of 40 long answers took 9 s."""

    async def story(app, view, pilot):
        long = "word " * NUM_SHOWN_CHARACTERS
        await view.show([message("user" if number % 2 else "assistant", long, id=number) for number in range(6)])
        await pilot.pause()
        assert [turn.message.id for turn in view.query(".turn")] == [4, 5]
        assert "4 earlier turns" in "".join(str(each.render()) for each in view.query(".earlier-turns"))
        view.scroll_home(animate=False)
        await until(pilot, lambda: [turn.message.id for turn in view.query(".turn")] == [2, 3, 4, 5])
        await until(pilot, lambda: view.scroll_y > 0, "staying at what was read")

    watch(story)


def test_turns_are_left_out_where_they_are_drawn_later_too():
    async def story(app, view, pilot):
        await view.show(turns(NUM_SHOWN_TURNS + 4, num_left_out=2))
        await view.show_start()
        await pilot.pause()
        assert [turn.message.id for turn in view.query(".-left-out")] == [1, 2]

    watch(story)


def test_after_a_slow_drawing_the_next_one_waits():
    """On a machine that is busy with the model, keys come first."""

    async def story(app, view, pilot):
        await view.show([message(), STREAMING])
        begun = time.perf_counter()
        view._rest(begun - 0.1)
        ended = time.perf_counter()
        assert begun + REST * 0.1 <= view._rests_until <= ended + REST * (ended - begun + 0.1)
        view._rest(begun - 100)
        assert view._rests_until - time.perf_counter() <= LONGEST_REST_SECONDS

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
        view.show_end()
        await pilot.pause()
        assert "and more" in screen_text(app)

    watch(story)


def test_left_out_turns_are_marked():
    async def story(app, view, pilot):
        await view.show(turns(4, num_left_out=2))
        assert [turn.has_class("-left-out") for turn in view.query(".turn")] == [True, True, False, False]

    watch(story)


def test_text_for_an_answer_that_is_not_shown_is_left_to_the_store():
    async def story(app, view, pilot):
        await view.show(turns(2))
        view.append("lost?")
        await pilot.pause()
        assert "lost?" not in screen_text(app)

    watch(story)


class Wall(App):
    CSS_PATH = STYLES

    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def compose(self):
        yield self.turn


def hang(turn, story):
    async def run():
        app = Wall(turn)
        async with app.run_test(size=(60, 12)) as pilot:
            await pilot.pause()
            await story(app, pilot)

    asyncio.run(run())


def test_a_prompt_is_shown_as_it_was_typed():
    async def story(app, pilot):
        shown = screen_text(app)
        assert "*not* [b]markup[/b] ␛[2J" in shown

    hang(turn_view(message(content="*not* [b]markup[/b] \x1b[2J")), story)


def test_an_answer_grows_and_ends():
    turn = turn_view(message("assistant", "", state="streaming"))

    async def story(app, pilot):
        assert isinstance(turn, AnswerTurn)
        assert turn.has_class("-streaming")
        turn.write("Hello ")
        turn.write("**there**.")
        turn.end(message("assistant", "Hello **there**.", state="stopped"))
        await pilot.pause()
        assert "Hello there." in screen_text(app)
        assert "stopped" in screen_text(app)
        assert not turn.has_class("-streaming")

    hang(turn, story)


@pytest.mark.parametrize("saved", ["Hello there. And more.", "Other"])
def test_what_was_saved_is_what_is_shown(saved):
    """Text that was dropped on the way to the screen is there when the answer ends."""
    turn = turn_view(message("assistant", "", state="streaming"))

    async def story(app, pilot):
        turn.write("Hello ")
        turn.end(message("assistant", saved))
        await pilot.pause()
        assert turn.shown_text == saved
        assert saved.split()[-1] in screen_text(app)

    hang(turn, story)


def test_a_failed_answer_is_marked():
    turn = turn_view(message("assistant", "", state="failed", statistics={"error": "no room"}))

    async def story(app, pilot):
        assert turn.has_class("-failed")
        assert "no answer: no room" in screen_text(app)

    hang(turn, story)


def test_a_message_gets_the_widget_of_its_role():
    assert isinstance(turn_view(message()), PromptTurn)
    assert isinstance(turn_view(message("assistant")), AnswerTurn)


def test_an_answer_that_is_written_on_forgets_how_it_ended_before():
    turn = turn_view(message("assistant", "Hello", state="streaming", statistics={"error": "the engine was killed"}))

    async def story(app, pilot):
        assert isinstance(turn, AnswerTurn)
        assert "failed" not in screen_text(app)
        assert turn.has_class("-streaming") and not turn.has_class("-failed")
        turn.write(" there")
        turn.end(message("assistant", "Hello there", state="complete"))
        await pilot.pause()
        assert "Hello there" in screen_text(app)

    hang(turn, story)


def answer(content, *, state="complete", **statistics):
    return message("assistant", content, state=state, statistics=statistics)


def test_a_complete_answer_shows_its_figures():
    measured = {"num_new_tokens": 30, "num_rounds": 10, "seconds_per_token": 0.2, "prefill_seconds": 1.25}
    ended = answer("text", finish_reason="stop", **measured)
    assert turn_caption(ended) == "30 tokens · 5 tok/s · 3.0 tokens per pass · first after 1.2 s"


def test_what_the_first_token_was_expected_to_take_stands_beside_what_it_took():
    ended = answer("text", finish_reason="stop", prefill_seconds=8.31, expected_prefill_seconds=7.9)
    assert turn_caption(ended) == "first after 8.3 s (expected 7.9)"


def test_one_token_is_one_token():
    assert turn_caption(answer("a", finish_reason="length", num_new_tokens=1)) == "cut at 1 token, Ctrl+G goes on"


def test_an_answer_that_only_thought_says_what_can_be_done():
    thought = {"thinking": {"text": "Hm."}}
    cut = answer("", finish_reason="length", num_new_tokens=1000, **thought)
    assert turn_caption(cut) == "cut while thinking, at 1,000 tokens; /think 500, then /regenerate"
    assert turn_caption(answer("", finish_reason="stop", **thought)) == "nothing was said after the thinking"
    assert "Ctrl+G" in turn_caption(answer("So", finish_reason="length", num_new_tokens=1000, **thought))


def test_an_answer_without_a_word_says_so_unless_it_calls_a_tool():
    ended = {"finish_reason": "stop", "num_new_tokens": 1}
    assert turn_caption(answer("", **ended)) == "an empty answer · 1 token"
    call = {"call": {"id": "a", "name": "stock", "arguments": "{}"}}
    assert turn_caption(answer("", **ended, **call)) == "1 token"


def test_a_stopped_answer_says_so():
    assert turn_caption(answer("text", state="stopped", finish_reason="stopped")) == "stopped"
    assert turn_caption(answer("", state="stopped")) == "stopped, nothing came"


def test_a_full_context_is_not_called_a_stop():
    assert turn_caption(answer("text", state="stopped", finish_reason="context")) == "cut: the context is full"


def test_a_failure_says_why_without_executing_it():
    ended = answer("", state="failed", error="no room for \x1b[31mtiny\n")
    assert turn_caption(ended) == "no answer: no room for tiny"


def test_a_failure_that_a_notice_tells_is_told_once():
    ended = answer("", state="failed", error="the prompt has 5000 tokens", kind="context")
    assert turn_caption(ended, is_told=True) == "no answer: the context is full"
    assert turn_caption(answer("Half", state="failed", error="gone", kind="fault"), is_told=True) == "broken off"


def test_what_was_cut_says_how_it_goes_on():
    cut = answer("text", finish_reason="length", num_new_tokens=400, num_rounds=100)
    assert turn_caption(cut) == "cut at 400 tokens, Ctrl+G goes on · 4.0 tokens per pass"


CUT = {"finish_reason": "length", "num_new_tokens": 400, "num_rounds": 100, "seconds_per_token": 0.2}


def test_a_caption_has_one_row_and_a_failure_as_many_as_it_needs():
    cut = turn_view(message("assistant", "x", statistics=CUT))

    async def story(app, pilot):
        assert cut.query_one(".turn-caption").size.height == 1
        assert "cut at 400 tokens, Ctrl+G goes on" in screen_text(app)

    hang(cut, story)
    failed = turn_view(message("assistant", "x", state="failed", statistics={"error": "no room " * 30}))

    async def failed_story(app, pilot):
        assert failed.query_one(".turn-caption").size.height > 1

    hang(failed, failed_story)


def test_an_answer_that_streams_has_no_caption():
    assert turn_caption(answer("text", state="streaming")) == ""


def test_a_turn_that_is_not_drawn_yet_can_be_selected():
    async def story(app, view, pilot):
        said = [replace(each, id=number) for number, each in enumerate(turns(NUM_SHOWN_TURNS + 30), 1)]
        await view.show(said)
        await view.select(2)
        await until(pilot, lambda: "▸" in screen_text(app), "coming into sight")
        assert [turn.message.id for turn in view.query(".-selected")] == [2] and view.lowest_id_in_sight() < 12
        await view.select(70)
        await until(pilot, lambda: view.lowest_id_in_sight() == 70)
        assert [turn.message.id for turn in view.query(".-selected")] == [70] and "▸" in screen_text(app)
        view.deselect()
        assert view.selected_id == 0 and not view.query(".-selected")
        assert view.text_of(70) == said[-1].content and view.text_of(99) == ""

    watch(story)


def test_the_selection_outlives_another_drawing_but_not_its_turn():
    async def story(app, view, pilot):
        first, second = message(id=1), message("assistant", id=2)
        await view.show([first, second])
        await view.select(1)
        await view.show([first, replace(second, id=3)])
        await pilot.pause()
        assert [turn.message.id for turn in view.query(".-selected")] == [1]
        await view.show([second])
        assert view.selected_id == 0 and not view.query(".-selected")

    watch(story)
