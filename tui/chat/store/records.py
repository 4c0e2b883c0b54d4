"""A conversation, its messages, and the turns that a model is shown of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tui.attachments import split_attachments
from tui.terminal_text import one_line

Role = Literal["user", "assistant"]
EndState = Literal["complete", "stopped", "failed"]
"""How an answer ended: `stopped` by the user, by a full context or by the end of its process."""
MessageState = Literal["complete", "stopped", "failed", "streaming"]
"""`streaming` while text still arrives."""

EDITED = "edited"
"""Stands for the reason why an answer ended that a person has put otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """What an answer thought before it said something."""

    text: str
    num_tokens: Annotated[int, Meta(ge=0)] = 0
    """To the end of the round in which it ended; 0 where that was not counted."""
    seconds: Annotated[float, Meta(ge=0)] = 0.0

    def to_record(self) -> dict[str, Any]:
        """Return it as `statistics` have it."""
        return {"text": storable(self.text), "num_tokens": self.num_tokens, "seconds": round(self.seconds, 3)}


UnixTime = Annotated[float, Meta(ge=0, le=1e11)]
"""Seconds, until the year 5138."""

MAX_TITLE_LENGTH = 60
UNTITLED = "new conversation"
_CODE = re.compile(r"^(`{3,}|~{3,}).*?(^\1|\Z)", re.MULTILINE | re.DOTALL)
_MARKS = re.compile(r"^\s*(?:[#>*+-]+\s+|\d+[.)]\s+)+|[*_`]{2,}|`")
_GREETING = re.compile(
    r"(?:hi|hello|hey|hallo|dear|good (?:morning|afternoon|evening))\b[\w ]{0,20}[,.!]*", re.IGNORECASE
)
_SENTENCE = re.compile(r".{8,}?[.?!:;](?=\s)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One line of the list of conversations."""

    id: int = 0
    """Never used again, even after the conversation is gone; 0 until a store gives one."""
    title: str
    """Empty until the user or the first prompt gives one."""
    system_prompt: str
    """Empty is the model's own."""
    created_at: UnixTime
    updated_at: UnixTime
    """When something was last said in it."""
    num_messages: int = 0
    """Messages of the branch that is shown."""
    leaf_id: int = 0
    """The last message of the branch that is shown; 0 if none is."""
    deleted_at: UnixTime | None = None
    """When it was deleted, from when on it can be brought back for a while."""

    @property
    def shown_title(self) -> str:
        return one_line(self.title) or UNTITLED


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """One prompt or one answer."""

    id: int = 0
    """Never used again; higher than that of the message that it follows; 0 until a store gives one."""
    conversation_id: int = 0
    parent_id: int = 0
    """The message that it follows; 0 for none."""
    role: Role
    content: str
    """As it was written or arrived: may hold terminal escapes."""
    state: MessageState
    """A prompt is always complete."""
    model: str = ""
    """What answered; empty for prompts."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    """What was measured of an answer, as it was handed in: JSON values by name."""
    created_at: UnixTime
    is_left_out: bool = False
    """Whether a model reads it no longer, since the context had no room."""

    @property
    def thinking(self) -> Thinking | None:
        """What it thought, as `statistics` have it."""
        try:
            return msgspec.convert(self.statistics.get("thinking"), Thinking | None)
        except msgspec.ValidationError:  # of a file that somebody wrote
            return None


def title_of_prompt(prompt: str) -> str:
    """Return what a conversation that begins so may be called: at most MAX_TITLE_LENGTH characters on one line.

    The first line in words that says something: not what is attached, nor code, a greeting or Markdown's signs, unless
    there is nothing else. Of a long one the first sentence, else whole words.
    """
    attachments, text = split_attachments(prompt)
    for said in (_CODE.sub("\n", text), text, "\n".join(each.name or each.label for each in attachments)):
        lines = [" ".join(_MARKS.sub("", line).split()) for line in said.splitlines()]
        lines = [line for line in lines if any(map(str.isalnum, line))] or list(filter(None, lines))
        if lines:
            is_greeted = len(lines) > 1 and _GREETING.fullmatch(lines[0])
            return _shortened(lines[1 if is_greeted else 0])
    return ""


def _shortened(title: str) -> str:
    if len(title) <= MAX_TITLE_LENGTH:
        return title
    if (sentence := _SENTENCE.match(title[: MAX_TITLE_LENGTH + 1])) is not None:
        return sentence[0].rstrip(" .:;")
    head, space, _ = title[:MAX_TITLE_LENGTH].rpartition(" ")
    return (head.rstrip(" ,;:") if space else title[: MAX_TITLE_LENGTH - 1]) + "…"


def raw_text(turns: Sequence[Mapping[str, str]]) -> str:
    """Return the turns as one text to be written on: an answer follows its prompt at once, a prompt begins a line."""
    text = ""
    for turn in turns:
        begins_line = turn["role"] == "user" and text and not text.endswith("\n")
        text += "\n" * bool(begins_line) + turn["content"]
    return text


def chat_turns(system_prompt: str, messages: Sequence[StoredMessage]) -> tuple[dict[str, str], ...]:
    """Return what a chat template is given: `role` and `content` of each turn, oldest first, roles alternating.

    What an answer thought is its `reasoning_content`: most templates leave it out of all but the last. An answer
    without any text is no turn, and prompts that then follow each other become one: many templates refuse two turns of
    one role.
    """
    system = ({"role": "system", "content": system_prompt},) if system_prompt.strip() else ()
    return (*system, *map(_merged, _turns(messages)))


def _merged(turn: Sequence[StoredMessage]) -> dict[str, str]:
    merged = {"role": turn[0].role, "content": "\n\n".join(each.content for each in turn)}
    thoughts = [each.thinking.text for each in turn if each.thinking is not None]
    return {**merged, "reasoning_content": "\n\n".join(thoughts)} if thoughts else merged


def turn_ids(messages: Sequence[StoredMessage]) -> tuple[int, ...]:
    """Return the id of the first message of each of these turns, the system prompt aside."""
    return tuple(turn[0].id for turn in _turns(messages))


def _turns(messages: Sequence[StoredMessage]) -> list[list[StoredMessage]]:
    turns: list[list[StoredMessage]] = []
    for message in messages:
        if message.role == "assistant" and not message.content:
            continue
        if turns and turns[-1][-1].role == message.role:
            turns[-1].append(message)
        else:
            turns.append([message])
    return turns


def readable(messages: Sequence[StoredMessage]) -> list[StoredMessage]:
    """Return the messages without prompts that the context had no room for, each with its answer, unless it is last.

    What could not be read once would make every later prompt too long as well.
    """
    unread = {
        index
        for index, answer in enumerate(messages)
        if answer.state == "failed" and answer.statistics.get("kind") == "context" and not answer.content
    }
    return [each for index, each in enumerate(messages) if index not in unread and index + 1 not in unread]


def first_kept_after_trim(messages: Sequence[StoredMessage]) -> int | None:
    """Return the id of the prompt from which on at most half of the characters are left; the last prompt always stays.

    None if there is only one prompt, so that nothing can be left out. Characters, since tokens are the engine's to
    count.
    """
    num_characters = sum(len(message.content) for message in messages)
    prompts = [(index, message) for index, message in enumerate(messages) if message.role == "user"]
    for index, prompt in prompts[1:]:
        num_left = sum(len(message.content) for message in messages[index:])
        if num_left <= num_characters / 2 or prompt is prompts[-1][1]:
            return prompt.id
    return None


def storable(text: str) -> str:
    """Return the text with U+FFFD for NUL, where full-text search ends, and for halves of surrogate pairs, no UTF-8.

    Whole pairs become the one character that they stand for.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")
