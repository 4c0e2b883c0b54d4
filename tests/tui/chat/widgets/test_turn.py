"""A turn shows who said what; an answer grows, and in the end shows exactly what was saved."""

import asyncio

import pytest
from textual.app import App

from tests.support.conversation_factory import message
from tests.support.screen_text import STYLES, screen_text
from tui.chat.widgets.markdown import AnswerMarkdown
from tui.chat.widgets.turn import AnswerTurn, PromptTurn, shown_text, turn_view


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
