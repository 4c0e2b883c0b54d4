"""What changed in a dialogue, for whoever shows it. Values only: knows no store, no engine and no widget."""

from dataclasses import dataclass
from typing import Literal

from tui.chat.store.records import Message

TroubleKind = Literal["refused", "no model", "dead", "memory", "context", "fault", "input", "store"]
"""`refused` needs a word only; the others leave something to decide."""


@dataclass(frozen=True, slots=True)
class TurnsChanged:
    """The open conversation must be shown anew, as it is saved: another one was opened, or turns were dropped or left
    out, perhaps with others in their place."""


@dataclass(frozen=True, slots=True)
class TurnAdded:
    """A prompt, or an answer that begins, is at the end of the open conversation."""

    message: Message
    """As it is saved."""


@dataclass(frozen=True, slots=True)
class AnswerResumed:
    """The last answer is being written on."""

    message_id: int
    """Which message."""


@dataclass(frozen=True, slots=True)
class TextCame:
    """More of an answer of the open conversation."""

    message_id: int
    """Which message."""
    text: str
    """As the model wrote it."""


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """An answer is over, in whatever way."""

    message: Message
    """As it is saved; may belong to a conversation that is not open."""


@dataclass(frozen=True, slots=True)
class QueueChanged:
    """Another prompt waits for its turn, or none does."""

    text: str
    """The prompt that waits; empty for none."""


@dataclass(frozen=True, slots=True)
class PromptReturned:
    """A prompt that could not be sent, or was taken back, belongs in the prompt area again."""

    text: str
    """As it was written."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something did not work; nothing that was said is lost."""

    kind: TroubleKind
    """What can be done about it depends on this."""
    sentence: str
    """What, where and what to do next; may hold anything that a model's name or path holds."""


Change = TurnsChanged | TurnAdded | AnswerResumed | TextCame | AnswerEnded | QueueChanged | PromptReturned | Trouble
Changes = tuple[Change, ...]
