"""Stories of answers that think: folded while it comes, kept, opened by a key, limited by a command."""

from dataclasses import replace

import pytest

from runtime.config import UNLIMITED_THINKING
from runtime.events import PrefillProgress, ReasoningDelta, TextDelta
from tests.support.chat_fakes import FIGURES, FINISHED, LOADED, ROUND, of_answer, polite
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_rows, screen_text
from tui.chat.engine.messages import Answer, LoadModel
from tui.chat.widgets.thinking import ThinkingFold


def thinking(request):
    """An engine whose answers think."""
    if not isinstance(request, Answer):
        return polite(request)
    thoughts = (ReasoningDelta("They greet. "), ReasoningDelta("I greet."))
    texts = (TextDelta("Hello "), TextDelta("there."))
    events = [PrefillProgress(12, 12)]
    for piece in (*thoughts, *texts):
        events += [ROUND, FIGURES, piece]
    return of_answer(request.answer_id, *events, FINISHED)


def thinking_on(request):
    """One that has not said anything yet."""
    if not isinstance(request, Answer):
        return polite(request)
    return of_answer(request.answer_id, PrefillProgress(12, 12), ROUND, FIGURES, ReasoningDelta("They greet. "))


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_thinking_is_folded_and_the_key_opens_all_of_it(tmp_path, size):
    async def story():
        async with telling(tmp_path, script=thinking, size=size) as teller:
            await teller.ask("Hi?")
            await teller.until(lambda: "▸ thought, 6 tokens" in screen_text(teller.app))
            assert "They greet" not in screen_text(teller.app) and "Hello there." in screen_text(teller.app)
            await teller.press("ctrl+t")
            (fold,) = teller.chat.view.query(ThinkingFold)
            await teller.until(lambda: fold.is_open)
            if size[1] > 10:  # else it is above what is in sight
                await teller.until(lambda: "They greet. I greet." in screen_text(teller.app))
            await teller.ask("And you?")
            await teller.until(lambda: all(each.is_open for each in teller.chat.view.query(ThinkingFold)))
            await teller.command("/thoughts")
            await teller.until(lambda: "They greet" not in screen_text(teller.app))
            assert teller.contents == ["Hi?", "Hello there.", "And you?", "Hello there."]

    tell(story)


def test_without_any_thinking_the_key_says_so(tmp_path):
    """It said that thinking was shown."""

    async def story():
        async with telling(tmp_path) as teller:
            await teller.ask("Hi?")
            await teller.press("ctrl+t")
            await teller.hears("thinking will be shown; no answer here has any")
            await teller.press("ctrl+t")
            await teller.hears("thinking will be folded to a line; no answer here has any")

    tell(story)


def test_an_answer_that_thinks_says_so_while_it_does(tmp_path):
    async def story():
        async with telling(tmp_path, script=thinking_on, size=(80, 24)) as teller:
            await teller.ask("Hi?", is_awaited=False)
            await teller.until(lambda: "▸ thinking, 3 tokens, 0 s" in screen_text(teller.app))
            assert screen_rows(teller.app)[-2].split()[0] == "thinking"
            await teller.press("escape")
            teller.engine.say(*of_answer(1, replace(FINISHED, finish_reason="stopped")))
            await teller.until(lambda: not teller.dialogue.is_answering)
            await teller.until(lambda: "stopped, nothing came" in screen_text(teller.app))
            assert "▸ thought, 3 tokens" in screen_text(teller.app)

    tell(story)


def test_what_was_thought_is_kept_also_by_an_engine_that_ends(tmp_path):
    async def story():
        async with telling(tmp_path, script=thinking_on) as teller:
            await teller.ask("Hi?", is_awaited=False)
            await teller.until(lambda: teller.dialogue.messages()[-1].thinking is not None)
            teller.engine.die()
            await teller.until(lambda: not teller.dialogue.is_answering)
            kept = teller.dialogue.messages()[-1]
            assert (kept.state, kept.content) == ("failed", "")
            assert (kept.thinking.text, kept.thinking.num_tokens) == ("They greet. ", 3)

    tell(story)


def test_how_long_is_thought_is_chosen_and_shown(tmp_path):
    async def story():
        async with telling(tmp_path, script=thinking, size=(120, 24)) as teller:
            assert "think " not in screen_rows(teller.app)[-2]
            for typed, budget in (("500", 500), ("off", 0), ("on", UNLIMITED_THINKING)):
                await teller.command(f"/think {typed}")
                await teller.until(lambda word=typed: f"think {word}" in screen_rows(teller.app)[-2])
                await teller.ask("Hi?")
                assert teller.engine.requests[-1].prompt.params.thinking_budget == budget
                assert teller.engine.requests[-1].prompt.wants_parts
            await teller.command("/think auto")
            await teller.until(lambda: "think " not in screen_rows(teller.app)[-2])
            await teller.command("/think much")
            await teller.until(lambda: any("must be on, off, or the most tokens" in said for said in teller.said))

    tell(story)


def test_a_model_that_does_not_think_is_told_about(tmp_path):
    def script(request):
        return [replace(LOADED, can_think=False)] if isinstance(request, LoadModel) else polite(request)

    async def story():
        async with telling(tmp_path, script=script, size=(120, 24)) as teller:
            await teller.command("/think 500")
            await teller.until(lambda: any("tiny marks no thinking" in said for said in teller.said))
            assert "think 500" not in screen_rows(teller.app)[-2]

    tell(story)
