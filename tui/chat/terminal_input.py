"""What a person pastes, whole, and what the terminal tells: repairs of how Textual (8.2.8) deals with the terminal.

Textual's parser forgets that it is within a bracketed paste once it meets an escape there: what follows is taken for
keys and obeyed, so that a coloured log sends itself or quits the app. Bytes that are no UTF-8 end its input thread.
What a terminal says of its background would be typed. And an app that is stopped from outside reads its keys in two
threads once it is continued.
"""

import re
import sys
import time
from codecs import getincrementaldecoder
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from textual import events
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.message import Message

BACKGROUND_QUERY = "\x1b]11;?\x1b\\"
"""Asks the terminal for the colour of its background (xterm's control sequences, OSC 11)."""
_ANSWER = re.compile(
    r"\x1b\]11;rgba?:([\da-f]{1,4})/([\da-f]{1,4})/([\da-f]{1,4})[^\x07\x1b]*(?:\x07|\x1b\\)", re.IGNORECASE
)
_ANSWER_BEGIN = "\x1b]11;"
_MAX_ANSWER = 64
_HELD_SECONDS = 0.1
_ESCAPE_IS_HELD_SECONDS = 3.0
"""After the start, while the answer is awaited: an escape by itself may begin it."""
_NEVER_ASKED = {"", "dumb", "linux", "cons25", "unknown"}
"""Terminals that would draw the question, or stumble over it; so would those of the VT series."""


def tells_background(environment: Mapping[str, str]) -> bool:
    """Return whether a terminal may be asked for its background: one that cannot answer might draw the question."""
    terminal = environment.get("TERM", "")
    return terminal not in _NEVER_ASKED and not terminal.startswith("vt")


@dataclass
class TerminalBackground(Message):
    """The terminal has told the colour of its background."""

    luminance: float
    """From 0, black, to 1, white."""


class PasteParser(XTermParser):
    """Textual's parser, but between the marks of a bracketed paste all is text, and the terminal's answer is none."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._tail = ""  # the last characters, which may begin the mark that is waited for
        self._pasted: list[str] | None = None
        self._held = ""  # what may begin the terminal's answer
        self._held_at = self._began_at = time.monotonic()

    def feed(self, data: str) -> Iterable[Message]:
        """Yield the messages of the next characters; none is the end of the input."""
        data, self._held, is_end = self._held + data, "", not data
        if self._pasted is None and not is_end:
            typed, mark, pasted = data.partition(BRACKETED_PASTE_START)
            typed = yield from self._without_answer(typed)
            if mark:
                typed, self._held = typed + self._held, ""
            data = typed + mark + pasted
        yield from self._keys_and_pastes(data)
        if is_end:
            yield from super().feed("")

    def tick(self) -> Iterable[Message]:
        """Yield what was held back for an answer that does not come; the beginning of one is left out."""
        if self._held and time.monotonic() - self._held_at > _HELD_SECONDS:
            held, self._held = self._held, ""
            if not held.startswith(_ANSWER_BEGIN):
                yield from self._keys_and_pastes(held)
        yield from super().tick()

    def _without_answer(self, data: str) -> Generator[Message, None, str]:
        """Take out what the terminal says of its background, also if it comes in pieces; return the rest."""
        if (found := _ANSWER.search(data)) is not None:
            red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in found.groups())
            yield TerminalBackground(0.299 * red + 0.587 * green + 0.114 * blue)
            data = data[: found.start()] + data[found.end() :]
        begin = data.rfind("\x1b]")
        if begin < 0 and data.endswith("\x1b") and time.monotonic() - self._began_at < _ESCAPE_IS_HELD_SECONDS:
            begin = len(data) - 1
        rest = data[begin:] if begin >= 0 else ""
        if rest and len(rest) <= _MAX_ANSWER and (_ANSWER_BEGIN.startswith(rest) or rest.startswith(_ANSWER_BEGIN)):
            self._held, self._held_at = rest, time.monotonic()
            return data[:begin]
        return data

    def _keys_and_pastes(self, data: str) -> Iterable[Message]:
        while data:
            mark = BRACKETED_PASTE_START if self._pasted is None else BRACKETED_PASTE_END
            found = (self._tail + data).find(mark)
            end = len(data) if found < 0 else found + len(mark) - len(self._tail)
            piece, data = data[:end], data[end:]
            self._tail = "" if found >= 0 else (self._tail + piece)[1 - len(mark) :]
            if self._pasted is None:
                yield from super().feed(piece)
                self._pasted = None if found < 0 else []
                continue
            self._pasted.append(piece)
            if found >= 0:
                text = "".join(self._pasted).removesuffix(mark).replace("\0", "")
                self._pasted = None
                yield events.Paste(text)
                yield from (message for message in super().feed(mark) if not isinstance(message, events.Paste))


def _continue(driver: Any, *_: object) -> None:
    """Take the terminal again after a stop, whoever stopped the app: only Ctrl+Z and SIGTSTP let it put things away."""
    if not driver._auto_restart:
        return
    if not driver._must_signal_resume:
        driver.suspend_application_mode()
        driver._must_signal_resume = True
    driver.resume_application_mode()


def repair_terminal_input() -> None:
    """Let Textual's driver read by `PasteParser`, show bytes that are no UTF-8 as U+FFFD, and come back from a stop."""
    if sys.platform == "win32":
        from textual.drivers import win32

        vars(win32).update(XTermParser=PasteParser)
    else:
        from textual.drivers import linux_driver

        setattr(linux_driver.LinuxDriver, "_sigcont_application", _continue)  # noqa: B010 - which mypy takes for a fault
        vars(linux_driver).update(
            XTermParser=PasteParser,
            getincrementaldecoder=lambda name: partial(getincrementaldecoder(name), errors="replace"),
        )
