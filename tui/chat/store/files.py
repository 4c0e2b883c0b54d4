"""Conversations as files: Markdown to read, JSON to keep and to bring back; never written over another file.

JSON holds all branches, everything but ids, exactly; Markdown the branch that is shown. In that,
what a terminal would obey is shown as text, since people print such files. Imported files may have been edited by hand:
every value is checked.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offload.errors import WriteError
from profiles.errors import BadInputError, ProfileError, quote
from profiles.files import parse_json_text, read_regular_file
from profiles.records import read_value
from tui.chat.store.branches import ROOT, MessageTree, Node
from tui.chat.store.private_files import create_private_file, free_path
from tui.chat.store.records import EDITED, Conversation, StoredMessage, storable
from tui.terminal_text import one_line, show_terminal_escapes

FORMAT = "overstory conversation"
SCHEMA_VERSION = 3
"""Which has turns of tools; 2 has none."""
MAX_FILE_BYTES = 64 << 20
_MAX_NAME_LENGTH = 50
"""Characters of a title in a file's name, which may take 255 bytes."""

_CONVERSATION_FIELDS = ("title", "system_prompt", "created_at", "updated_at")
_MESSAGE_FIELDS = ("role", "content", "state", "model", "statistics", "created_at")
_FOLLOWS, _SHOWN_UNTIL = "follows", "shown_until"
"""The number of a message in the file, from 1, or 0 for none; new with version 2, before which there was one branch."""
# Legal in JSON, but a terminal obeys the first range and some readers end the line at the other two.
_UNSAFE_IN_LINES = re.compile("[\x7f-\x9f\u2028\u2029]")


def path_of(file: str) -> Path:
    """Return the path that a person typed."""
    return Path(os.path.expanduser(file))  # noqa: PTH111 - which leaves the home of an unknown user as it is


def free_export_path(folder: Path, conversation: Conversation, *, suffix: str) -> Path:
    """Return a name made of day and title that no file in the folder has yet, such as `2026-01-31-my-plan.md`."""
    words = "-".join(re.findall(r"\w+", conversation.title.lower()))[:_MAX_NAME_LENGTH] or "conversation"
    day = datetime.fromtimestamp(conversation.created_at, UTC)
    return free_path(folder / f"{day:%Y-%m-%d}-{words}{suffix}")


def export_conversation(path: Path, conversation: Conversation, messages: Sequence[StoredMessage]) -> None:
    """Write a new file, Markdown or JSON by the path's suffix, `.md` or `.json`; makes its folder if need be.

    `messages` are those of all branches; Markdown holds the branch that ends with the conversation's leaf.

    Raises:
        BadInputError: another suffix, or the file is there already.
        WriteError: the disk is full, or not writable; no part of the file is left.
    """
    suffix, where = path.suffix.lower(), one_line(str(path))
    if suffix not in (".md", ".json"):
        raise BadInputError(f"{where} must end in .md or .json, which says what to write")
    shown = _branch(messages, conversation.leaf_id)
    text = to_json(conversation, messages) if suffix == ".json" else to_markdown(conversation, shown)
    try:
        create_private_file(path, text.encode())
    except FileExistsError as error:
        raise BadInputError(f"{where} is there already; give another name, or remove that first") from error
    except OSError as error:
        raise WriteError(
            f"{where} cannot be written: {error.strerror or error}; make room, or give a folder that is writable"
        ) from error


def import_conversation(path: Path) -> tuple[Conversation, tuple[StoredMessage, ...]]:
    """Read a JSON file of ours; ids are the messages' numbers in the file until a store gives some.

    Raises:
        BadInputError: the file cannot be read, is of a newer version, or holds something else.
    """
    where = one_line(str(path))
    try:
        return from_json(read_regular_file(path, max_bytes=MAX_FILE_BYTES))
    except OSError as error:
        raise BadInputError(f"{where} cannot be read: {error.strerror or error}; give another file") from error
    except (ValueError, ProfileError) as error:
        reason = one_line(str(error))
        raise BadInputError(
            f"{where} is no conversation that can be imported: {reason}; give a .json file that the chat app exported"
        ) from error


def to_markdown(conversation: Conversation, messages: Sequence[StoredMessage]) -> str:
    """Write the messages of one branch for a reader, with one heading for each turn."""
    text = "\n\n".join(_paragraphs(conversation, messages)) + "\n"
    return show_terminal_escapes(storable(text.replace("\r\n", "\n")))


