"""Lines of the screen, before anything is drawn: what stands left of a text, how wide it may be, how it is copied.

A line is drawn when it is seen for the first time. Styles are names, such as `.strong`, that whoever draws looks up.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from textual.content import Content
from textual.highlight import HighlightTheme
from textual.strip import Strip

from tui.chat.markdown.code import TAB_SIZE

MIN_WIDTH = 12
"""Of a line's text; a quote or list in which less would be left is neither marked nor indented."""
NOTHING = Content()


@dataclass(frozen=True, slots=True)
class Margin:
    """What stands left of a block: as it is shown, with a style, and as it is copied."""

    shown: tuple[tuple[str, str], ...] = ()
    written: str = ""

    @property
    def width(self) -> int:
        """In cells, each of which is a character."""
        return sum(len(text) for text, _ in self.shown)

    def __add__(self, other: "Margin") -> "Margin":
        return Margin(self.shown + other.shown, self.written + other.written)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a block is laid out: how wide, with what on the left of its first line and of the others."""

    width: int
    first: Margin = Margin()
    rest: Margin = Margin()
    num_bullets: int = 0
    """Lists with bullets that it stands in."""
    is_in_list: bool = False
    wraps_code: bool = False
    theme: type[HighlightTheme] = HighlightTheme

    def inside(self, first: Margin, rest: Margin) -> "Frame":
        """Return the frame of what stands within a quote or list item, or this one if there is no room for a mark."""
        width = self.width - rest.width
        if width < MIN_WIDTH:
            return self
        return replace(self, width=width, first=self.first + first, rest=self.rest + rest)

    @property
    def below(self) -> "Frame":
        """The frame of what is not the first."""
        return replace(self, first=self.rest)


class Line:
    """One line of the screen."""

    __slots__ = ("copied", "drawn", "fill", "head_of", "is_added", "is_continued", "make", "margin")

    def __init__(
        self,
        margin: Margin,
        content: Content | Callable[[], Content] = NOTHING,
        *,
        copied: str | None = None,
        fill: str = "",
        is_added: bool = False,
        head_of: object = None,
        is_continued: bool = False,
    ) -> None:
        self.margin = margin
        self.make: Callable[[], Content] = partial(_itself, content) if isinstance(content, Content) else content
        """Returns what stands right of the margin, the same object as long as it is the same."""
        self.copied = copied
        """Text without the margin; None if it is what is shown."""
        self.fill = fill
        """Style of the line from the margin to the right."""
        self.is_added = is_added
        """Whether it is the app's own, such as the head of a code block, and never copied."""
        self.head_of = head_of
        """The block of code that it stands above."""
        self.is_continued = is_continued
        """Whether it goes on with the text of the line above."""
        self.drawn: tuple[object, Content, Strip] | None = None
        """Under which styles, what, and how."""


def wrapped(content: Content, frame: Frame) -> Iterator[Line]:
    """Break text into lines of a frame."""
    margin = frame.first
    for text in content.expand_tabs(TAB_SIZE).split("\n", allow_blank=True) or [Content()]:
        start = 0
        pieces: list[Content] = text.wrap(frame.width) or [NOTHING]
        for number, piece in enumerate(pieces):
            after = text.plain.find(piece.plain, start) + len(piece.plain)
            if number + 1 < len(pieces):
                after = text.plain.find(pieces[number + 1].plain, after)
            yield Line(margin, piece, copied=text.plain[start:after], is_continued=number > 0)
            start, margin = after, frame.rest


def _itself(content: Content) -> Content:
    return content


def text_of(line: Line) -> str:
    """Return what of a line is copied, without its margin."""
    return line.make().plain.rstrip() if line.copied is None else line.copied
