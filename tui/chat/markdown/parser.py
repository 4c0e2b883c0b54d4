r"""The Markdown parser: nothing that it returns can act on a terminal, and formulas stay as they were written.

CommonMark with tables, strikethrough and bare links; HTML is text. A backslash is kept where LaTeX means something by
it, as in `\(`, `\,` and `\\`, and dropped where Markdown does, as in `\*`.
"""

import re
from collections.abc import MutableMapping, Sequence
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from textual.content import Content, Span
from textual.style import Style

from tui.terminal_text import show_terminal_escapes

MAX_NESTING = 100
"""Of brackets and emphasis in one line; a deeper one is text."""
_FORMULA = re.compile(
    r"""
      \\\( .{1,2000}? \\\)
    | \\\[ .{1,2000}? \\\]
    | \$\$ .{1,2000}? \$\$
    | \$ (?=[^\s$]) (?: \\. | [^$\\\n] ){1,500}? (?<=\S) \$ (?!\d)   # not the dollars of "$5 and $6"
    """,
    re.VERBOSE | re.DOTALL,
)
_FORMULA_ENDS = {"\\[": "\\]", "$$": "$$"}
_ENVIRONMENT = re.compile(r"\\begin\{(\w+\*?)\}")
_ESCAPED_BY_MARKDOWN = frozenset("*_`#~<>+-.\n")
_SPACES = re.compile(r"\s+")


def _inline_formula(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "\\$":
        return False
    found = _FORMULA.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.push("formula", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _kept_backslash(state: StateInline, silent: bool) -> bool:
    after = state.src[state.pos + 1 : state.pos + 2]
    if state.src[state.pos] != "\\" or not after or after in _ESCAPED_BY_MARKDOWN:
        return False
    if not silent:
        state.pending += "\\" + after
    state.pos += 2
    return True


def _formula_end(line: str) -> str | None:
    """What ends the formula that begins a line; None if none does."""
    if environment := _ENVIRONMENT.match(line):
        return f"\\end{{{environment[1]}}}"
    return _FORMULA_ENDS.get(line[:2])


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Take lines from `\\[`, `$$` or `\\begin{...}` to their end as they are, which nothing else may claim."""
    if state.is_code_block(start):
        return False

    def line_at(number: int) -> str:
        return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].rstrip()

    closing = _formula_end(line_at(start))
    if closing is None:
        return False
    rest = line_at(start)[2:]
    number = start
    while not rest.endswith((closing, closing + ".", closing + ",")):
        number += 1
        if closing in rest or (number < end and not line_at(number)):
            return False  # text goes on after it, or a paragraph ends before it: no formula
        if number >= end or state.sCount[number] < state.blkIndent:
            number -= 1
            break  # the rest has not arrived yet
        rest = line_at(number)
    if not silent:
        token = state.push("formula_block", "", 0)
        token.content = state.getLines(start, number + 1, state.sCount[start], False)
        token.map = [start, number + 1]
        state.line = number + 1
    return True


class SafeMarkdownIt(MarkdownIt):
    """The parser: nothing that it returns can act on a terminal."""

    def __init__(self) -> None:
        super().__init__("gfm-like", {"html": False, "maxNesting": MAX_NESTING})
        self.inline.ruler.before("escape", "formula", _inline_formula)
        self.inline.ruler.before("escape", "backslash", _kept_backslash)
        self.block.ruler.before("fence", "formula_block", _formula_block, {"alt": ["paragraph", "blockquote", "list"]})

    def parse(self, src: str, env: MutableMapping[str, Any] | None = None) -> list[Token]:
        """Return the source's tokens; what only entities spell, as `&#x202e;`, is shown as signs too."""
        return _shown(super().parse(show_terminal_escapes(src), env))

    def parseInline(self, src: str, env: MutableMapping[str, Any] | None = None) -> list[Token]:  # noqa: N802 - the base class's name
        """Return the tokens of one paragraph, safe to show."""
        return _shown(super().parseInline(show_terminal_escapes(src), env))

    def parse_blocks(self, lines: Sequence[str], references: MutableMapping[str, Any]) -> list[Token]:
        """Return the blocks that lines make, with what stands in them unparsed; link definitions go to `references`."""
        with self.reset_rules():
            self.core.ruler.enableOnly(["normalize", "block"])
            return super().parse("\n".join(lines), references)


def _shown(tokens: list[Token]) -> list[Token]:
    for token in tokens:
        token.content = show_terminal_escapes(token.content)
        _shown(token.children or [])
    return tokens


@cache
def parser() -> SafeMarkdownIt:
    """Return the one parser: to make it takes longer than to parse a paragraph."""
    return SafeMarkdownIt()


_STYLES = {"em_open": ".em", "strong_open": ".strong", "s_open": ".s"}


def inline_content(text: str, references: MutableMapping[str, Any] | None = None) -> Content:
    """Return a paragraph's text, styled; line breaks are those that the writer asked for."""
    pieces: list[str] = []
    spans: list[Span] = []
    opened: list[tuple[int, Style | str]] = []
    position = 0

    def add(piece: str, style: Style | str = "") -> None:
        nonlocal position
        pieces.append(piece)
        if style:
            spans.append(Span(position, position + len(piece), style))
        position += len(piece)

    for token in (child for root in parser().parseInline(text, references) for child in root.children or ()):
        match token.type:
            case "text":
                add(_SPACES.sub(" ", token.content))
            case "formula":
                add(token.content)
            case "hardbreak":
                add("\n")
            case "softbreak":
                add(" ")
            case "code_inline":
                add(token.content, ".code_inline")
            case "image":
                add(f"image: {token.content or token.attrs.get('src', '')}", _link(token.attrs.get("src")))
            case "em_open" | "strong_open" | "s_open":
                opened.append((position, _STYLES[token.type]))
            case "link_open":
                opened.append((position, _link(token.attrs.get("href"))))
            case kind if kind.endswith("_close") and opened:
                start, style = opened.pop()
                spans.append(Span(start, position, style))
            case _:
                add(token.content)
    return Content("".join(pieces), spans)


def _link(address: object) -> Style:
    return Style.from_meta({"@click": f"link({show_terminal_escapes(str(address or ''))!r})"})