def to_json(conversation: Conversation, messages: Sequence[StoredMessage]) -> str:
    """Write all branches of the conversation to be kept, one field a line; `from_json` reads it."""
    numbers = {ROOT: 0} | {message.id: number for number, message in enumerate(messages, 1)}
    record = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        **{name: getattr(conversation, name) for name in _CONVERSATION_FIELDS},
        _SHOWN_UNTIL: numbers[conversation.leaf_id],
        "messages": [
            {_FOLLOWS: numbers[message.parent_id]} | {name: getattr(message, name) for name in _MESSAGE_FIELDS}
            for message in messages
        ],
    }
    text = storable(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
    return _UNSAFE_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def from_json(raw: bytes) -> tuple[Conversation, tuple[StoredMessage, ...]]:
    """Read a file's text. Raises ValueError or ProfileError, which say what is wrong with it."""
    record = parse_json_text(raw)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"it does not say that its format is {FORMAT!r}")
    version: object = record.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(f"its schema_version is {quote(version)}, and this program reads 1 to {SCHEMA_VERSION}")
    has_branches = version > 1
    fields = (*_CONVERSATION_FIELDS, *[_SHOWN_UNTIL] * has_branches)
    _check_keys("the conversation", record, ("format", "schema_version", *fields, "messages"))
    conversation: Conversation = read_value(Conversation, record)
    raw_messages = read_value(list[dict[str, Any]], record["messages"], where="messages")
    for index, each in enumerate(raw_messages):
        _check_keys(f"messages[{index}]", each, (*[_FOLLOWS] * has_branches, *_MESSAGE_FIELDS))
    read: tuple[StoredMessage, ...] = read_value(tuple[StoredMessage, ...], record["messages"], where="messages")
    parents = [each[_FOLLOWS] if has_branches else index for index, each in enumerate(raw_messages)]
    for index, parent in enumerate(parents):
        _check_number(f"messages[{index}].{_FOLLOWS}", parent, most=index)
    leaf_id = record[_SHOWN_UNTIL] if has_branches else len(read)
    _check_number(_SHOWN_UNTIL, leaf_id, most=len(read))
    messages = tuple(
        replace(message, id=number, parent_id=parent)
        for number, (message, parent) in enumerate(zip(read, parents, strict=True), 1)
    )
    return replace(conversation, num_messages=len(_branch(messages, leaf_id)), leaf_id=leaf_id), messages


def _branch(messages: Sequence[StoredMessage], leaf_id: int) -> list[StoredMessage]:
    """Return those on the branch that ends there."""
    path = frozenset(MessageTree(Node(each.id, each.parent_id) for each in messages).path(leaf_id))
    return [message for message in messages if message.id in path]


def _paragraphs(conversation: Conversation, messages: Sequence[StoredMessage]) -> Iterator[str]:
    yield f"# {conversation.title or 'Conversation'}"
    yield f"*Begun {datetime.fromtimestamp(conversation.created_at, UTC):%Y-%m-%d %H:%M} UTC in Overstory.*"
    if conversation.system_prompt:
        yield "## System prompt"
        yield conversation.system_prompt
    for message in messages:
        yield _heading(message)
        if message.content:
            yield _fenced(message.content) if message.role == "tool" else message.content
        if message.role == "assistant" and message.call is not None:
            yield f"Calls `{message.call.name}` with"
            yield _fenced(message.call.arguments, language="json")


def _heading(message: StoredMessage) -> str:
    if message.role == "user":
        return "## Prompt"
    if message.role == "tool":
        name = "a tool" if message.call is None else one_line(message.call.name)
        return f"## What {name} said" + (f" ({message.outcome})" if message.outcome != "done" else "")
    state = "edited" if message.statistics.get("finish_reason") == EDITED else message.state
    remarks = [message.model, "" if state == "complete" else state]
    return "## Answer" + (f" ({', '.join(filter(None, remarks))})" if any(remarks) else "")


def _fenced(text: str, *, language: str = "") -> str:
    """Return a text as a block of code, whatever fences stand in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text}\n{fence}"


def _check_keys(name: str, record: dict[str, Any], expected: Sequence[str]) -> None:
    if missing := [key for key in expected if key not in record]:
        raise ValueError(f"{name} has no {', '.join(missing)}")
    if unknown := [quote(key) for key in record if key not in expected]:
        raise ValueError(f"{name} has {', '.join(unknown)}, which this program does not know")


def _check_number(name: str, value: object, *, most: int) -> None:
    """Refuse what is no number of an earlier message in the file."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {quote(value)}, and must be a number from 0 to {most}")
