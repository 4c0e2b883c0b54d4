"""How an answer is shown while it comes: Markdown on a terminal, its text alone on a pipe, one JSON object at the end.

Whatever else is said goes to stderr, so that stdout has the answer and nothing more.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol, TextIO

from markdown_it import MarkdownIt
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments
from rich.text import Text

from tui.ask.pieces import Ended, Piece, Said, Waits
from tui.terminal_text import counted, one_line, show_terminal_escapes, strip_terminal_escapes

FRAME_SECONDS = 0.08
"""Between two drawings of what still grows."""


class Display(Protocol):
    """Shows the pieces of one answer; a context manager."""

    def show(self, piece: Piece) -> None:
        """Show one more piece."""

    def __enter__(self) -> "Display": ...

    def __exit__(self, *_: object) -> None: ...


class PlainDisplay:
    """The answer's text on `out` as it comes; on a terminal's stderr what is waited for, and thinking in short."""

    def __init__(self, out: TextIO, console: Console, *, shows_thinking: bool = False) -> None:
        """`console` is that of stderr."""
        self._out = out
        self._console = console
        self._shows_thinking = shows_thinking
        self._thinking = _ThinkingLine()
        self._stack = ExitStack()
        self._status: Live | None = None
        self._is_at_line_end = True

    def show(self, piece: Piece) -> None:
        if isinstance(piece, Waits):
            self._say(piece.words)
        elif isinstance(piece, Said) and piece.is_thinking:
            self._thinking.add(piece.text)
            if self._shows_thinking:
                self._clear()
                self._console.print(Text(show_terminal_escapes(piece.text), style="dim"), end="")
            else:
                self._say(self._thinking.words())
        elif isinstance(piece, Said):
            self._clear()
            self._write(strip_terminal_escapes(piece.text))

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
            self._is_at_line_end = text.endswith("\n")

    def _say(self, words: str) -> None:
        if self._console.quiet:
            return
        if self._status is None:
            self._status = Live(console=self._console, transient=True, auto_refresh=False)
            self._stack.enter_context(self._status)
        self._status.update(_status_text(words), refresh=True)

    def _clear(self) -> None:
        self._status = None
        self._stack.close()

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the answer on whole lines, also one that was broken off."""
        self._clear()
        if not self._is_at_line_end:
            self._write("\n")


class JsonDisplay(PlainDisplay):
    """One JSON object once the answer has ended, or was broken off."""

    def __init__(self, out: TextIO, console: Console, *, facts: Callable[[], dict[str, Any]]) -> None:
        """`facts` are what else the object holds, asked for at its end."""
        super().__init__(out, console)
        self._facts = facts
        self._texts: dict[bool, list[str]] = {False: [], True: []}
        self._ended: Ended | None = None

    def show(self, piece: Piece) -> None:
        if isinstance(piece, Said):
            self._texts[piece.is_thinking].append(piece.text)
            if piece.is_thinking:
                super().show(piece)
            else:
                self._say(f"{counted(sum(map(len, self._texts[False])), 'character')} came")
        elif isinstance(piece, Ended):
            self._ended = piece
        else:
            super().show(piece)

    def __exit__(self, *problem: object) -> None:
        self._clear()
        has_text = any(self._texts.values())
        if self._ended is None and not has_text:
            return  # an error, which is told on stderr
        ended = self._ended or Ended(finish_reason="stopped")
        record = {
            "text": "".join(self._texts[False]),
            "reasoning": "".join(self._texts[True]) or None,
            "finish_reason": ended.finish_reason,
            "usage": ended.usage or None,
            **self._facts(),
        }
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()


