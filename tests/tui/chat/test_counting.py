"""Stories of tokens that are counted before a prompt is sent: at the prompt, at attachments, against the context."""

from dataclasses import replace

import pytest

from tests.support.chat_fakes import LOADED, endless, polite
from tests.support.chat_stories import tell, telling
from tests.support.screen_text import screen_text
from tui.chat.counting import count_words
from tui.chat.engine.messages import Answer, CountTokens, LoadModel, TokensCounted

SMALL = replace(LOADED, context_tokens=100, larger_contexts=((128, 10), (256, 20)))


def counting(request):
    """An engine whose tokens are words, and whose context has 100."""
    match request:
        case LoadModel():
            return [SMALL]
        case CountTokens(count_id=count_id, texts=texts, prompt=prompt):
            num_prompt = None if prompt is None else sum(len(each.content.split()) for each in prompt.messages)
            return [TokensCounted(count_id, tuple(len(text.split()) for text in texts), num_prompt)]
        case _:
            return polite(request)


def counting_on(request):
    """One that does not end its answers."""
    return endless(request) if isinstance(request, Answer) else counting(request)


@pytest.mark.parametrize(
    ("num_tokens", "total", "words"),
    [
        (1, None, "1 token"),
        (1200, None, "1,200 tokens"),
        (12, 75, "12 tokens"),
        (12, 76, "12 tokens, leaves 24 for the answer"),
        (12, 99, "12 tokens, leaves 1 for the answer"),
        (12, 100, "too long: 100 of 100 tokens; /context 128 has room"),
        (12, 128, "too long: 128 of 100 tokens; /context 256 has room"),
        (12, 256, "too long: 256 of 100 tokens"),
    ],
)
def test_what_is_said(num_tokens, total, words):
    assert count_words(num_tokens, total, SMALL) == words


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_the_count_stands_at_the_prompt_and_goes_with_it(tmp_path, size):
    async def story():
        async with telling(tmp_path, script=counting, size=size) as teller:
            await teller.type("one two three")
            await teller.until(lambda: "3 tokens" in screen_text(teller.app))
            await teller.type(" four")
            await teller.until(lambda: "4 tokens" in screen_text(teller.app))
            await teller.press("enter")
            await teller.until(lambda: teller.contents == ["one two three four", "Hello there."])
            await teller.until(lambda: not teller.chat.prompt.border_subtitle)
            await teller.type("/help")
            await teller.until(lambda: teller.chat.counter._waiting is None)
            assert not teller.chat.prompt.border_subtitle

    tell(story)


@pytest.mark.parametrize("size", [(40, 10), (80, 24)])
def test_what_has_no_room_is_said_before_it_is_sent(tmp_path, size):
    async def story():
        async with telling(tmp_path, script=counting, size=size) as teller:
            await teller.ask("word " * 70)
            await teller.type("word " * 20)
            await teller.until(lambda: "20 tokens, leaves 8 for" in screen_text(teller.app))  # the answer has two
            assert not teller.chat.prompt.has_class("-too-long")
            await teller.type("word " * 8)
            await teller.until(lambda: "too long: 100 of 100 tokens" in screen_text(teller.app))
            assert teller.chat.prompt.has_class("-too-long")
            teller.chat.prompt.put("shorter")
            await teller.until(lambda: not teller.chat.prompt.has_class("-too-long"))

    tell(story)


def test_attachments_are_counted_once_each(tmp_path):
    (tmp_path / "notes.txt").write_text("one two three\n")

    async def story():
        async with telling(tmp_path, script=counting) as teller:
            await teller.command(f"/attach {tmp_path / 'notes.txt'}")
            await teller.until(lambda: "+ 3 tokens ·" in screen_text(teller.app))
            await teller.type("What is in it?")
            await teller.until(lambda: "What is in it?" in teller.engine.counts[-1].texts[0])
            assert len(teller.engine.counts[-1].texts) == 1
            assert "+ 3 tokens ·" in screen_text(teller.app)

    tell(story)


def test_while_an_answer_is_written_its_conversation_is_counted_as_it_stands(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting_on) as teller:
            await teller.ask("Hi?", is_awaited=False)
            await teller.until(lambda: teller.dialogue.num_context_tokens == 40)
            await teller.type("word " * 45)
            await teller.until(lambda: "45 tokens, leaves 15 for the answer" in screen_text(teller.app))
            assert teller.engine.counts[-1].prompt is None

    tell(story)


def test_a_conversation_that_is_opened_is_counted_for_those_who_ask(tmp_path):
    async def story():
        async with telling(tmp_path, script=counting) as teller:
            await teller.ask("word " * 48)
            number = teller.dialogue.conversation_id
        async with telling(tmp_path, script=counting, conversation_id=number) as teller:
            await teller.until(lambda: teller.chat.counter.num_conversation_tokens == 50)
            await teller.command("/context")
            await teller.until(lambda: "this conversation takes 50 (50%)" in teller.chat.notice.sentence)
            await teller.press("ctrl+n")
            assert teller.chat.counter.num_conversation_tokens is None

    tell(story)


def test_a_count_that_comes_late_is_not_taken_for_that_of_another_conversation(tmp_path):
    def silent(request):
        return [] if isinstance(request, CountTokens) else counting(request)

    async def story():
        async with telling(tmp_path, script=silent) as teller:
            await teller.ask("one")
            first = teller.dialogue.conversation_id
            await teller.press("ctrl+n")
            await teller.ask("two")
            await teller.until(lambda: [each.texts for each in teller.engine.counts[-1:]] == [()])
            asked = teller.engine.counts[-1]
            teller.dialogue.open(first)
            teller.chat.counter.take(TokensCounted(asked.count_id, (), 77))
            assert teller.chat.counter.num_conversation_tokens != 77
            await teller.press("ctrl+n")

    tell(story)


def test_the_share_of_the_context_is_that_of_the_open_conversation(tmp_path):
    """It was that of the conversation that was answered last, whichever was open."""

    async def story():
        async with telling(tmp_path, script=counting, size=(120, 24)) as teller:
            first = await teller.ask("one " * 40) or teller.dialogue.conversation_id
            await teller.press("ctrl+n")
            await teller.until(lambda: "context 0%" in screen_text(teller.app))
            await teller.ask("short")
            await teller.chat.screen.action_open_conversation(first)
            await teller.until(lambda: "context 42%" in screen_text(teller.app))

    tell(story)


def test_a_tokenizer_that_refuses_leaves_no_figure(tmp_path):
    def refusing(request):
        return [TokensCounted(request.count_id, None)] if isinstance(request, CountTokens) else counting(request)

    async def story():
        async with telling(tmp_path, script=refusing) as teller:
            await teller.type("one two")
            await teller.until(lambda: len(teller.engine.counts) > 0)
            await teller.ask(" three")
            assert teller.contents == ["one two three", "Hello there."]
            assert not teller.chat.prompt.border_subtitle

    tell(story)
