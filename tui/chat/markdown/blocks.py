"""The blocks of an answer that grows: what has settled is never parsed again.

A text is a list of lines, each container's without what marks it, such as `> `. Lines that come can change the last
block only, and of a quote or a list item only its own last block, as long as they belong to it.
"""

import logging
import re
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markdown_it.token import Token
from textual.content import Content

from tui.chat.markdown.code import GrowingCode
from tui.chat.markdown.parser import inline_content, parser
from tui.terminal_text import show_terminal_escapes

MAX_DEPTH = 10
"""Of quotes and lists in each other; what is deeper stands there as it was written."""
_MARKER = re.compile(r"( *)([-*+]|\d{1,9}[.)])( *)")
_START = re.compile(r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]*)?")
_QUOTE = re.compile(r" {0,3}> ?")
_SURELY_ROW = re.compile(r" {0,3}(?:\||[^\W\d_]|\d+(?![\d.)])|\*\*?[^\s*]|`[^`])")
"""A line that can begin no other block; what begins one ends a table."""
_LAZY = "    "
"""Before a line that belongs to a paragraph without standing where its container's lines do: it begins nothing."""
_BREAK = re.compile(r"<br ?/?>", re.IGNORECASE)
References = MutableMapping[str, Any]
Row = list[Content]


@dataclass(eq=False, slots=True)
class Block:
    """A part of a text, and how it was laid out last."""

    laid: Any = field(default=None, init=False)


@dataclass(eq=False, slots=True)
class Paragraph(Block):
    """Text; a heading has a level."""

    content: Content
    level: int = 0
    is_formula: bool = False


@dataclass(eq=False, slots=True)
class Rule(Block):
    """A line across."""


@dataclass(eq=False, slots=True)
class Code(Block):
    """Lines of code; `is_open` while more may come."""

    language: str
    lines: list[str]
    fence: str = ""
    """What its first line begins with; empty for a block that is only indented."""
    is_named: bool = True
    """Whether its first line was whole when the language was read."""
    is_open: bool = False
    colours: GrowingCode = field(init=False)
    laid_lines: Any = field(default=None, init=False)
    """For which frame, and of each line its text and its lines on the screen."""

    def __post_init__(self) -> None:
        self.colours = GrowingCode(self.language)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(eq=False, slots=True)
class Table(Block):
    """Cells; every row is as long as the header, or longer."""

    header: Row
    alignments: list[str]
    rows: list[Row]
    is_open: bool = True
    laid_rows: Any = field(default=None, init=False)
    """For which frame and widths, and of each row its lines."""


@dataclass(eq=False, slots=True)
class Quote(Block):
    """A quoted text."""

    body: "Body"

    def inner(self, line: str) -> str | None:
        """Return a line without its mark; None if it has none."""
        return _QUOTE.sub("", line, count=1) if _QUOTE.match(line) and "\t" not in line else None


@dataclass(eq=False, slots=True)
class Item(Block):
    """One item of a list; `number` is None for a bullet."""

    body: "Body"
    number: int | None
    is_first: bool
    marker_width: int
    """Characters that its other lines are indented by."""

    def inner(self, line: str) -> str | None:
        """Return a line without its indent; None if it has less."""
        line = _spaced(line)
        return line[self.marker_width :] if line[: self.marker_width].strip() == "" else None


