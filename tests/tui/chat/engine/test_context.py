"""What makes room in a full context, against trying every number of turns."""

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from profiles.errors import BadInputError
from runtime.events import AnswerParts
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.chat_fakes import FINISHED, LOADED
from tui.chat.engine import context
from tui.chat.engine.context import (
    check_context,
    context_full,
    context_report,
    context_words,
    larger_contexts,
    room_for,
)


def test_thinking_is_counted_as_the_template_takes_it(monkeypatch):
    """Left out of turns that are over; of one that said nothing yet all of it is counted."""
    monkeypatch.setattr(context, "largest_context", lambda opened: 400)

    def format_prompt(request):
        last = request.messages[-1]
        thought = (last.reasoning_content or "").split() if request.is_continued else []
        return [*thought, *(word for each in request.messages for word in each.content.split())]

    session = SimpleNamespace(engine=SimpleNamespace(context_tokens=100), format_prompt=format_prompt)
    asked = PromptRequest(id="1", messages=tuple(conversation([10, 10, 10])), wants_parts=True)
    for parts, text, num_tokens in (
        (AnswerParts("said " * 5, "hm " * 40), "unused", 75),
        (AnswerParts("said " * 5), "unused", 35),
        (AnswerParts("", "hm " * 40), "<think> " + "hm " * 40, 71),
    ):
        finished = replace(FINISHED, text=text, parts=parts)
        assert context_full(SimpleNamespace(session=session), asked, finished).num_tokens == num_tokens


def conversation(sizes, *, system=0):
    """Messages of so many words, prompts and answers in turn."""
    roles = ["user", "assistant"] * len(sizes)
    turns = [Message(role, "word " * size) for role, size in zip(roles, sizes, strict=False)]
    return [Message("system", "word " * system), *turns] if system else turns


def count(messages):
    """A token a word, and four for each turn."""
    return sum(len(message.content.split()) + 4 for message in messages)


def room(sizes, *, system=0, wanted=64, context=100, largest=400):
    return room_for(
        conversation(sizes, system=system),
        count,
        num_wanted_tokens=wanted,
        context_tokens=context,
        largest_context_tokens=largest,
    )


def test_as_few_turns_as_possible_are_left_out():
    for seed in range(200):
        choose = random.Random(seed)
        sizes = [choose.randrange(1, 40) for _ in range(choose.randrange(1, 10) * 2 - 1)]
        full = room(sizes, system=choose.choice((0, 5)))
        messages = conversation(sizes)
        system = [Message("system", "word " * 5)] if full.num_tokens > count(messages) else []
        starts = range(0, len(sizes), 2)
        fitting = [start for start in starts[1:] if count([*system, *messages[start:]]) + 25 <= 100]
        alone = count([*system, *messages[starts[-1] :]]) + 16 <= 100
        expected = fitting[0] if fitting else starts[-1] if alone else 0
        assert (full.num_left_out, full.fits_alone) == (expected, alone), seed


def test_a_larger_context_is_a_power_of_two_or_the_largest():
    assert room([150]).wanted_context_tokens == 256
    assert room([300]).wanted_context_tokens == 400
    assert room([399]).wanted_context_tokens > 400


def test_what_is_said_can_be_typed():
    assert "/context 256 makes room" in context_words(room([150]))
    assert context_words(room([20, 400, 20])).endswith("and 400 is the most that the model and the memory allow")
    assert "/edit takes the last prompt back" in context_words(room([450]))


def test_a_raw_text_is_counted_as_it_is(monkeypatch):
    """It has no turns that could be left out, and once ended the answer with an IndexError."""
    monkeypatch.setattr(context, "largest_context", lambda opened: 400)
    session = SimpleNamespace(
        engine=SimpleNamespace(context_tokens=100), format_prompt=lambda request: request.prompt.split()
    )
    more = replace(FINISHED, text="more")
    full = context_full(SimpleNamespace(session=session), PromptRequest(id="1", prompt="word " * 150), more)
    assert (full.num_tokens, full.num_left_out, full.wanted_context_tokens) == (151, 0, 256)


@dataclass(frozen=True)
class Need:
    """A token of context takes three bytes, whatever else there is a hundred."""

    context_tokens: int

    @property
    def fixed_bytes(self):
        return 100 + 3 * self.context_tokens


@pytest.mark.parametrize(
    ("held", "most", "expected"),
    [
        (100, 100, ()),
        (100, 127, ((127, 81),)),
        (100, 128, ((128, 84),)),
        (128, 700, ((256, 384), (512, 1152), (700, 1716))),
        (1, 4, ((2, 3), (4, 9))),
    ],
)
def test_larger_contexts_end_with_the_largest_and_say_what_each_takes_more(monkeypatch, held, most, expected):
    monkeypatch.setattr(context, "largest_context", lambda opened: most)
    session = SimpleNamespace(engine=SimpleNamespace(context_tokens=held))
    assert larger_contexts(SimpleNamespace(session=session, plan=SimpleNamespace(need=Need(held)))) == expected


LARGER = replace(LOADED, larger_contexts=((8192, 200_000_000), (16384, 600_000_000), (20000, 800_000_000)))


def test_the_report_says_what_is_taken_and_what_more_costs():
    assert context_report(LARGER, 1024) == (
        "the context holds 4,096 tokens, prompt and answer together, of which this conversation takes 1,024 (25%); "
        "8,192 would take 200 MB more memory, and 20,000, the most that fits, 800 MB; "
        "/context 8192 opens the model with 8,192"
    )
    only = context_report(replace(LARGER, larger_contexts=((8192, 2_000_000),)), None)
    assert "together; 8,192, the most that fits, would take 2.00 MB more memory; /context 8192 opens" in only
    alone = context_report(LOADED, None)
    assert alone.endswith("together; it is the largest that the model and the memory allow")


def test_a_context_that_does_not_fit_is_refused_with_the_most_that_does():
    for fitting in (1, 4096, 20_000):
        check_context(LARGER, fitting)
    with pytest.raises(BadInputError, match=r"20,000 is the most that the model and the memory allow: /context 20000$"):
        check_context(LARGER, 20_001)
    with pytest.raises(BadInputError, match=r"4,096 is the most that the model and the memory allow, and it is open$"):
        check_context(LOADED, 4097)