class MarkdownDisplay:
    """Markdown on a terminal: each block is printed once it is whole, and the last one is drawn while it grows."""

    def __init__(
        self, console: Console, *, shows_thinking: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`console` is that of stdout."""
        self._console = console
        self._shows_thinking = shows_thinking
        self._clock = clock
        self._thinking = _ThinkingLine(clock)
        self._live = Live(console=console, transient=True, auto_refresh=False, vertical_overflow="visible")
        self._growing = ""  # the blocks that are not printed yet
        self._parser = MarkdownIt("commonmark").enable("table")
        self._has_thought = self._has_printed = False
        self._drawn_at = float("-inf")

    def show(self, piece: Piece) -> None:
        if isinstance(piece, Waits):
            self._draw(_status_text(piece.words))
        elif isinstance(piece, Said) and piece.is_thinking:
            self._thinking.add(piece.text)
            thought = self._thinking.text if self._shows_thinking else ""
            lines = [Text(show_terminal_escapes(thought), style="dim")] if thought else []
            self._draw(self._last_lines(Group(*lines, _status_text(self._thinking.words()))))
        elif isinstance(piece, Said):
            self._end_thinking()
            self._growing += show_terminal_escapes(piece.text.replace("\r\n", "\n"))
            self._print_blocks()
            self._draw(self._last_lines(_markdown(self._growing)))

    def _draw(self, content: RenderableType) -> None:
        """Draw it over a blank line, where the terminal writes ^C: behind a full line that would begin a new one."""
        now = self._clock()
        if now - self._drawn_at >= FRAME_SECONDS:
            self._drawn_at = now
            self._live.update(Group(content, Text("")), refresh=True)

    def _last_lines(self, content: RenderableType) -> RenderableType:
        """Return what of the content a screen holds; its beginning is printed once it is whole."""
        return _joined(self._lines(content)[-max(1, self._console.height - 2) :])

    def _lines(self, content: RenderableType) -> list[list[Segment]]:
        """Return the lines of the content without the blank ones around it, which rich draws around some blocks."""
        lines = self._console.render_lines(content, self._console.options, pad=False)
        full = [index for index, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        return lines[full[0] : full[-1] + 1] if full else []

    def _end_thinking(self) -> None:
        if self._thinking.text and not self._has_thought:
            self._has_thought = True
            if self._shows_thinking:
                self._print(Text(show_terminal_escapes(self._thinking.text.strip()), style="dim"))
            self._print(Text(self._thinking.words(is_over=True), style="dim"))

    def _print_blocks(self, *, is_over: bool = False) -> None:
        """Print all blocks but the last, which more text may belong to; that too if it `is_over`."""
        tokens = [token for token in self._parser.parse(self._growing) if token.level == 0 and token.nesting >= 0]
        starts = [token.map[0] for token in tokens if token.map]
        lines = self._growing.split("\n")
        ends = [*starts[1:], *([len(lines)] if is_over and starts else [])]
        for start, end in zip(starts, ends, strict=False):
            self._print(_markdown("\n".join(lines[start:end])))
        if ends:
            self._growing = "\n".join(lines[ends[-1] :])

    def _print(self, content: RenderableType) -> None:
        if self._has_printed:
            self._console.print()
        self._has_printed = True
        self._live.update(Text(""), refresh=True)
        self._console.print(_joined(self._lines(content)), end="")

    def __enter__(self) -> "MarkdownDisplay":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Print what is left, also of an answer that was broken off."""
        self._end_thinking()
        self._print_blocks(is_over=True)
        self._live.update(Text(""), refresh=True)
        self._live.stop()


class _ThinkingLine:
    """What is said of thinking instead of all of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: float | None = None
        self.text = ""

    def add(self, text: str) -> None:
        self._begun = self._clock() if self._begun is None else self._begun
        self.text += text

    def words(self, *, is_over: bool = False) -> str:
        """Return how much was thought, and for how long."""
        seconds = 0.0 if self._begun is None else self._clock() - self._begun
        verb = "thought" if is_over else "thinking"
        return f"{verb}, {counted(len(self.text.split()), 'word')}, {seconds:.0f} s"


def _joined(lines: list[list[Segment]]) -> Segments:
    return Segments([segment for line in lines for segment in (*line, Segment.line())])


def _markdown(text: str) -> Markdown:
    """Return what draws it in the terminal's own colours, with addresses of links as text."""
    return Markdown(text, hyperlinks=False, code_theme="ansi_dark")


def _status_text(words: str) -> Text:
    return Text(one_line(words), style="dim", overflow="ellipsis", no_wrap=True)


def display_for(*, as_json: bool, is_quiet: bool, shows_thinking: bool, facts: Callable[[], dict[str, Any]]) -> Display:
    """Return what shows an answer on this stdout and stderr."""
    errors = Console(stderr=True, highlight=False, emoji=False)
    errors.quiet = is_quiet or not errors.is_terminal
    if as_json:
        return JsonDisplay(sys.stdout, errors, facts=facts)
    out = Console(highlight=False, emoji=False)
    if out.is_terminal and not out.is_dumb_terminal:
        return MarkdownDisplay(out, shows_thinking=shows_thinking)
    return PlainDisplay(sys.stdout, errors, shows_thinking=shows_thinking)
