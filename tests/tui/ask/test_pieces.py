"""A session's events as the pieces of an answer."""

from collections.abc import Iterator
from typing import Any

from runtime.events import Event, PrefillProgress, ReasoningDelta, TextDelta
from runtime.prompts.prompt_file import Message, PromptRequest
from tests.support.chat_fakes import FINISHED, ROUND
from tui.ask.pieces import Ended, Said, Waits, pieces_of

REQUEST = PromptRequest(id="1", messages=(Message("user", "Hi"),))


class FakeSession:
    """Yields these events, and knows whether it was asked for all of them."""

    def __init__(self, *events: Event) -> None:
        self._events = events
        self.num_closed = 0

    def generate(self, request: PromptRequest) -> Iterator[Event]:
        try:
            yield from self._events
        finally:
            self.num_closed += 1


def test_events_are_told_in_pieces() -> None:
    texts = (ReasoningDelta("They greet."), TextDelta("Hello "), TextDelta("there."))
    session: Any = FakeSession(PrefillProgress(12, 1200), ROUND, *texts, FINISHED)
    assert list(pieces_of(session, REQUEST)) == [
        Waits("reading the prompt, 12 of 1,200 tokens"),
        Said("They greet.", is_thinking=True),
        Said("Hello "),
        Said("there."),
        Ended(finish_reason="stop", usage=FINISHED.statistics.usage),
    ]


def test_closing_ends_the_answer() -> None:
    session: Any = FakeSession(TextDelta("Hello "), FINISHED)
    pieces = pieces_of(session, REQUEST)
    next(pieces)
    pieces.close()
    assert session.num_closed == 1
