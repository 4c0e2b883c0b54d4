"""A conversation, its messages, and the turns that a model is shown of them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from profiles.errors import BadInputError
from runtime.prompts.prompt_file import Message, ToolCall
from tui.attachments import split_attachments
from tui.terminal_text import one_line

Role = Literal["user", "assistant", "tool"]
"""A tool's turn is what it said to the call that it follows."""
Outcome = Literal["done", "failed", "refused", "stopped"]
"""How a call of a tool went: `failed` is the tool's or its server's word, the other two are the person's."""
_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
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
    """One prompt, one answer, or what a tool said."""

    id: int = 0
    """Never used again; higher than that of the message that it follows; 0 until a store gives one."""
    conversation_id: int = 0
    parent_id: int = 0
    """The message that it follows; 0 for none."""
    role: Role
    content: str
    """As it was written or arrived: may hold terminal escapes."""
    state: MessageState
    """A prompt and a tool's turn are always complete."""
    model: str = ""
    """What answered; empty for prompts and tools."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    """What was measured of an answer or a call, what was thought and what was called: JSON values by name."""
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

    @property
    def call(self) -> ToolCall | None:
        """The tool that an answer calls at its end; of a tool's turn, the call that it answers."""
        try:
            call = msgspec.convert(self.statistics.get("call"), ToolCall | None)
            return call if call is None or isinstance(json.loads(call.arguments), dict) else None
        except (ValueError, RecursionError):  # of a file that somebody wrote
            return None

    @property
    def outcome(self) -> Outcome:
        """How the call went that a tool's turn answers."""
        outcome = self.statistics.get("outcome")
        return next((each for each in _OUTCOMES if each == outcome), "done")


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


def raw_text(turns: Sequence[Message]) -> str:
    """Return the turns as one text to be written on: an answer follows its prompt at once, a prompt begins a line."""
    text = ""
    for turn in turns:
        begins_line = turn.role == "user" and text and not text.endswith("\n")
        text += "\n" * bool(begins_line) + turn.content
    return text


def chat_turns(
    system_prompt: str, messages: Sequence[StoredMessage], *, knows_tools: bool = False
) -> tuple[Message, ...]:
    """Return what a chat template is given of each turn, oldest first, roles alternating.

    What an answer thought is its `reasoning_content`: most templates leave it out of all but the last. An answer
    without any text is no turn, and prompts that then follow each other become one: many templates refuse two turns of
    one role. For a template that `knows_tools` not, calls and what tools said are words in brackets.
    """
    return (*system_turn(system_prompt), *(turn for _, turn in turns_with_ids(messages, knows_tools=knows_tools)))


def system_turn(system_prompt: str) -> tuple[Message, ...]:
    """Return the turn that stands before all others, none where there is no such prompt."""
    return (Message("system", system_prompt),) if system_prompt.strip() else ()


def turns_with_ids(messages: Sequence[StoredMessage], *, knows_tools: bool = False) -> list[tuple[int, Message]]:
    """Return the turns of `chat_turns` without the system prompt, each behind the id of its first message."""
    turns: list[tuple[int, Message]] = []
    for before, each, after in zip((None, *messages), messages, (*messages[1:], None), strict=False):
        is_paired = knows_tools and (_is_answer(each, before) or _is_answer(after, each))
        turn = _turn(each, is_paired=is_paired, has_words=not knows_tools)
        if turn is None:
            continue
        if turns and turns[-1][1].role == turn.role != "tool" and not turns[-1][1].tool_calls:
            turns[-1] = (turns[-1][0], _joined(turns[-1][1], turn))
        else:
            turns.append((each.id, turn))
    return turns


def _is_answer(message: StoredMessage | None, called: StoredMessage | None) -> bool:
    """Return whether a message is what a tool said to the call of another."""
    if message is None or called is None or message.role != "tool" or called.role != "assistant":
        return False
    return called.call is not None and message.call is not None and message.call.id == called.call.id


def _turn(message: StoredMessage, *, is_paired: bool, has_words: bool) -> Message | None:
    """Return a message as a turn; None if there is nothing to read. `has_words`: a call becomes words."""
    call, content = message.call, message.content
    if message.role == "tool":
        if is_paired and call is not None:
            return Message("tool", content, tool_call_id=call.id, name=call.name)
        return Message("user", f"[what {'the tool' if call is None else call.name} said]\n{content}")
    if message.role == "assistant" and call is not None and has_words:
        content = "\n\n".join(filter(None, (content, f"[called {call.name} with {call.arguments}]")))
    if message.role == "assistant" and not content and not is_paired:
        return None
    calls = (call,) if is_paired and call is not None else ()
    thought = None if message.thinking is None else message.thinking.text
    return Message(message.role, content, tool_calls=calls, reasoning_content=thought)


def _joined(one: Message, other: Message) -> Message:
    contents = [each.content for each in (one, other) if each.content or each.role == "user"]
    thoughts = [each.reasoning_content for each in (one, other) if each.reasoning_content is not None]
    return replace(other, content="\n\n".join(contents), reasoning_content="\n\n".join(thoughts) if thoughts else None)


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
    """Return the id of the prompt from which on at most half of the text is left; the last prompt always stays.

    None if there is only one prompt, so that nothing can be left out. For a half, lengths serve as well as tokens,
    which the engine counts where it matters: it says how many turns have no room in a context that is full.
    """
    num_characters = sum(len(message.content) for message in messages)
    prompts = [(index, message) for index, message in enumerate(messages) if message.role == "user"]
    for index, prompt in prompts[1:]:
        num_left = sum(len(message.content) for message in messages[index:])
        if num_left <= num_characters / 2 or prompt is prompts[-1][1]:
            return prompt.id
    return None


UNSENT_ID = 0
"""Of a message that is not in the store."""


def unsent(text: str, *, instead_of: StoredMessage | None = None) -> StoredMessage:
    """Return what is being written as a message: a prompt, or another version of what is edited."""
    role = "user" if instead_of is None else instead_of.role
    return StoredMessage(role=role, content=text, state="complete", created_at=0, id=UNSENT_ID)


def index_of(message_id: int, messages: Sequence[StoredMessage]) -> int:
    """Return where a message is among those that are shown; BadInputError if it is not."""
    index = next((index for index, each in enumerate(messages) if each.id == message_id), None)
    if index is None:
        raise BadInputError("that message is not shown any more; choose one that is")
    return index


def storable(text: str) -> str:
    """Return the text with U+FFFD for NUL, where full-text search ends, and for halves of surrogate pairs, no UTF-8.

    Whole pairs become the one character that they stand for.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")
