"""Stories of the context: what it holds, what more costs, and another one in one step without losing a word."""

from dataclasses import replace

import pytest

from tests.support.chat_fakes import FINISHED, LOADED, endless, of_answer, polite
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tui.chat.engine.messages import Answer, ContextFull, LoadModel, LoadRefused
from tui.chat.settings.file import read_settings

LARGER = ((8192, 200_000_000), (16384, 600_000_000))


def held(context_tokens):
    return replace(LOADED, context_tokens=context_tokens, larger_contexts=LARGER)


def roomy(request):
    """An engine that loads whatever context it is asked for."""
    return [held(request.config.context_tokens or 4096)] if isinstance(request, LoadModel) else polite(request)


def loads(teller):
    return [each.config.context_tokens for each in teller.engine.requests if isinstance(each, LoadModel)]


def remembered(folder):
    return read_settings(folder / "settings.toml")[0].context_tokens


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_it_says_what_is_taken_and_a_choice_opens_the_next_larger_one(tmp_path, size):
    async def story():
        async with telling(tmp_path, script=roomy, size=size) as teller:
            await teller.ask("Hi?")
            await teller.command("/context")
            await teller.until(lambda: "this conversation takes 40 (1%)" in teller.chat.notice.sentence)
            assert "8,192 would take 200 MB more memory" in teller.chat.notice.sentence
            await teller.type("a draft")
            await teller.press("f6", "enter")
            await teller.until(lambda: loads(teller) == [None, 8192])
            await teller.until(lambda: remembered(tmp_path) == 8192)
            assert teller.chat.prompt.text == "a draft" and teller.contents == ["Hi?", "Hello there."]

    tell(story)


def test_a_number_opens_the_model_with_it_and_what_waits_comes_back(tmp_path):
    def slow(request):
        return endless(request) if isinstance(request, Answer) else roomy(request)

    async def story():
        async with telling(tmp_path, script=slow) as teller:
            await teller.ask("Hi?", is_awaited=False)
            await teller.type("And then?")
            await teller.press("enter")
            await teller.command("/context 16,384")
            await teller.until(lambda: loads(teller) == [None, 16384])
            await teller.until(lambda: remembered(tmp_path) == 16384)
            await teller.until(lambda: teller.chat.prompt.text == "And then?")
            teller.chat.prompt.put("")
            await teller.command("/context auto")
            await teller.until(lambda: loads(teller) == [None, 16384, None])
            await teller.until(lambda: remembered(tmp_path) == "auto")

    tell(story)


def test_what_does_not_fit_is_refused_before_anything_is_closed(tmp_path):
    async def story():
        async with telling(tmp_path, script=roomy) as teller:
            for typed, words in (
                ("/context 16385", "16,384 is the most that the model and the memory allow"),
                ("/context many", "context_tokens"),
                ("/context 1", "context"),
                ("/context 4096", "holds 4,096 tokens already"),
            ):
                teller.said.clear()
                await teller.command(typed)
                await teller.hears(words)
            assert loads(teller) == [None] and remembered(tmp_path) == "auto"

    tell(story)


def test_a_load_that_is_refused_leaves_the_context_that_was(tmp_path):
    def refusing(request):
        if isinstance(request, LoadModel) and request.config.context_tokens == 8192:
            return [LoadRefused("there is no room", "memory", held(4096))]
        return roomy(request)

    async def story():
        async with telling(tmp_path, script=refusing) as teller:
            await teller.command("/context 8192")
            await teller.until(lambda: "there is no room; tiny stays open" in teller.chat.notice.sentence)
            await teller.until(lambda: teller.chat.services.settings.config().context_tokens is None)
            assert remembered(tmp_path) == "auto"

    tell(story)


def test_a_full_context_offers_it_and_what_had_no_room_goes_on(tmp_path):
    def full(request):
        if isinstance(request, Answer) and request.answer_id == 1:
            room = ContextFull(4100, 4096, 16384, 8192, num_left_out=0, fits_alone=False)
            return of_answer(1, room, replace(FINISHED, finish_reason="context"))
        return roomy(request)

    async def story():
        async with telling(tmp_path, script=full) as teller:
            await teller.ask("Hi?")
            await teller.until(lambda: "/context 8192 makes room for all of it" in teller.chat.notice.sentence)
            await teller.command("/context 8192")
            await teller.until(lambda: teller.contents == ["Hi?", "Hello there."])
            assert loads(teller) == [None, 8192]

    tell(story)


def test_without_a_model_it_says_so(tmp_path):
    async def story():
        async with telling(tmp_path, script=lambda request: [], is_loaded=False) as teller:
            await teller.command("/context")
            await teller.hears("no model is open")
            assert "context" not in screen_text(teller.app).splitlines()[-2]

    tell(story)
