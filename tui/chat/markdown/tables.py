"""Lays tables out: at their natural width, else with wrapped cells, else a line for each cell; nothing is cut."""

from collections.abc import Iterator, Sequence
from functools import cache, partial

from textual.content import Content

from tui.chat.markdown.blocks import Row, Table
from tui.chat.markdown.lines import Frame, Line, wrapped

GAP = "  "
MIN_COLUMN = 8
"""Cells of a column whose cells are wrapped; a table with less room for each becomes a list."""
LONG_WORD = 16
"""Cells; a longer word may be broken."""
LaidRows = dict[int, tuple[Row, list[Line]]]
"""Of each row, by its identity, its lines."""


def table_lines(table: Table, frame: Frame) -> Iterator[Line]:
    """Return the lines of a table; those of rows that have not changed are the very same as before."""
    num_columns = max(map(len, (table.header, *table.rows)))
    header = _filled(table.header, num_columns)
    rows = [header, *(_filled(row, num_columns) for row in table.rows)]
    columns = [[row[number] for row in rows] for number in range(num_columns)]
    widths = fitting_widths([max(map(_width, column)) for column in columns], columns, frame.width)
    if widths is None:
        yield from _as_list(header, rows[1:], frame)
        return
    alignments = [*table.alignments, *[""] * num_columns]
    key = (frame, widths)
    known = table.laid_rows[1] if table.laid_rows is not None and table.laid_rows[0] == key else {}
    kept: LaidRows = {}
    table.laid_rows = key, kept
    yield from _row_lines([cell.stylize(".table-header") for cell in header], widths, alignments, frame)
    yield Line(frame.rest, Content.styled(GAP.join("─" * width for width in widths), ".rule"), is_added=True)
    for row, cells in zip(table.rows, rows[1:], strict=True):
        _, lines = known.get(id(row)) or (row, list(_row_lines(cells, widths, alignments, frame.below)))
        kept[id(row)] = row, lines
        yield from lines


def fitting_widths(natural: Sequence[int], columns: Sequence[Sequence[Content]], width: int) -> tuple[int, ...] | None:
    """Return the widths of columns: as wide as they are, else fair shares; None where those would be slivers."""
    room = width - len(GAP) * (len(natural) - 1)
    if sum(natural) <= room:
        return tuple(natural)
    words = [min(LONG_WORD, max(map(_longest_word, column))) for column in columns]
    least = [min(each, max(MIN_COLUMN, word)) for each, word in zip(natural, words, strict=True)]
    if sum(least) > room:
        least = [min(each, MIN_COLUMN) for each in natural]
    if sum(least) > room:
        return None
    for _ in range(room - sum(least)):
        growing = [number for number, each in enumerate(natural) if least[number] < each]
        least[min(growing, key=least.__getitem__)] += 1
    return tuple(least)


def _filled(row: Sequence[Content], num_columns: int) -> list[Content]:
    return [*row, *[Content()] * (num_columns - len(row))]


def _width(cell: Content) -> int:
    return cell.cell_length if "\n" not in cell.plain else max(line.cell_length for line in cell.split("\n"))


def _longest_word(cell: Content) -> int:
    return cell.get_minimal_width({})


def _row_lines(
    cells: Sequence[Content], widths: Sequence[int], alignments: Sequence[str], frame: Frame
) -> Iterator[Line]:
    if any(_width(cell) > width or "\n" in cell.plain for cell, width in zip(cells, widths, strict=True)):
        columns = [cell.wrap(width) or [Content()] for cell, width in zip(cells, widths, strict=True)]
    else:
        columns = [[cell] for cell in cells]
    margin = frame.first
    for number in range(max(map(len, columns))):
        pieces = [column[number] if number < len(column) else Content() for column in columns]
        yield Line(margin, cache(partial(_joined, pieces, widths, alignments)))
        margin = frame.rest


def _joined(pieces: Sequence[Content], widths: Sequence[int], alignments: Sequence[str]) -> Content:
    return Content(GAP).join(map(_aligned, pieces, widths, alignments))


def _aligned(piece: Content, width: int, alignment: str) -> Content:
    room = max(0, width - piece.cell_length)
    left = {"right": room, "center": room // 2}.get(alignment, 0)
    return piece.pad(left, room - left)


def _as_list(header: Sequence[Content], rows: Sequence[Sequence[Content]], frame: Frame) -> Iterator[Line]:
    """Show each cell on a line of its own, behind the name of its column, with an empty line between rows."""
    for number, row in enumerate(rows):
        if number:
            yield Line(frame.rest)
        for name, cell in zip(header, row, strict=True):
            label = Content.assemble(name.stylize(".table-header"), ": ") if name else Content()
            yield from wrapped(Content.assemble(label, cell), frame if not number else frame.below)
            frame = frame.below
