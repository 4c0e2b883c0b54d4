"""Texts that go along with a prompt: files and long pastes, each a named, fenced part before the words themselves.

A message is one text, as the model reads it; what was attached is found in it again, to be shown in a line.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiles.errors import BadInputError
from profiles.files import read_regular_file
from tui.terminal_text import counted, one_line, show_terminal_escapes

MAX_ATTACHMENT_BYTES = 1 << 19
"""More than most contexts hold: about 130,000 tokens of English."""
LONG_PASTE_CHARACTERS, LONG_PASTE_LINES = 2_000, 30
"""A paste of more than either is attached instead of written into the prompt."""
_HEAD = re.compile(r"(?:Attached file (?P<name>[^\n]+)|Pasted text) \([\d,]+ lines?\):\n(?P<fence>`{3,})\n")
_FENCE = re.compile("`{3,}")
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """One text that goes along."""

    text: str
    """Its lines, without the end of the last one."""
    name: str = ""
    """The file's, on one line; empty for what was pasted."""

    @property
    def num_lines(self) -> int:
        return self.text.count("\n") + 1

    @property
    def label(self) -> str:
        """What it is, in a few words: `notes.txt, 12 lines`."""
        return f"{self.name or 'pasted text'}, {counted(self.num_lines, 'line')}"

    @property
    def block(self) -> str:
        """What the model reads of it: a line that names it, and the text between fences longer than any in it."""
        kind = f"Attached file {self.name}" if self.name else "Pasted text"
        fence = "`" * max(3, *(len(found) + 1 for found in _FENCE.findall(self.text)), 0)
        return f"{kind} ({counted(self.num_lines, 'line')}):\n{fence}\n{self.text}\n{fence}"


def read_attachment(path: Path, *, max_bytes: int = MAX_ATTACHMENT_BYTES) -> Attachment:
    """Read a text file to be attached.

    Raises BadInputError, one sentence, for a file that cannot be read, holds no text or is too large.
    """
    where = shown_name(path)
    try:
        raw = read_regular_file(path, max_bytes=max_bytes)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"{where} cannot be attached: {reason}; choose a text file that can be read") from error
    except ValueError as error:
        most = f"{max_bytes:,} bytes, the most that is attached"
        raise BadInputError(f"{where} has more than {most}; attach a part of it") from error
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadInputError(f"{where} is no text in UTF-8, so it cannot be attached; choose a text file") from error
    if "\0" in text:
        raise BadInputError(f"{where} holds binary data, so it cannot be attached; choose a text file")
    if not text.strip():
        raise BadInputError(f"{where} is empty, so there is nothing to attach; choose another file")
    return Attachment(_whole_lines(text), where)


def pasted(text: str) -> Attachment:
    """Return what was pasted as an attachment."""
    return Attachment(_whole_lines(text))


def is_long_paste(text: str) -> bool:
    """Return whether a paste is so long that the prompt could not be read beside it."""
    return len(text) > LONG_PASTE_CHARACTERS or len(text.splitlines()) > LONG_PASTE_LINES


def shown_name(path: Path) -> str:
    """Return what a file is called: its path from the working folder, where it lies in it; safe to print."""
    folder = Path.cwd()
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    return show_terminal_escapes(one_line(str(shown))) or "the file"


def with_attachments(text: str, attachments: Iterable[Attachment]) -> str:
    """Return a message: what is attached, then the words about it. `split_attachments` takes it apart."""
    blocks = [each.block for each in attachments]
    return "\n\n".join((*blocks, text) if text or not blocks else blocks)


def split_attachments(message: str) -> tuple[tuple[Attachment, ...], str]:
    """Return what is attached to a message, and its words; put together again they are that message."""
    found, start = [], 0
    while (head := _HEAD.match(message, start)) is not None:
        end = message.find(f"\n{head['fence']}", head.end() - 1)
        attachment = Attachment(message[head.end() : end], head["name"] or "")
        end = start + len(attachment.block)
        separator = message[end : end + 2]
        if message[start:end] != attachment.block or separator not in ("", "\n\n"):
            break
        found.append(attachment)
        start = end + len(separator)
        if separator and start == len(message):  # the words are none, which is written without a separator
            return (), message
    return tuple(found), message[start:]


def joined_messages(messages: Sequence[str]) -> str:
    """Return one message of several: all that is attached, then their words, a line each."""
    parts = [split_attachments(message) for message in messages]
    attachments = [each for attached, _ in parts for each in attached]
    return with_attachments("\n".join(text for _, text in parts if text), attachments)


def in_brief(message: str) -> str:
    """Return a message on one line, with the names of what is attached instead of the texts."""
    attachments, text = split_attachments(message)
    return one_line(" ".join((*(f"[{each.label}]" for each in attachments), text)))


def _whole_lines(text: str) -> str:
    """Return the text with line ends of one kind, without the last."""
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
