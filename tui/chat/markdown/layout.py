"""Lays the blocks of an answer out in lines of a width; what has not changed is not laid out again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from rich.cells import cell_len
from textual.content import Content
from textual.style import Style

from tui.chat.markdown.blocks import Block, Body, Code, Item, Paragraph, Quote, Rule, Table
from tui.chat.markdown.code import TAB_SIZE
from tui.chat.markdown.lines import Frame, Line, Margin, wrapped
from tui.chat.markdown.tables import table_lines

BULLETS = "•▪‣◦"
CUT = "…"
"""At the end of a line of code that is longer than the screen is wide."""
CONTINUED = "↪ "
"""Before what goes on with the line of code above."""
WORD = "word"
"""Under which a style keeps what a click on it asks for."""
CodeLines = list[tuple[str, list[Line]]]
"""Of each line of code its text and its lines on the screen."""


def lay_out(body: Body, frame: Frame) -> list[Line]:
    """Return all lines of a body; those of blocks that have not changed are the very same as before."""
    lines: list[Line] = []
    before: Block | None = None
    below = frame.below
    for block, mark_width in zip(body.blocks, _mark_widths(body.blocks), strict=True):
        own = frame if before is None else below
        has_gap = before is not None and not _stands_close(before, block, is_in_list=frame.is_in_list)
        key = (own, has_gap, mark_width)
        if block.laid is None or block.laid[0] != key:
            gap = [Line(frame.rest)] if has_gap else []
            inner = _item_frame(block, own, mark_width) if isinstance(block, Item) else own
            block.laid = (key, [*gap, *_lines(block, inner)])
        lines += block.laid[1]
        before = block
    return lines or ([Line(frame.first)] if frame.first.shown else [])


def _stands_close(before: Block, block: Block, *, is_in_list: bool) -> bool:
    if not isinstance(block, Item):
        return False
    return not block.is_first if isinstance(before, Item) else is_in_list and isinstance(before, Paragraph)


def _mark_widths(blocks: Sequence[Block]) -> list[int]:
    """Of each item the characters that its list's numbers take, 0 of what is none."""
    widths: list[int] = []
    width = 0
    for block in reversed(blocks):
        is_numbered = isinstance(block, Item) and block.number is not None
        width = max(width, len(f"{block.number}. ")) if isinstance(block, Item) and is_numbered else 0
        widths.append(width)
        if isinstance(block, Item) and block.is_first:
            width = 0
    return widths[::-1]


def _item_frame(item: Item, frame: Frame, mark_width: int) -> Frame:
    """Return the frame of an item, behind its bullet or its number, right-aligned with the others of its list."""
    if item.number is None:
        frame = replace(frame, num_bullets=frame.num_bullets + 1)
        shown, written = f"{BULLETS[(frame.num_bullets - 1) % len(BULLETS)]} ", "- "
    else:
        written = f"{item.number}. "
        shown = written.rjust(mark_width)
    first = Margin(((shown, ".bullet"),), written)
    rest = Margin(((" " * len(shown), ""),), " " * len(written))
    return replace(frame.inside(first, rest), is_in_list=True)


def _lines(block: Block, frame: Frame) -> Iterator[Line]:
    match block:
        case Paragraph():
            style = f".h{block.level}" if block.level else ""
            yield from wrapped(block.content.stylize(style) if style else block.content, frame)
        case Rule():
            yield Line(frame.first, Content.styled("─" * frame.width, ".rule"), copied="---")
        case Code():
            yield from _code_lines(block, frame)
        case Table():
            yield from table_lines(block, frame)
        case Quote():
            bar = Margin((("▌ ", ".bar"),), "> ")
            yield from lay_out(block.body, frame.inside(bar, bar))
        case Item():
            yield from lay_out(block.body, frame)


def _code_lines(block: Code, frame: Frame) -> Iterator[Line]:
    yield Line(frame.first, partial(_code_head, block, frame), is_added=True, fill=".code-head", head_of=block)
    known: CodeLines = block.laid_lines[1] if block.laid_lines is not None and block.laid_lines[0] == frame else []
    kept: CodeLines = []
    block.laid_lines = frame.below, kept
    for number, text in enumerate(block.lines):
        if number < len(known) and known[number][0] == text:
            kept.append(known[number])
        else:
            kept.append((text, _code_line(block, number, frame.below)))
        yield from kept[-1][1]


def _code_line(block: Code, number: int, frame: Frame) -> list[Line]:
    text = block.lines[number].expandtabs(TAB_SIZE)
    colours = partial(block.colours.line, block.lines, number, frame.theme)
    room = frame.width - 2
    if cell_len(text) <= room:
        return [Line(frame.rest, colours, copied=block.lines[number], fill=".code")]
    if not frame.wraps_code:
        return [Line(frame.rest, partial(_clipped, colours, room), copied=block.lines[number], fill=".code")]
    cuts = _cuts(text, room)
    return [
        Line(
            frame.rest,
            partial(_part, colours, start, end),
            copied=text[start:end],
            fill=".code",
            is_continued=start > 0,
        )
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
    ]


def _cuts(text: str, room: int) -> list[int]:
    """Where a line of code is broken; what goes on has a sign before it."""
    cuts: list[int] = []
    used = 0
    for index, character in enumerate(text):
        cells = cell_len(character)
        if used + cells > room:
            cuts.append(index)
            used = len(CONTINUED)
        used += cells
    return cuts


def _part(colours: Callable[[], Content], start: int, end: int) -> Content:
    piece = colours()[start:end]
    return Content.assemble((CONTINUED, ".clip"), piece) if start else piece


def _clipped(colours: Callable[[], Content], room: int) -> Content:
    return Content.assemble(colours().truncate(room - 1), (CUT, ".clip"))


def _code_head(block: Code, frame: Frame) -> Content:
    """The language, the number of lines, and words that wrap and copy."""
    num_lines = len(block.lines)
    name = block.language or ("text" if block.is_named else "")
    left = Content.assemble((name, ".code-language"), f" · {num_lines} line{'s' if num_lines != 1 else ''}")
    words = ["copy"]
    if any(cell_len(line.expandtabs(TAB_SIZE)) > frame.width - 2 for line in block.lines):
        words.insert(0, "unwrap" if frame.wraps_code else "wrap")
    right = Content.assemble(*((f" {word} ", Style.from_meta({WORD: word})) for word in words))
    room = frame.width - right.cell_length
    if room < len(name):
        return right
    return Content.assemble(left.truncate(room - 1, pad=True), right.stylize_before(".code-action"))
