"""What an answer is made of while it comes, from a session in this process or from a server."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.events import Finished, PrefillProgress, ReasoningDelta, TextDelta, Usage
from runtime.prompts.prompt_file import PromptRequest

if TYPE_CHECKING:
    from runtime.engine.session import Session


@dataclass(frozen=True, slots=True)
class Waits:
    """What is waited for before anything comes."""

    words: str


@dataclass(frozen=True, slots=True)
class Said:
    """More of the answer, or of what is thought before it."""

    text: str
    is_thinking: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an answer ended; the last piece."""

    finish_reason: str
    """`stop`, `length`, `context` or `stopped`; or what else a server says."""
    usage: Usage = field(default_factory=dict)
    """Tokens by the names of OpenAI's API; empty where they are not known."""


Piece = Waits | Said | Ended
Pieces = Generator[Piece, None, None]


def pieces_of(session: "Session", request: PromptRequest) -> Pieces:
    """Yield what a session answers; closing ends the answer."""
    with closing(session.generate(request)) as events:
        for event in events:
            if isinstance(event, PrefillProgress):
                yield Waits(f"reading the prompt, {event.num_done_tokens:,} of {event.num_prompt_tokens:,} tokens")
            elif isinstance(event, TextDelta):
                yield Said(event.text)
            elif isinstance(event, ReasoningDelta):
                yield Said(event.text, is_thinking=True)
            elif isinstance(event, Finished):
                yield Ended(finish_reason=event.finish_reason, usage=event.statistics.usage)
