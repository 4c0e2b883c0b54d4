"""Draws a page as one HTML file: no script, nothing from elsewhere, light and dark as the reader's system says.

Whatever a page says is escaped here, and nowhere else; what a browser would obey in text, such as an override of its
direction, is shown as a sign.
"""

import html
import math
from collections.abc import Iterator, Sequence

from tui.report.page import Chart, Facts, Page, Part, Section, Table
from tui.terminal_text import show_terminal_escapes

_WIDTH, _HEIGHT = 720, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 24
"""What surrounds the columns of a chart."""
_NUM_TICKS = 4
_GAP = 0.12
"""Share of a column's place that stays empty, where columns are wide enough for it."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #5b6672; --line: #d5dae0; --paper: #fff; --bar: #3b73c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ec; --soft: #98a3af; --line: #39424d; --paper: #14181d; --bar: #6c9fe6; }
}
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --bar: #555; }
  section { break-inside: avoid; }
}
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.summary { color: var(--soft); }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; }
.facts th { width: 9rem; font-weight: 400; }
.figure { text-align: right; white-space: nowrap; padding: .2rem 0 .2rem .8rem; }
figure { margin: .8rem 0; }
figcaption { color: var(--soft); font-size: .9rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; font-family: system-ui, sans-serif; }
svg line { stroke: var(--line); }
svg rect { fill: var(--bar); }
"""


def to_html(page: Page) -> str:
    """Return the whole file."""
    title = escaped(page.title)
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{title}</h1>",
            f'<p class="summary">{escaped(page.summary)}</p>',
            *map(_section, page.sections),
            "</body>",
            "</html>",
            "",
        )
    )


def escaped(text: str) -> str:
    """Return text that is nothing but text wherever it stands, also in an attribute."""
    return html.escape(show_terminal_escapes(text), quote=True)


def _section(section: Section) -> str:
    return "\n".join(("<section>", f"<h2>{escaped(section.title)}</h2>", *map(_part, section.parts), "</section>"))


def _part(part: Part) -> str:
    if isinstance(part, Facts):
        rows = (f"<tr><th scope=row>{escaped(name)}</th><td>{escaped(text)}</td></tr>" for name, text in part.rows)
        return "\n".join(('<table class="facts">', *rows, "</table>"))
    if isinstance(part, Table):
        return _table(part)
    return _figure(part) if isinstance(part, Chart) else f"<p>{escaped(part)}</p>"


def _table(table: Table) -> str:
    def row(name: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{name}{' class=figure' if place >= table.num_words else ''}>{escaped(cell)}</{name}>"
            for place, cell in enumerate(cells)
        )

    rows = (f"<tr>{row('td', cells)}</tr>" for cells in table.rows)
    return "\n".join(("<table>", f"<tr>{row('th', table.headings)}</tr>", *rows, "</table>"))


def _figure(chart: Chart) -> str:
    caption = escaped(f"{chart.title}, {chart.unit}")
    return "\n".join(
        (
            "<figure>",
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{caption}">',
            *_scale(chart),
            *_columns(chart),
            *_marks(chart),
            "</svg>",
            f"<figcaption>{caption}</figcaption>",
            "</figure>",
        )
    )


def _highest(chart: Chart) -> float:
    return chart.top or round_up(max(chart.values, default=0.0))


def round_up(value: float) -> float:
    """Return the least of 1, 2, 3, 4, 5, 6, 8 or 10 times a power of ten that is no less; 1 for nothing."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10, 20) if step * power >= value * (1 - 1e-9))


def _x(chart: Chart, place: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * place / max(1, len(chart.values))


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(1.0, max(0.0, share))


def _scale(chart: Chart) -> Iterator[str]:
    highest = _highest(chart)
    for tick in range(_NUM_TICKS + 1):
        y = _y(tick / _NUM_TICKS)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        label = escaped(f"{highest * tick / _NUM_TICKS:.3g}")
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _columns(chart: Chart) -> Iterator[str]:
    highest = _highest(chart)
    gap = _GAP if len(chart.values) <= 100 else 0.0
    for place, value in enumerate(chart.values):
        left, right, top = _x(chart, place + gap / 2), _x(chart, place + 1 - gap / 2), _y(value / highest)
        if value > 0:
            size = f'width="{right - left:.2f}" height="{_y(0) - top:.1f}"'
            yield f'<rect x="{left:.2f}" y="{top:.1f}" {size}/>'


def _marks(chart: Chart) -> Iterator[str]:
    for place, words in chart.marks:
        anchor = "start" if place <= 0 else "end" if place >= len(chart.values) else "middle"
        yield f'<text x="{_x(chart, place):.1f}" y="{_HEIGHT - 7}" text-anchor="{anchor}">{escaped(words)}</text>'
