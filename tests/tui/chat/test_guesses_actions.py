"""Stories of guessed text: a key colours it, in answers that come, are over, are opened again or written on."""

from dataclasses import replace

import pytest

from runtime.events import PrefillProgress, TextDelta
from tests.support.chat_fakes import FIGURES, FINISHED, ROUND, of_answer, polite
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tui.chat.engine.messages import Answer
from tui.chat.store.guesses import guesses_of
from tui.chat.widgets.conversation import AnswerTurn
from tui.chat.widgets.guesses import GuessedAnswer, origin_style
from tui.chat.widgets.markdown import AnswerMarkdown

TEXTS = (TextDelta("**Hello** ", ((0, 5),)), TextDelta("there.", ((2, 6),)))
TOLD = replace(FINISHED, num_guessed_tokens=4)


def telling_guesses(request):
    """An engine that says what was guessed, as the real one does."""
    if not isinstance(request, Answer):
        return polite(request)
    assert request.prompt.wants_guesses
    events = [PrefillProgress(12, 12)]
    for piece in TEXTS:
        events += [ROUND, FIGURES, piece]
    return of_answer(request.answer_id, *events, TOLD)


def begun(request):
    """One that goes on writing."""
    reports = telling_guesses(request)
    return reports[:-1] if isinstance(request, Answer) else reports


def guessed_of(teller):
    """What is drawn as guessed in the last answer."""
    content = teller.chat.view.query(GuessedAnswer).last().content
    return "".join(
        content.plain[span.start : span.end]
        for span in content.spans
        if span.style == origin_style("guessed", has_colors=True)
    )


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
@pytest.mark.parametrize("way", ["f7", "/guesses"])
def test_a_key_colours_what_was_guessed_and_goes_back(tmp_path, way, size):
    async def story():
        async with telling(tmp_path, script=telling_guesses, size=size) as teller:
            await teller.ask("Hi?")
            await teller.until(lambda: "Hello there." in screen_text(teller.app))
            await teller.ask_for(way)
            await teller.until(lambda: "**Hello** there." in screen_text(teller.app))
            assert guessed_of(teller) == "**Helere."
            assert "guessed ahead 66 %" in screen_text(teller.app)
            legend = "guessed ahead and kept" if size[0] >= 80 else "guessed · its own · unknown (F7 back)"
            assert legend in screen_text(teller.app)
            await teller.ask_for(way)
            await teller.until(lambda: "**" not in screen_text(teller.app))
            assert "Hello there." in screen_text(teller.app) and "guessed" not in screen_text(teller.app)
            assert teller.contents == ["Hi?", "**Hello** there."]

    tell(story)


def test_an_answer_that_comes_is_coloured_as_it_comes(tmp_path):
    async def story():
        async with telling(tmp_path, script=begun) as teller:
            await teller.press("f7")
            await teller.ask("Hi?", is_awaited=False)
            await teller.until(lambda: "**Hello** there." in screen_text(teller.app))
            assert guessed_of(teller) == "**Helere."
            assert "guessed ahead 66" not in screen_text(teller.app)
            teller.engine.say(*of_answer(1, TOLD))
            await teller.until(lambda: "guessed ahead 66 %" in screen_text(teller.app))
            assert guessed_of(teller) == "**Helere."

    tell(story)


def test_it_is_kept_with_the_conversation_and_goes_on_where_an_answer_does(tmp_path):
    async def story():
        async with telling(tmp_path, script=telling_guesses) as teller:
            await teller.ask("Hi?")
            number = teller.dialogue.conversation_id
            await teller.press("ctrl+g")
            await teller.until(lambda: teller.contents == ["Hi?", "**Hello** there." * 2])
            await teller.until(lambda: not teller.dialogue.is_answering)
        async with telling(tmp_path, script=telling_guesses, conversation_id=number) as teller:
            await teller.press("f7")
            await teller.until(lambda: "**Hello** there.**Hello** there." in screen_text(teller.app))
            assert guessed_of(teller) == "**Helere." * 2

    tell(story)


def test_of_an_answer_of_before_nothing_is_claimed(tmp_path):
    """Nor of what a person wrote in place of an answer's beginning."""

    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("Hi?")
            await teller.press("f7")
            await teller.until(lambda: "not known of this answer" in screen_text(teller.app))
            assert guessed_of(teller) == "" and "Hello there." in screen_text(teller.app)
            teller.engine.script = telling_guesses
            await teller.press("ctrl+g")
            await teller.until(lambda: teller.contents == ["Hi?", "Hello there.**Hello** there."])
            await teller.until(lambda: guessed_of(teller) == "**Helere.")
            guesses = guesses_of(teller.dialogue.messages()[-1].statistics)
            assert guesses.start == len("Hello there.") and guesses.end == len(teller.contents[-1])

    tell(story)


def test_copying_is_of_the_answer_and_its_code_as_ever(tmp_path):
    def coding(request):
        code = TextDelta("```py\nx = 1\n```\n", ((0, 3),))
        is_answer = isinstance(request, Answer)
        return of_answer(request.answer_id, PrefillProgress(1, 1), ROUND, code, TOLD) if is_answer else polite(request)

    async def story():
        async with telling(tmp_path, script=coding) as teller:
            await teller.ask("Code?")
            await teller.press("f7")
            await teller.press("f9")
            assert teller.app.clipboard == "x = 1"
            await teller.press("f8")
            assert teller.app.clipboard == "```py\nx = 1\n```\n"
            turn = teller.chat.view.query(AnswerTurn).last()
            assert not turn.query_one(f"AnswerTurn > {AnswerMarkdown.__name__}").display

    tell(story)
