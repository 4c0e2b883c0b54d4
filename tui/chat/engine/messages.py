"""What the chat app and its engine process say to each other, one line of JSON each.

Requests go to the engine, reports come back; what happens while an answer is written are the engine's own events. The
engine runs in a process of its own, so that its computing never delays a key and its death takes no conversation along.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import msgspec

from profiles.errors import BadInputError
from runtime.config import EngineConfig
from runtime.events import Event, LoadProgress
from runtime.prompts.prompt_file import PromptRequest


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Open a session in place of the one that is open, if any, which stays open where this one cannot be.

    An answer under way is stopped for it, and a load under way is given up without a word.
    """

    config: EngineConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """Write one answer."""

    answer_id: int
    """Names the answer in every report about it."""
    prompt: PromptRequest


@dataclass(frozen=True, slots=True)
class StopAnswer:
    """End the answer after the layer that computes now; what came is kept."""

    answer_id: int
    """One that is over already is ignored."""


@dataclass(frozen=True, slots=True)
class StopLoad:
    """Give the load under way up, if there is one; the session that was open before it is open again."""


@dataclass(frozen=True, slots=True)
class CountTokens:
    """Say how many tokens texts have, also while an answer is written; the next one takes its place if it still waits.

    Without a model that is open there is no reply.
    """

    count_id: int
    """Names the request in its reply."""
    texts: tuple[str, ...]
    prompt: PromptRequest | None = None
    """What would be sent, to be counted as the model would read it."""


@dataclass(frozen=True, slots=True)
class Quit:
    """Close the session and end the process."""


Request = LoadModel | Answer | StopAnswer | StopLoad | CountTokens | Quit


@dataclass(frozen=True, slots=True)
class Loading:
    """A piece of the models is in memory."""

    progress: LoadProgress
    """How much of them; no bytes while nothing is being read, or where their number is not known."""
    seconds: float
    """Since the load began."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A session is open."""

    target: str
    """Name of the model."""
    draft: str
    """Name of the draft, `substitute` or `none`."""
    device: str
    """What computes, as torch names it."""
    context_tokens: int
    """Most tokens of prompt and answer together."""
    num_layers: int
    """Decoder layers of the target."""
    num_resident_layers: int
    """Of these, how many never leave the device."""
    num_ring_slots: int
    """Device slots that streamed layers share."""
    bytes_per_pass: int
    """Weights that cross the link in one pass."""
    memory: Mapping[str, int]
    """What the runtime holds on the device, in bytes, by what for."""
    predicted_seconds_per_token: float | None
    """By the plan; None where nothing is known yet."""
    sentences: tuple[str, ...]
    """What a user should know about this session."""
    resident_layers: tuple[int, ...] = ()
    """Which layers never leave the device; may be empty where that is not known."""
    has_chat_template: bool = True
    """Whether the model was made for conversations; one that was not writes on from a text."""
    num_disk_layers: int = 0
    """Of the others, how many are read from disk in every pass."""
    can_think: bool = True
    """Whether marks of thinking before an answer are known of the model."""
    knows_tools: bool = False
    """Whether the chat template takes tools."""
    own_settings: Mapping[str, float] = field(default_factory=dict)
    """What the model samples with by its own settings, by fields of `SamplingParams`, where nobody chooses."""
    larger_contexts: tuple[tuple[int, int], ...] = ()
    """Contexts that would have room too, in ascending order, the most that fits last, and how many bytes more each
    takes."""

    @property
    def device_bytes(self) -> int:
        """Everything that the runtime holds on the device."""
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True)
class StillLoading:
    """How much has been read of a session that is open already; the first pass waits for the rest."""

    progress: LoadProgress | None
    """None once everything has been read."""
    sentences: tuple[str, ...] = ()
    """What a user should know about the session that was not known before."""


@dataclass(frozen=True, slots=True)
class SessionNote:
    """What turned out while the session answered, a sentence each."""

    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokensCounted:
    """What was asked for was counted."""

    count_id: int
    num_tokens: tuple[int, ...] | None
    """Of each text; None where no model is open, or where the tokenizer refuses them."""
    num_prompt_tokens: int | None = None
    """Of the prompt, chat template included; None where none was given."""


@dataclass(frozen=True, slots=True)
class PassRunning:
    """Where the target's pass is; sent some times a second while it runs."""

    num_done_layers: int
    """Layers computed of this pass."""
    num_layers: int
    """Layers of a pass."""
    layers_in_slots: tuple[int, ...]
    """The streamed layers that lie in the ring's slots or are being copied there; may be empty."""


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """How the session stands after a round; follows each `Round`."""

    num_context_tokens: int = 0
    """Tokens of prompt and answer so far."""
    predicted_seconds_per_token: float | None = None
    """What the planner expects of such rounds; None where it does not say."""
    process_bytes: int = 0
    """Memory of the engine's process."""


@dataclass(frozen=True, slots=True)
class ContextFull:
    """A conversation has no room in the context any more, and what would make room; the answer's end follows."""

    num_tokens: int
    """Of the conversation as it was sent, or as it has become."""
    context_tokens: int
    """What prompt and answer may take together."""
    largest_context_tokens: int
    """What the model's own limit and the memory allow; at least `context_tokens`."""
    wanted_context_tokens: int
    """A context that has room for it and for an answer; more than the largest where none has."""
    num_left_out: int
    """The fewest of the oldest turns without which there is room, the system prompt aside; 0 if the last prompt alone
    has none, or if there is nothing before it."""
    fits_alone: bool
    """Whether the last prompt alone has room."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A request could not be served; the process goes on."""

    sentence: str
    """What, where, found, expected, next step."""
    kind: str
    """`input`, `context` (the prompt does not fit), `memory`, `stopped` (a load, on request) or `fault`."""


@dataclass(frozen=True, slots=True)
class LoadRefused:
    """A load is not possible, or was stopped; the session that was open before is open."""

    sentence: str
    kind: str
    """As in `Failed`."""
    loaded: Loaded
    """The session that is open."""


AnswerEvent = Event | PassRunning | SessionFigures | ContextFull | Failed


@dataclass(frozen=True, slots=True)
class OfAnswer:
    """Something that happened while an answer was written."""

    answer_id: int
    """Names the answer."""
    event: AnswerEvent
    """`Finished` or `Failed` is the last one."""


_SessionReport = Loading | Loaded | LoadRefused | StillLoading | SessionNote | TokensCounted
Report = _SessionReport | Failed | OfAnswer
"""A `Failed` outside an answer is that of a load."""

_KINDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Request | _SessionReport | AnswerEvent)}


def to_line(message: Request | Report) -> bytes:
    """Return one line of JSON, its end included: the kind of message, the answer that it is about, its fields."""
    answer_id, body = (message.answer_id, message.event) if isinstance(message, OfAnswer) else (None, message)
    # json, since msgspec writes no halves of surrogate pairs, which a terminal and the name of a file may hold
    return json.dumps((type(body).__name__, answer_id, msgspec.to_builtins(body))).encode() + b"\n"


def from_line(line: bytes) -> Any:
    """Return the request or report that a line holds. Raises BadInputError for anything else."""
    try:
        name, answer_id, record = msgspec.convert(json.loads(line), tuple[str, int | None, dict[str, Any]])
        body: Any = msgspec.convert(record, _KINDS[name])
    except (ValueError, KeyError) as error:
        raise BadInputError(
            f"a line between the chat app and its engine is no message ({error}); both must be of one version"
        ) from error
    return body if answer_id is None else OfAnswer(answer_id, body)
