"""What a step in a conversation changed, for the screen to show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tui.chat.engine.messages import ContextFull
from tui.chat.engine.state import EngineState
from tui.chat.store.guesses import Guesses
from tui.chat.store.records import StoredMessage, Thinking

TroubleKind = Literal["no model", "dead", "memory", "context", "fault", "input", "store"]
"""Each leaves something else to decide."""
TROUBLES: Mapping[str, TroubleKind] = {
    "input": "input",
    "context": "context",
    "memory": "memory",
    "stopped": "no model",
}
"""By the kind of what the engine could not do."""


@dataclass(frozen=True, slots=True)
class TurnsChanged:
    """The open conversation must be shown anew: another one or another branch was opened, turns were left out, or an
    answer is being written on."""

    message_id: int = 0
    """The message to be in sight; 0 for the last one."""


@dataclass(frozen=True, slots=True)
class TextCame:
    """More of an answer of the open conversation has come."""

    text: str
    """As the model wrote it."""
    guesses: Guesses | None = None
    """Of all of the answer so far, if that is told."""


@dataclass(frozen=True, slots=True)
class ThoughtCame:
    """An answer of the open conversation has thought more, before it says something."""

    thinking: Thinking
    """All of it so far, as the model wrote it."""


@dataclass(frozen=True, slots=True)
class PromptReturned:
    """A prompt that could not be sent, or was taken back, belongs in the prompt area again."""

    text: str


@dataclass(frozen=True, slots=True)
class EditBegun:
    """A message is to be changed; what is being written waits meanwhile."""

    text: str
    """The message as it is."""


@dataclass(frozen=True, slots=True)
class ConversationLeft:
    """Another conversation is open now; what was written in this one and not sent stays with it."""

    conversation_id: int | None
    waiting: tuple[str, ...]
    """Prompts that waited to be sent, in order."""
    edited_id: int
    """The message that was being changed; 0 for none."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prompt that is sent once the engine is free."""

    text: str
    edited_id: int | None
    """The message that it is to take the place of, as another version."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something did not work; nothing that was said is lost."""

    kind: TroubleKind
    """What can be done about it depends on this."""
    sentence: str
    """What, where and what to do next; may hold anything that a model's name or path holds."""
    full: ContextFull | None = None
    """What makes room, where the context is full."""


Change = (
    TurnsChanged
    | StoredMessage
    | TextCame
    | ThoughtCame
    | PromptReturned
    | EditBegun
    | ConversationLeft
    | Trouble
    | str
)
"""A message is new at the end of the open conversation, or an answer, perhaps of another one, that is over; a text is
worth a word in passing."""
Changes = tuple[Change, ...]


def missing_model(state: EngineState) -> Trouble | None:
    """Return why nothing can be asked, where no model is open and none is being loaded."""
    if state.phase == "dead":
        return Trouble("dead", state.sentence)
    if state.model is None and state.phase != "loading":
        return Trouble("no model", state.sentence or "no model is open; choose one first")
    return None
