"""What a person pastes, whole: a repair of how Textual (8.2.8) reads the terminal.

Textual's parser forgets that it is within a bracketed paste once it meets an escape there: what follows is taken for
keys and obeyed, so that a coloured log sends itself or quits the app. And bytes that are no UTF-8 end its input thread.
"""

import sys
from codecs import getincrementaldecoder
from collections.abc import Iterable
from functools import partial

from textual import events
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.message import Message


class PasteParser(XTermParser):
    """Textual's parser, except that everything between the marks of a bracketed paste is text."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._tail = ""  # the last characters, which may begin the mark that is waited for
        self._pasted: list[str] | None = None

    def feed(self, data: str) -> Iterable[Message]:
        """Yield the messages of the next characters; none is the end of the input."""
        if not data:
            yield from super().feed(data)
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


def repair_terminal_input() -> None:
    """Let Textual's driver read the terminal by `PasteParser`, and show bytes that are no UTF-8 as U+FFFD."""
    if sys.platform == "win32":
        from textual.drivers import win32

        vars(win32).update(XTermParser=PasteParser)
    else:
        from textual.drivers import linux_driver

        vars(linux_driver).update(
            XTermParser=PasteParser,
            getincrementaldecoder=lambda name: partial(getincrementaldecoder(name), errors="replace"),
        )
