"""From what was typed and piped to one prompt: words, files named by `@`, and standard input as a named part."""

import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from profiles.errors import BadInputError
from tui.attachments import MAX_ATTACHMENT_BYTES, Attachment, read_attachment, with_attachments

STDIN_NAME = "standard input"
PATIENCE_SECONDS = 2.0
"""Within which standard input should end; after that a person is told what is waited for."""
_FILE_WORD = re.compile(r"(?<!\S)@(@|\S+)")
_PUNCTUATION = ".,;:!?)]}'\""


def build_question(words: Sequence[str], piped: str | None) -> str:
    """Return the prompt: what is attached, then the words.

    `words` are the arguments; `@PATH` in them attaches a text file, and `@@` is a plain `@`. `piped` is the text on
    standard input, if there is any; without words it is the question itself. Raises BadInputError for a file that is
    missing, no text or too long, and where nothing is asked.
    """
    attachments: dict[Path, Attachment] = {}
    text = " ".join(_without_files(words, attachments)).strip()
    parts = list(attachments.values())
    if piped is not None and piped.strip():
        if not text and not parts:
            return piped.strip()
        parts.append(Attachment(piped.removesuffix("\n"), STDIN_NAME))
    if not text:
        raise BadInputError('nothing is asked; write the question, as in overstory ask "What is new in @CHANGELOG.md?"')
    return with_attachments(text, parts)


def read_piped() -> str | None:
    """Return what is on standard input, None where that is a terminal or closed.

    Raises BadInputError for what is no text, or too long.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    patience = threading.Timer(PATIENCE_SECONDS, _tell_wait)
    patience.daemon = True
    patience.start()
    try:
        raw = sys.stdin.buffer.read(MAX_ATTACHMENT_BYTES + 1)
    except OSError:  # a descriptor that cannot be read, such as that of a folder
        return None
    finally:
        patience.cancel()
    if len(raw) > MAX_ATTACHMENT_BYTES:
        most = f"{MAX_ATTACHMENT_BYTES:,} bytes, the most that is attached"
        raise BadInputError(f"{STDIN_NAME} has more than {most}; send a part of it")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{STDIN_NAME} is no text in UTF-8; send text, or < /dev/null for none") from error
    if "\0" in text:
        raise BadInputError(f"{STDIN_NAME} holds binary data; send text, or < /dev/null for none")
    return text


def _without_files(words: Sequence[str], attachments: dict[Path, Attachment]) -> Iterator[str]:
    """Yield the words with files called by their names, and put those into `attachments`, each once."""

    def attach(path: Path) -> str:
        if path not in attachments:
            attachments[path] = read_attachment(path)
        return attachments[path].name

    def replaced(match: re.Match[str]) -> str:
        found = match[1]
        if found == "@":
            return "@"
        name = found if Path(found).exists() else found.rstrip(_PUNCTUATION)
        if not Path(name).exists():
            raise BadInputError(
                f"there is no file {name or found!r} to attach; mend its name, or write @@ for a plain @"
            )
        return attach(Path(name)) + found[len(name) :]

    for word in words:
        if word.startswith("@") and " " in word and Path(word[1:]).exists():  # quoted, for the spaces in its name
            yield attach(Path(word[1:]))
        else:
            yield _FILE_WORD.sub(replaced, word)


def _tell_wait() -> None:
    sys.stderr.write("overstory: waiting for standard input to end, which is no terminal (< /dev/null is none)\n")
    sys.stderr.flush()
