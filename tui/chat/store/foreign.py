"""Conversations of other programs: OpenAI's exports and message lists, and ShareGPT's; many in a file, or a line each.

Of OpenAI's tree of messages the branch that was open last is read. What a conversation in words cannot hold (pictures,
calls of tools, their results, thoughts) is left out and counted. Files come from anywhere: each value is taken only if
it is of the right kind, and a conversation that holds nothing is none.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from profiles.errors import BadInputError
from profiles.files import read_regular_file
from tui.chat.store.files import FORMAT, MAX_FILE_BYTES, import_conversation
from tui.chat.store.records import Conversation, Role, StoredMessage, storable, title_of_prompt
from tui.terminal_text import counted, one_line

MAX_FOREIGN_BYTES = 1 << 28
"""An export of some years has a tenth of it."""
MAX_CONVERSATIONS = 50_000
_LATEST = 1e11
_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "claude"), "assistant"),
}
_SYSTEM = ("system", "developer")
_TEXTS = ("text", "multimodal_text")
"""OpenAI's kinds of content that a person or a model said."""
_KINDS = {
    "code": "call of a tool",
    "thoughts": "thought",
    "reasoning_recap": "thought",
    "user_editable_context": "remark about the person",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadConversation:
    """One that was read from a file, without ids."""

    conversation: Conversation
    messages: tuple[StoredMessage, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many things are not in it, by what they are."""


def import_conversations(path: Path) -> list[ReadConversation]:
    """Read the conversations of a file, ours or another program's; at least one.

    Raises BadInputError, one sentence, for a file that cannot be read or holds none.
    """
    where, wanted = one_line(str(path)), "give a file that this app, ChatGPT or a ShareGPT collection has exported"
    try:
        raw = read_regular_file(path, max_bytes=MAX_FOREIGN_BYTES)
        if len(raw) <= MAX_FILE_BYTES and f'"{FORMAT}"'.encode() in raw:
            conversation, messages = import_conversation(path)
            return [ReadConversation(conversation=conversation, messages=messages)]
        if found := read_foreign(raw):
            return found
    except OSError as error:
        raise BadInputError(f"{where} cannot be read: {error.strerror or error}; give another file") from error
    except ValueError as error:
        reason = one_line(str(error))
        raise BadInputError(f"{where} is no conversation that can be imported: {reason}; {wanted}") from error
    raise BadInputError(f"{where} is no conversation that can be imported, of no form that is known; {wanted}")


def read_foreign(raw: bytes) -> list[ReadConversation]:
    """Return the conversations of a file of another program, in its order; none if it is of no form that is known.

    Raises ValueError for what is no JSON, nor lines of it.
    """
    found = [_read(record) for record in _records(raw)]
    return [each for each in found if each is not None and each.messages]


def left_out_words(left_out: Mapping[str, int]) -> str:
    """Say what is not in what was read: `3 images and 1 call of a tool left out`; empty for nothing."""
    parts = [_counted(number, what) for what, number in sorted(left_out.items()) if number]
    return f"{' and '.join(filter(None, (', '.join(parts[:-1]), *parts[-1:])))} left out" if parts else ""


def _counted(number: int, what: str) -> str:
    noun, space, rest = what.partition(" ")
    return f"{counted(number, noun)}{space}{rest}"


def _records(raw: bytes) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that may be conversations: the file itself, or those that it lists."""
    try:
        whole = msgspec.json.decode(raw)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.DecodeError as error:
        whole = _lines(raw, error)
    if isinstance(whole, Mapping):
        listed = next((whole[name] for name in ("items", "data") if isinstance(whole.get(name), list)), None)
        whole = [whole] if listed is None else listed
    if not isinstance(whole, list):
        return
    if len(whole) > MAX_CONVERSATIONS:
        raise ValueError(f"it has more than {MAX_CONVERSATIONS:,} conversations")
    if whole and all(isinstance(each, Mapping) and "content" in each and "role" in each for each in whole):
        whole = [{"messages": whole}]  # one conversation, its messages alone
    yield from (each for each in whole if isinstance(each, Mapping))


def _lines(raw: bytes, reason: msgspec.DecodeError) -> list[Any]:
    """Return what each line holds, where the whole is no JSON for that `reason`. Raises ValueError."""
    found = []
    for number, line in enumerate(raw.splitlines(), 1):
        if line.strip():
            try:
                found.append(msgspec.json.decode(line))
            except (msgspec.DecodeError, RecursionError) as error:
                what = f"line {number} is no JSON ({error})" if found else f"it is no JSON ({reason})"
                raise ValueError(what) from error
    return found


def _read(record: Mapping[str, Any]) -> ReadConversation | None:
    left_out: Counter[str] = Counter()
    if isinstance(record.get("mapping"), Mapping):
        said = list(_of_tree(record, left_out))
    elif isinstance(record.get("messages"), list):
        said = [_Said.of_message(each, left_out) for each in record["messages"]]
    elif isinstance(record.get("conversations"), list):
        said = [_Said.of_turn(each, left_out) for each in record["conversations"]]
    else:
        return None
    begun_at = _time(record.get("create_time"), record.get("created_at"), default=time.time())
    system = [each.text for each in said if each.role in _SYSTEM and each.text.strip()]
    messages = tuple(_messages(said, begun_at, left_out))
    first = next((each.content for each in messages if each.role == "user"), "")
    title = _text(record.get("title")) or title_of_prompt(first)
    updated_at = _time(record.get("update_time"), default=messages[-1].created_at if messages else begun_at)
    conversation = Conversation(
        title=title,
        system_prompt=storable("\n\n".join(system)),
        created_at=begun_at,
        updated_at=updated_at,
        num_messages=len(messages),
    )
    return ReadConversation(conversation=conversation, messages=messages, left_out=left_out)


@dataclass(frozen=True, slots=True)
class _Said:
    """A turn as it was found."""

    role: str
    text: str
    model: str = ""
    created_at: float | None = None

    @classmethod
    def of_message(cls, message: object, left_out: Counter[str]) -> "_Said":
        """Read a message as OpenAI's API takes it: a text, or a list of parts."""
        if not isinstance(message, Mapping):
            return cls("", "")
        content = message.get("content")
        if message.get("tool_calls") or message.get("function_call"):
            left_out["call of a tool"] += 1
        parts = content if isinstance(content, list) else [content]
        text = "\n".join(filter(None, (_part_text(part, left_out) for part in parts)))
        return cls(_text(message.get("role")).lower(), text, _text(message.get("model")))

    @classmethod
    def of_turn(cls, turn: object, left_out: Counter[str]) -> "_Said":
        """Read one of ShareGPT's."""
        if not isinstance(turn, Mapping):
            return cls("", "")
        role = _text(turn.get("from")) or _text(turn.get("role"))
        if not isinstance(value := turn.get("value", turn.get("content")), str):
            left_out["part without a text"] += 1
        return cls(role.lower(), _text(value))

    @classmethod
    def of_node(cls, message: Mapping[str, Any], left_out: Counter[str]) -> "_Said":
        """Read a message of ChatGPT's tree."""
        content, author = _mapping(message.get("content")), _mapping(message.get("author"))
        metadata = _mapping(message.get("metadata"))
        role, kind = _text(author.get("role")).lower(), _text(content.get("content_type"))
        if metadata.get("is_visually_hidden_from_conversation") is True:
            return cls("", "")
        if role == "tool" or (kind not in _TEXTS and role in _ROLES):
            left_out[_KINDS.get(kind, "result of a tool" if role == "tool" else "part without a text")] += 1
            return cls("", "")
        if role == "assistant" and message.get("recipient") not in (None, "all"):
            left_out["call of a tool"] += 1
            return cls("", "")
        parts = content.get("parts")
        texts = [_part_text(part, left_out) for part in (parts if isinstance(parts, list) else ())]
        created_at = _time(message.get("create_time"), default=math.nan)
        model = _text(metadata.get("model_slug"))
        return cls(role, "\n".join(filter(None, texts)), model, None if math.isnan(created_at) else created_at)


def _of_tree(record: Mapping[str, Any], left_out: Counter[str]) -> Iterator[_Said]:
    """Yield the turns from the root to the node that was open last; to the newest one where none is named."""
    nodes: Mapping[str, Any] = record["mapping"]
    wanted = record.get("current_node")
    if not isinstance(wanted, str) or wanted not in nodes:
        wanted = max(nodes, key=lambda each: _created_at(nodes[each]), default="")
    branch: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    while isinstance(wanted, str) and wanted in nodes and wanted not in seen:  # a file may lead in circles
        seen.add(wanted)
        node = _mapping(nodes[wanted])
        branch.append(_mapping(node.get("message")))
        wanted = node.get("parent")
    yield from (_Said.of_node(message, left_out) for message in reversed(branch) if message)


def _messages(said: Iterable[_Said], begun_at: float, left_out: Counter[str]) -> Iterator[StoredMessage]:
    created_at = begun_at
    for each in said:
        role = _ROLES.get(each.role)
        if role is None:
            left_out["result of a tool"] += each.role in ("tool", "function", "observation")
            continue
        if not each.text.strip():
            continue
        created_at = created_at if each.created_at is None else each.created_at
        yield StoredMessage(
            role=role,
            content=storable(each.text),
            state="complete",
            model=storable(each.model) if role == "assistant" else "",
            created_at=created_at,
        )


def _part_text(part: object, left_out: Counter[str]) -> str:
    """Return what is said in one part of a message; what is no text is counted."""
    if isinstance(part, str) or part is None:
        return part or ""
    fields = _mapping(part)
    kind = _text(fields.get("type")) or _text(fields.get("content_type"))
    if kind in ("text", "input_text", "output_text", "audio_transcription"):
        return _text(fields.get("text"))
    words = {"image": "image", "audio": "sound", "video": "film", "file": "file", "refusal": "refusal"}
    left_out[next((word for begin, word in words.items() if begin in kind), "part without a text")] += 1
    return ""


def _created_at(node: object) -> float:
    return _time(_mapping(_mapping(node).get("message")).get("create_time"), default=0.0)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _time(*values: object, default: float) -> float:
    """Return the first that is a time in seconds."""
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LATEST:
            return float(value)
    return default
