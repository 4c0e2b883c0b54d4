"""Code that grows, coloured without looking at all of it again for each line that comes.

A lexer knows nothing of where it stands, and a line may stand inside a string that began far above. So colouring begins
anew at a line only where that gave the same colours as beginning above it.
"""

from collections.abc import Sequence
from functools import cache

from textual.content import Content
from textual.highlight import ANSIDarkHighlightTheme, ANSILightHighlightTheme, HighlightTheme, highlight

TAB_SIZE = 4
WINDOW_LINES = 20
"""Lines that are coloured again with each that comes, before a later one is tried to begin at."""
LONGEST_LINE = 2_000
"""Characters; a longer line is data, which no colour explains and which a lexer may take seconds for."""


MISSPELLED = {
    "ans_red": "ansi_red",
    "ansi_blow": "ansi_blue",
    "ansi_yelllow": "ansi_yellow",
    "ansi_greenb": "ansi_green",
}
"""What Textual 8.2.8 calls some of the sixteen colours, and what they are called."""


@cache
def theme_for(*, is_ansi: bool, is_dark: bool) -> type[HighlightTheme]:
    """Return the colours for a terminal of few colours or of many."""
    if not is_ansi:
        return HighlightTheme
    theme = ANSIDarkHighlightTheme if is_dark else ANSILightHighlightTheme
    styles = {
        token: " ".join(MISSPELLED.get(word, word) for word in style.split()) for token, style in theme.STYLES.items()
    }
    return type(theme.__name__, (theme,), {"STYLES": styles})


def coloured(lines: Sequence[str], language: str, theme: type[HighlightTheme]) -> list[Content]:
    """Return the lines in colour, with spaces for tabs; plain if nobody knows the language or a line is data."""
    lines = [line.expandtabs(TAB_SIZE) for line in lines]
    if not language or any(len(line) > LONGEST_LINE for line in lines):
        return [Content(line) for line in lines]
    found = highlight("\n".join(lines), language=language, theme=theme).split("\n", allow_blank=True)
    return [*found, *(Content() for _ in range(len(lines) - len(found)))]  # it drops empty lines at the end


class GrowingCode:
    """The coloured lines of one code block; the last is coloured by itself until it is whole."""

    def __init__(self, language: str) -> None:
        self.num_coloured = 0
        """Lines that were coloured so far, each time."""
        self._language = language
        self._theme: type[HighlightTheme] = HighlightTheme
        self._colours: list[Content] = []
        self._last: Content | None = None
        self._start = 0  # a line at which colouring may begin anew

    def line(self, lines: Sequence[str], index: int, theme: type[HighlightTheme]) -> Content:
        """Return one of the lines in colour; `lines` are those of the last call, longer or with another end."""
        if theme is not self._theme:
            self._theme, self._colours, self._last, self._start = theme, [], None, 0
        if index == len(lines) - 1:
            if self._last is None or self._last.plain != lines[index].expandtabs(TAB_SIZE):
                (self._last,) = self._coloured(lines[index:])
            return self._last
        if len(self._colours) != len(lines) - 1:
            self._colour(lines[:-1])
        return self._colours[index]

    def _coloured(self, lines: Sequence[str]) -> list[Content]:
        self.num_coloured += len(lines)
        return coloured(lines, self._language, self._theme)

    def _colour(self, lines: Sequence[str]) -> None:
        is_growing = bool(self._colours)
        self._start = min(self._start, max(0, len(lines) - 1))
        tail = self._coloured(lines[self._start :])
        before = self._colours[self._start :]
        self._colours[self._start :] = [
            old if old is not None and _same(old, new) else new
            for old, new in zip([*before, *[None] * len(tail)], tail, strict=False)
        ]
        if is_growing and len(tail) > WINDOW_LINES:
            later = self._start + len(tail) // 2
            if all(map(_same, self._coloured(lines[later:]), self._colours[later:])):
                self._start = later


def _same(one: Content, other: Content) -> bool:
    return one.plain == other.plain and sorted(one.spans) == sorted(other.spans)
