"""Draws a page as Markdown with tables, as GitHub and most others read it; all of its texts are escaped here."""

import re
from collections.abc import Iterator, Sequence

from tui.chat.machine.drawing import column_chart
from tui.report.page import Chart, Facts, Page, Part, Table, regrouped
from tui.terminal_text import show_terminal_escapes

_OBEYED = re.compile(r"[\\`*_\[\]<>|~$&#]")
_LINKED = re.compile(r":(?=//)|(?<=www)\.|@", re.IGNORECASE)
"""What makes a bare address a link."""
_CHART_COLUMNS, _CHART_ROWS = 72, 6


def to_markdown(page: Page) -> str:
    """Return the whole file."""
    lines = [f"# {escaped(page.title)}", "", escaped(page.summary)]
    for section in page.sections:
        lines += ["", f"## {escaped(section.title)}"]
        for part in section.parts:
            drawn = list(_lines(part))
            lines += ["", *drawn] if drawn else []
    return "\n".join([*lines, ""])


def escaped(text: str) -> str:
    """Return text on one line that is nothing but text, also in a table."""
    line = " ".join(show_terminal_escapes(text).split())
    line = _OBEYED.sub(lambda found: f"&#{ord(found[0])};", line)
    return _LINKED.sub(lambda found: f"&#{ord(found[0])};", line)


def _lines(part: Part) -> Iterator[str]:
    if isinstance(part, Facts):
        yield from _table(("", ""), part.rows, num_words=2)
    elif isinstance(part, Table):
        yield from _table(part.headings, part.rows, num_words=part.num_words)
    elif isinstance(part, Chart):
        if part.is_in_text:
            yield from _chart(part)
    else:
        yield escaped(part)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, num_words: int) -> Iterator[str]:
    kinds = ("---" if place < num_words else "---:" for place in range(len(headings)))
    for cells in (map(escaped, headings), kinds, *(map(escaped, row) for row in rows)):
        yield f"| {' | '.join(cells)} |"


def _chart(chart: Chart) -> Iterator[str]:
    values = regrouped(chart.values, _CHART_COLUMNS)
    highest = chart.top or max(values, default=0.0) or 1.0
    yield escaped(f"{chart.title}, {chart.unit}; the top is {highest:.3g}")
    yield ""
    yield "```"
    yield from column_chart([value / highest for value in values], height=_CHART_ROWS, step=1, width=_CHART_COLUMNS)
    yield _marks(chart, len(values))
    yield "```"


def _marks(chart: Chart, width: int) -> str:
    """Return the words below the columns, without those that would touch the ones before."""
    line = ""
    for place, words in chart.marks:
        start = round(place * width / max(1, len(chart.values)))
        if start > len(line) or not line:
            line = line.ljust(start) + words.replace("`", "'")
    return line
