"""A turn shows who said what; an answer grows, and in the end shows exactly what was saved."""

import asyncio

import pytest
from textual.app import App

from tests.support.conversation_factory import message
from tests.support.screen_text import STYLES, screen_text
from tui.chat.widgets.markdown import AnswerMarkdown
from tui.chat.widgets.turn import AnswerTurn, PromptTurn, shown_text, turn_caption, turn_view


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
        await turn.write("Hello ")
        await turn.write("**there**.")
        await turn.end(message("assistant", "Hello **there**.", state="stopped"))
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
        await turn.write("Hello ")
        await turn.end(message("assistant", saved))
        await pilot.pause()
        assert turn.shown_text == saved
        assert saved.split()[-1] in screen_text(app)

    hang(turn, story)


def test_a_drawing_that_broke_is_done_again():
    turn = turn_view(message("assistant", "", state="streaming"))

    async def story(app, pilot):
        markdown = turn.query_one(AnswerMarkdown)
        append = markdown.append

        def fail(text):
            markdown.append = append
            raise UnboundLocalError("a row that is not there")

        markdown.append = fail
        await turn.write("Hello ")
        await pilot.pause()
        await turn.end(message("assistant", "Hello there."))
        await pilot.pause()
        assert "Hello there." in screen_text(app)

    hang(turn, story)


def test_a_failed_answer_is_marked():
    turn = turn_view(message("assistant", "", state="failed", statistics={"error": "no room"}))

    async def story(app, pilot):
        assert turn.has_class("-failed")
        assert "failed: no room" in screen_text(app)

    hang(turn, story)


def test_line_ends_of_all_kinds_are_one():
    assert shown_text("a\r\nb\u2028c\u2029d") == "a\nb\nc\nd"
    assert shown_text("over\rwrite") == "over␍write"


def test_a_message_gets_the_widget_of_its_role():
    assert isinstance(turn_view(message()), PromptTurn)
    assert isinstance(turn_view(message("assistant")), AnswerTurn)


def test_an_answer_that_is_written_on_forgets_how_it_ended_before():
    turn = turn_view(message("assistant", "Hello", state="failed", statistics={"error": "the engine was killed"}))

    async def story(app, pilot):
        assert isinstance(turn, AnswerTurn)
        assert "failed: the engine was killed" in screen_text(app)
        turn.resume()
        await pilot.pause()
        assert "failed" not in screen_text(app)
        assert turn.has_class("-streaming") and not turn.has_class("-failed")
        await turn.write(" there")
        await turn.end(message("assistant", "Hello there", state="complete"))
        await pilot.pause()
        assert "Hello there" in screen_text(app)

    hang(turn, story)


def answer(content, *, state="complete", **statistics):
    return message("assistant", content, state=state, statistics=statistics)


def test_a_complete_answer_shows_its_figures():
    measured = {"num_new_tokens": 30, "num_rounds": 10, "seconds_per_token": 0.2, "prefill_seconds": 1.25}
    ended = answer("text", finish_reason="stop", **measured)
    assert turn_caption(ended) == "30 tokens · 5 tok/s · 3.0 tokens a pass · first after 1.2 s"


def test_one_token_is_one_token():
    assert turn_caption(answer("a", finish_reason="length", num_new_tokens=1)) == "reached the most tokens · 1 token"


def test_a_stopped_answer_says_so():
    assert turn_caption(answer("text", state="stopped", finish_reason="stopped")) == "stopped"
    assert turn_caption(answer("", state="stopped")) == "stopped, nothing came"


def test_a_full_context_is_not_called_a_stop():
    assert turn_caption(answer("text", state="stopped", finish_reason="context")) == "the context is full"


def test_a_failure_says_why_without_executing_it():
    ended = answer("", state="failed", error="no room for \x1b[31mtiny\n")
    assert turn_caption(ended) == "failed: no room for tiny"


def test_an_answer_that_streams_has_no_caption():
    assert turn_caption(answer("text", state="streaming")) == ""
