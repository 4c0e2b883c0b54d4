"""What the chat app and its engine process say to each other, one JSON object a line.

Requests go to the engine, reports come back. The engine runs in a process of its own, so that its computing never
delays a key and its death takes no conversation along. Values only: knows no pipe, no torch and no widget.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from profiles.errors import BadInputError


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Open a session; the one that is open, if any, is closed first.

    An answer under way is stopped for it, and a load under way is given up without a word.
    """

    config: Mapping[str, Any]
    """Fields of `EngineConfig` that are not left at their defaults."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Write one answer."""

    answer_id: int
    """Names the answer in every report about it."""
    messages: tuple[Mapping[str, str], ...]
    """`role` and `content`, oldest first; the last is the user's, or with `is_continued` the assistant's."""
    params: Mapping[str, Any]
    """Fields of `SamplingParams` that are not left at their defaults."""
    is_continued: bool = False
    """Whether to write on where the last message, the assistant's, ends."""


@dataclass(frozen=True, slots=True)
class StopAnswer:
    """End the answer after the layer that computes now; what came is kept."""

    answer_id: int
    """Which answer; one that is over already is ignored."""


@dataclass(frozen=True, slots=True)
class Quit:
    """Close the session and end the process."""


Request = LoadModel | Answer | StopAnswer | Quit


@dataclass(frozen=True, slots=True)
class Loading:
    """A piece of the models is in memory."""

    what: str
    """What is being done now."""
    num_done_bytes: int
    """Weight bytes read so far; 0 while nothing is being read."""
    num_bytes: int
    """Weight bytes to read; 0 if that is not known."""
    seconds: float
    """Since the load began."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A session is open."""

    target: str
    """The model's name."""
    draft: str
    """The draft's name, `substitute` or `none`."""
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


@dataclass(frozen=True, slots=True)
class Prefilling:
    """A chunk of the prompt is in the caches."""

    answer_id: int
    """Which answer."""
    num_done_tokens: int
    """Prompt tokens in the caches so far, reused ones included."""
    num_prompt_tokens: int
    """Prompt tokens altogether."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """The draft has proposed one more level of the tree."""

    answer_id: int
    """Which answer."""
    level: int
    """Depth of the level; the root is 0."""
    width: int
    """Nodes in it that were run."""


@dataclass(frozen=True, slots=True)
class PassRunning:
    """Where the target's pass is; sent some times a second while it runs."""

    answer_id: int
    """Which answer."""
    num_done_layers: int
    """Layers computed of this pass."""
    num_layers: int
    """Layers of a pass."""
    layers_in_slots: tuple[int, ...]
    """The streamed layers that lie in the ring's slots or are being copied there; may be empty."""


@dataclass(frozen=True, slots=True)
class RoundDone:
    """One round is over; its text follows."""

    answer_id: int
    """Which answer."""
    num_emitted: int
    """Tokens that it brought."""
    parents: tuple[int, ...]
    """(N,) of the verified tree, breadth first, the root's -1."""
    path: tuple[int, ...]
    """The accepted nodes, from the root on."""
    draft_seconds: float
    """Growing the tree."""
    verify_seconds: float
    """The pass, the head and the walk."""
    link_busy_seconds: float
    """Time since the previous pass in which the link carried bytes."""
    bytes_streamed: int
    """Bytes that crossed the link since the previous pass."""
    num_context_tokens: int
    """Tokens of prompt and answer so far."""
    predicted_seconds_per_token: float | None
    """What the planner expects of such rounds; None where it does not say."""
    process_bytes: int
    """Memory of the engine's process."""
    device_bytes: int
    """Memory that the runtime holds on the device."""


@dataclass(frozen=True, slots=True)
class TextArrived:
    """More of the answer."""

    answer_id: int
    """Which answer."""
    text: str
    """What to append; may hold terminal escapes."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer is complete, or was stopped."""

    answer_id: int
    """Which answer."""
    finish_reason: str
    """`stop`, `length`, `context` or `stopped`."""
    num_prompt_tokens: int
    """Tokens of the prompt, template included."""
    num_new_tokens: int
    """Tokens of the answer."""
    num_rounds: int
    """Passes of the target."""
    prefill_seconds: float
    """To the end of the first round."""
    seconds_per_token: float | None
    """From there on; None if no token came after the first round."""
    link_utilization: float | None
    """Share of that time in which the link carried bytes; None if nothing streams."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A request could not be served; the process goes on."""

    answer_id: int | None
    """Which answer; None for a load."""
    sentence: str
    """What, where, found, expected, next step."""
    kind: str
    """`input`, `context` (the prompt does not fit), `memory` or `fault`."""


Report = Loading | Loaded | Prefilling | Drafting | PassRunning | RoundDone | TextArrived | Answered | Failed

_KINDS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        *(LoadModel, Answer, StopAnswer, Quit),
        *(Loading, Loaded, Prefilling, Drafting, PassRunning, RoundDone, TextArrived, Answered, Failed),
    )
}


def to_line(message: Request | Report) -> bytes:
    """One line of JSON, its end included."""
    return json.dumps({"message": type(message).__name__, **asdict(message)}).encode() + b"\n"


def from_line(line: bytes) -> Any:
    """The request or report that a line holds. Raises BadInputError for anything else."""
    try:
        record = json.loads(line)
        kind = _KINDS[record.pop("message")]
        names = {field.name for field in fields(kind)}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
        if set(given) - names:
            raise KeyError(*(set(given) - names))
        return kind(**given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"a line between the chat app and its engine is no message ({error}); both must be of one version"
        ) from error
