"""Counts come from a thread of their own, the last one wanted first, and a tokenizer that refuses costs nothing."""

import queue
import threading

import pytest

from runtime.errors import OptionError
from runtime.prompts.prompt_file import Message, PromptRequest
from tui.chat.engine.counting import TokenCounter, count_tokens
from tui.chat.engine.messages import CountTokens, TokensCounted

PATIENCE_SECONDS = 60


class Words:
    """A tokenizer: a word is a token, a turn begins with one more."""

    thinking_marks = None

    def __init__(self):
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_asked = threading.Event()

    def encode(self, text):
        self.is_asked.set()
        assert self.may_go_on.wait(PATIENCE_SECONDS)
        if "\ud800" in text:
            raise OptionError("half a character")
        return text.split()

    def encode_conversation(self, request):
        return [word for turn in request.messages for word in (turn.role, *turn.content.split())]


PROMPT = PromptRequest(id="", messages=(Message("user", "one two"), Message("assistant", "three")))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (CountTokens(1, ("a b", "", "c")), TokensCounted(1, (2, 0, 1))),
        (CountTokens(2, (), PROMPT), TokensCounted(2, (), 5)),
        (CountTokens(3, ("a \ud800", "b"), PROMPT), TokensCounted(3, None)),
    ],
)
def test_what_is_counted(request_, expected):
    assert count_tokens(Words(), request_) == expected


def test_the_last_one_wanted_is_counted_and_nobody_waits():
    said = queue.SimpleQueue()
    counter, words = TokenCounter(said.put), Words()
    counter.tokenizer = words
    words.may_go_on.clear()
    counter.want(CountTokens(2, ("a",)))
    assert words.is_asked.wait(PATIENCE_SECONDS)
    for number in (3, 4):
        counter.want(CountTokens(number, ("b " * number,)))
    words.may_go_on.set()
    found = [said.get(timeout=PATIENCE_SECONDS) for _ in range(2)]
    assert found == [TokensCounted(2, (1,)), TokensCounted(4, (4,))]
    assert said.empty()


def test_before_any_model_is_open_nothing_is_counted():
    said = queue.SimpleQueue()
    counter = TokenCounter(said.put)
    counter.want(CountTokens(1, ("a",)))
    assert said.get(timeout=PATIENCE_SECONDS) == TokensCounted(1, None)
    counter.tokenizer = Words()
    counter.want(CountTokens(2, ("a",)))
    assert said.get(timeout=PATIENCE_SECONDS) == TokensCounted(2, (1,))