class Body:
    """The blocks of a text, or of a quote or list item in it."""

    def __init__(self, references: References, *, depth: int = 0, lines: Sequence[str] = ()) -> None:
        self.blocks: list[Block] = []
        self._references = references
        self._depth = depth
        self._lines: list[str] = []
        self._spans: list[tuple[int, int]] = []  # of each block its first line and the one after its last
        if lines:
            self.rewrite(0, lines)

    @property
    def num_lines(self) -> int:
        return len(self._lines)

    def rewrite(self, index: int, lines: Sequence[str]) -> None:
        """Put these lines in the place of all from `index` on, which is the last one or the one after it."""
        self._lines[index:] = lines
        settled = self._grow(index)
        if settled is None:
            self._parse(self._first_unsettled(index), index)
        elif settled < len(self._lines):
            self._parse(settled, index)

    def code_blocks(self) -> Iterator[Code]:
        """All in their order, those in quotes and lists too."""
        for block in self.blocks:
            if isinstance(block, Code):
                yield block
            elif isinstance(block, Quote | Item):
                yield from block.body.code_blocks()

    def _first_unsettled(self, index: int) -> int:
        """Return the line to parse from."""
        last = len(self.blocks) - 1
        while last > 0 and self._may_join(last, index):
            last -= 1
        if last < 0:
            return 0
        return self._spans[last][not getattr(self.blocks[last], "is_open", True)]

    def _may_join(self, number: int, index: int) -> bool:
        """Whether a block may yet be more of the one above: its first line, or its end, is still to come."""
        block, before = self.blocks[number], self.blocks[number - 1]
        is_unsure = self._spans[number][0] >= index or (isinstance(block, Paragraph) and block.is_formula)
        is_below = self._spans[number - 1][1] == self._spans[number][0] or isinstance(before, Item)
        return is_unsure and is_below and getattr(before, "is_open", True)

    def _parse(self, start: int, index: int) -> None:
        kept = sum(first < start for first, _ in self._spans)
        old, old_spans = self.blocks[kept:], self._spans[kept:]
        del self.blocks[kept:], self._spans[kept:]
        for number, (block, first, end) in enumerate(self._parsed(start, old, old_spans, index)):
            if number == 0 and isinstance(block, Item) and old and isinstance(old[0], Item) and self.blocks:
                self._continue_list(block, old[0])
            elif isinstance(block, Item) and not block.is_first:
                self._continue_list(block, block)
            self.blocks.append(block)
            self._spans.append((first, end))

    def _continue_list(self, item: Item, like: Item) -> None:
        before = self.blocks[-1]
        if not like.is_first and isinstance(before, Item) and (before.number is None) == (item.number is None):
            item.is_first = False
            item.number = None if before.number is None else before.number + 1

    def _parsed(
        self, start: int, old: Sequence[Block], old_spans: Sequence[tuple[int, int]], index: int
    ) -> Iterator[tuple[Block, int, int]]:
        """The blocks from a line on with their spans; the first is the one that is there if its lines are the same."""
        lines = self._lines[start:]
        if self._depth >= MAX_DEPTH:
            yield Paragraph(Content("\n".join(lines))), start, len(self._lines)
            return
        tokens = parser().parse_blocks(lines, self._references)
        for position, token in enumerate(tokens):
            is_item = token.type == "list_item_open" and token.level == 1
            if token.map is None or token.nesting < 0 or not (token.level == 0 or is_item):
                continue
            if token.type in ("bullet_list_open", "ordered_list_open", "inline"):
                continue
            first, end = start + token.map[0], start + token.map[1]
            end = self._end_of_fence(token, first) if token.type == "fence" else self._without_blanks(first, end)
            if old and old_spans[0] == (first, end) and end <= index and type(old[0]) is _KINDS.get(token.type):
                yield old[0], first, end
            elif (block := self._block(tokens, position, first, end)) is not None:
                yield block, first, end

    def _block(self, tokens: Sequence[Token], position: int, first: int, end: int) -> Block | None:
        token, lines = tokens[position], self._lines[first:end]
        match token.type:
            case "paragraph_open" | "heading_open":
                level = int(token.tag[1]) if token.tag != "p" else 0
                return Paragraph(inline_content(tokens[position + 1].content, self._references), level)
            case "formula_block":
                return Paragraph(Content(show_terminal_escapes(token.content)), is_formula=True)
            case "hr":
                return Rule()
            case "fence":
                return self._fenced(token, first, end)
            case "code_block":
                return Code("", token.content.rstrip("\n").split("\n"), is_open=True)
            case "table_open":
                return _table(tokens[position:], lines, self._references)
            case "blockquote_open":
                quote = Quote(Body(self._references, depth=self._depth + 1))
                _fill(quote, lines)
                return quote
            case "list_item_open":
                return self._item(tokens, position, lines)
        return None

    def _item(self, tokens: Sequence[Token], position: int, lines: Sequence[str]) -> Item:
        opened = next(token for token in reversed(tokens[:position]) if token.level == 0)
        is_first = tokens[position - 1] is opened
        is_ordered = opened.type == "ordered_list_open"
        number = int(opened.attrs.get("start", 1)) if is_ordered else None
        width, rest = _marker(lines[0])
        item = Item(Body(self._references, depth=self._depth + 1), number, is_first, width)
        _fill(item, [" " * width + rest, *lines[1:]])
        return item

    def _fenced(self, token: Token, first: int, end: int) -> Code:
        """Return a block whose language is known once its first line is whole."""
        is_named = first + 1 < len(self._lines)
        language = (token.info.split() or [""])[0] if is_named else ""
        code = Code(language, [], token.markup, is_named=is_named, is_open=True)
        self._take_code(code, first, first + 1, end)
        return code

    def _end_of_fence(self, token: Token, first: int) -> int:
        closing = _closing_fence(token.markup)
        lines = self._lines
        return next((number + 1 for number in range(first + 1, len(lines)) if closing.match(lines[number])), len(lines))

    def _without_blanks(self, first: int, end: int) -> int:
        while end > first + 1 and not self._lines[end - 1].strip():
            end -= 1
        return end

    def _grow(self, index: int) -> int | None:
        """Give the lines from `index` on to the last block; the first that is not its own, None if all is unsure."""
        if not self.blocks:
            return None
        block, (first, _) = self.blocks[-1], self._spans[-1]
        taken: int | None = None
        match block:
            case Code(is_open=True) if index > first and block.is_named and block.fence:
                taken = self._take_code(block, first, index, len(self._lines))
                self._spans[-1] = (first, taken)
            case Table(is_open=True) if index >= first + 2:
                taken = self._take_rows(block, first, index)
            case Quote() | Item() if index > first and block.body.blocks:
                taken = self._take_inner(block, first, index)
        if taken is not None:
            block.laid = None
        return taken

    def _take_code(self, block: Code, first: int, index: int, end: int) -> int:
        opening = self._lines[first]
        indent = len(opening) - len(opening.lstrip(" "))
        closing = _closing_fence(block.fence)
        lines = self._lines[index:end]
        num = next((number for number, line in enumerate(lines) if closing.match(line)), len(lines))
        block.lines[index - first - 1 :] = [_dedented(line, indent) for line in lines[:num]]
        if index + num + 1 < len(self._lines):
            block.is_open = False
            return min(end, index + num + 1)
        if num == len(lines) and block.lines[-1:] == [""]:
            block.lines.pop()  # a line of which nothing has come yet
        return end

    def _take_rows(self, block: Table, first: int, index: int) -> int | None:
        lines = self._lines[index:]
        num = next((number for number, line in enumerate(lines) if not line.strip()), len(lines))
        if not all(_SURELY_ROW.match(line) for line in lines[:num]):
            return None
        block.rows[index - first - 2 :] = [_row(line, len(block.header), self._references) for line in lines[:num]]
        self._spans[-1] = (first, index + num)
        if index + num + 1 < len(self._lines):
            block.is_open = False
            return index + num
        return len(self._lines)

    def _take_inner(self, block: Quote | Item, first: int, index: int) -> int | None:
        new = self._lines[index:]
        if isinstance(block, Quote) and len(new) > 1 and not new[-1]:
            new.pop()  # a line of which nothing has come yet
        lines = [block.inner(line) for line in new]
        is_after_lazy = (
            index - 1 > first and block.inner(self._lines[index - 1]) is None
        )  # of which a table may be made
        if is_after_lazy or any(line is None for line in lines):
            return None
        own = index - first
        missing = max(0, own - block.body.num_lines)
        block.body.rewrite(own - missing, [""] * missing + [line or "" for line in lines])
        self._spans[-1] = (first, self._without_blanks(first, len(self._lines)))
        return len(self._lines)


_KINDS: dict[str, type[Block]] = {
    "fence": Code,
    "table_open": Table,
    "blockquote_open": Quote,
    "list_item_open": Item,
}
"""Blocks that take long to make."""


class Document:
    """A whole answer; text is only added at its end."""

    def __init__(self, text: str = "") -> None:
        self._references: References = {}
        self._pieces: list[str] = []
        self.body = Body(self._references)
        self._last_line = ""
        self.append(text)

    @property
    def source(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return "".join(self._pieces)

    def append(self, text: str) -> None:
        """Add text; nothing in it may act on a terminal."""
        if not text:
            return
        self._pieces.append(text)
        lines = (self._last_line + show_terminal_escapes(text)).split("\n")
        self._last_line = lines[-1]
        try:
            self.body.rewrite(max(0, self.body.num_lines - 1), lines)
        except Exception as error:  # a text that the parser cannot take may not end the app: it is shown as written
            logging.getLogger(__name__).warning("Markdown is shown as it is written: %r", error)
            self.body = Body(self._references, depth=MAX_DEPTH, lines=show_terminal_escapes(self.source).split("\n"))

    def end(self) -> None:
        """Make links of what a definition further down explains, now that no more text comes."""
        if self._references.get("references"):
            lines = show_terminal_escapes(self.source).split("\n")
            self.body = Body(self._references, lines=lines)


def _closing_fence(opening: str) -> re.Pattern[str]:
    return re.compile(rf" {{0,3}}{re.escape(opening[0])}{{{len(opening)},}}\s*$")


def _dedented(line: str, num_spaces: int) -> str:
    return line[min(num_spaces, len(line) - len(line.lstrip(" "))) :]


def _table(tokens: Sequence[Token], lines: Sequence[str], references: References) -> Table:
    headers = [index for index, token in enumerate(tokens) if token.type == "th_open"]
    end = next(index for index, token in enumerate(tokens) if token.type == "table_close")
    headers = [index for index in headers if index < end]
    alignments = [str(tokens[index].attrs.get("style", "")).removeprefix("text-align:") for index in headers]
    header = [inline_content(_cell(tokens[index + 1].content), references) for index in headers]
    return Table(header, alignments, [_row(line, len(header), references) for line in lines[2:]])


def _row(line: str, num_columns: int, references: References) -> Row:
    """The cells of a line; none is left out, even if the header has fewer."""
    cells = re.split(r"(?<!\\)\|", line.strip())
    if cells and not cells[0].strip():
        cells = cells[1:]
    if len(cells) > 1 and not cells[-1].strip():
        cells = cells[:-1]
    cells += [""] * (num_columns - len(cells))
    return [inline_content(_cell(cell.replace("\\|", "|")), references) for cell in cells]


def _cell(text: str) -> str:
    return _BREAK.sub("\\\\\n", text.strip())


def _fill(block: Quote | Item, lines: Sequence[str]) -> None:
    inner = (block.inner(line) for line in lines)
    pairs = zip(lines, inner, strict=True)
    block.body.rewrite(0, [_LAZY + line.lstrip() if own is None else own for line, own in pairs])


def _marker(line: str) -> tuple[int, str]:
    """How far an item's lines are indented, and its first line without the marker."""
    line = _spaced(line)
    found = _MARKER.match(line)
    assert found is not None, line
    rest = line[found.end() :]
    width = found.end() if rest and len(found[3]) <= 4 else found.end(2) + 1
    return width, line[width:]


def _spaced(line: str) -> str:
    """Return the line with spaces for the tabs that it begins with, those behind its marker too."""
    if "\t" not in line:
        return line
    start = _START.match(line)
    assert start is not None
    return start[0].expandtabs(4) + line[start.end() :]
