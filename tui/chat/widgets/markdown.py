"""One answer on the screen: Markdown that may still grow, drawn line by line as it comes into sight.

It is one widget, whatever it holds: a widget for each item, cell and line made every key wait while a long list grew.
"""

from dataclasses import dataclass

from rich.segment import Segment
from textual import events
from textual.content import Content
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.widget import Widget

from tui.chat.markdown.blocks import Code, Document
from tui.chat.markdown.code import theme_for
from tui.chat.markdown.layout import WORD, lay_out
from tui.chat.markdown.lines import Frame, Line, text_of


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A block of code in an answer."""

    answer: "AnswerMarkdown"
    block: Code

    @property
    def code(self) -> str:
        """The lines as they were written."""
        return "\n".join(self.block.lines)

    @property
    def language(self) -> str:
        """As the model named it; empty if it did not."""
        return self.block.language


class AnswerMarkdown(Widget):
    """One answer."""

    COMPONENT_CLASSES = {  # noqa: RUF012 - as the base class declares it
        "bar",
        "bullet",
        "clip",
        "code",
        "code-action",
        "code-head",
        "code-head-marked",
        "code-language",
        "code_inline",
        "em",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "rule",
        "s",
        "strong",
        "table-header",
    }

    @dataclass
    class LinkClicked(Message):
        """The user wants to have a link."""

        href: str

    @dataclass
    class CopyWanted(Message):
        """The user wants the code in the clipboard."""

        block: CodeBlock

    class WrapWanted(Message):
        """The user wants long lines of code broken, or not any more."""

    def __init__(self, text: str = "", *, wraps_code: bool = False) -> None:
        super().__init__()
        self._document = Document(text)
        self._wraps_code = wraps_code
        self._frame = Frame(0)
        self._lines: list[Line] | None = None
        self._marked: Code | None = None
        self._styles_of: dict[str, Style] = {}

    @property
    def source(self) -> str:
        """The text as it was written."""
        return self._document.source

    @property
    def code_blocks(self) -> list[CodeBlock]:
        """All blocks of code, the first one first."""
        return [CodeBlock(self, block) for block in self._document.body.code_blocks()]

    def append(self, text: str) -> None:
        """Add text at the end."""
        self._document.append(text)
        self._show_change()

    def update(self, text: str) -> None:
        """Show another text."""
        self._document = Document(text)
        self._show_change()

    def end(self) -> None:
        """No more text comes."""
        self._document.end()
        self._show_change()

    def wrap_code(self, wraps_code: bool) -> None:
        """Break lines of code that are too long, or show where they are cut."""
        self._wraps_code = wraps_code
        self._show_change()

    def mark(self, block: Code | None) -> None:
        """Mark a block of code, and no other."""
        for line in self._laid_out(self.content_size.width):
            if line.head_of is not None and line.head_of in (block, self._marked):
                line.drawn = None
        self._marked = block
        self.refresh()

    def row_of(self, block: Code) -> int:
        """Return the row of the answer in which a block of code begins."""
        lines = self._laid_out(self.content_size.width)
        return next((y for y, line in enumerate(lines) if line.head_of is block), 0)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the number of lines at a width, with an empty one below the text."""
        num_lines = len(self._laid_out(width))
        return num_lines and num_lines + 1

    def render_line(self, y: int) -> Strip:
        lines = self._laid_out(self.content_size.width)
        width = self.content_size.width
        if y >= len(lines):
            return Strip.blank(width, self.visual_style.rich_style)
        selection = self.text_selection
        span = selection.get_span(y) if selection is not None else None
        strip = self._drawn(lines[y], width)
        if span is not None:
            strip = self._selected(strip, *span)
        return strip.apply_offsets(0, y)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the text that is selected: each line with the list mark or quote sign that was written before it."""
        lines = self._laid_out(self.content_size.width)
        start = selection.start or Offset(0, 0)
        end = selection.end or Offset(self.content_size.width, len(lines) - 1)
        pieces: list[str] = []
        for y in range(start.y, min(end.y + 1, len(lines))):
            line = lines[y]
            if line.is_added:
                continue
            first = start.x if y == start.y else 0
            last = end.x if y == end.y and selection.end is not None else None
            text = _selected_text(line, first, last)
            pieces += [text] if line.is_continued or not pieces else ["\n", text]
        return "".join(pieces), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Draw what is selected in other colours."""
        self.refresh()

    def notify_style_update(self) -> None:
        """Draw everything anew in other colours."""
        super().notify_style_update()
        self._styles_of = {}

    def action_link(self, href: str) -> None:
        self.post_message(self.LinkClicked(href))

    def on_click(self, event: events.Click) -> None:
        lines = self._laid_out(self.content_size.width)
        match event.style.meta.get(WORD):
            case "copy" if event.y < len(lines):
                block = lines[event.y].head_of
                if isinstance(block, Code):
                    self.post_message(self.CopyWanted(CodeBlock(self, block)))
            case "wrap" | "unwrap":
                self.post_message(self.WrapWanted())

    def _laid_out(self, width: int) -> list[Line]:
        theme = theme_for(is_ansi=self.app.native_ansi_color, is_dark=self.app.current_theme.dark)
        frame = Frame(width, wraps_code=self._wraps_code, theme=theme)
        if self._lines is None or frame != self._frame:
            self._frame = frame
            self._lines = lay_out(self._document.body, frame) if width > 0 else []
        return self._lines

    def _show_change(self) -> None:
        before, self._lines = self._lines, None
        if before is None or not self.is_mounted:
            self.refresh(layout=True)
            return
        lines = self._laid_out(self._frame.width)
        if len(lines) != len(before):
            self.refresh(layout=True)
            return
        changed = [y for y, (old, new) in enumerate(zip(before, lines, strict=True)) if old is not new]
        if changed:
            first, last = changed[0], changed[-1]
            self.refresh(Region(0, first, self.size.width, last + 1 - first))

    def _style(self, name: str | Style) -> Style:
        if isinstance(name, Style):
            return name
        style = self._styles_of.get(name)
        if style is None:
            is_class = name.startswith(".")
            style = self.get_visual_style(name[1:], partial=True) if is_class else Style.parse(name)
            self._styles_of[name] = style
        return style

    def _drawn(self, line: Line, width: int) -> Strip:
        content = line.make()
        if line.drawn is not None and line.drawn[0] is self._styles_of and line.drawn[1] is content:
            return line.drawn[2]
        line.drawn = (self._styles_of, content, self._draw_line(line, content, width))
        return line.drawn[2]

    def _draw_line(self, line: Line, content: Content, width: int) -> Strip:
        base = self.visual_style
        fill = ".code-head-marked" if line.head_of is not None and line.head_of is self._marked else line.fill
        segments = [Segment(text, (base + self._style(style)).rich_style) for text, style in line.margin.shown]
        filled = self.get_visual_style(fill.removeprefix(".")) if fill else base
        if fill:
            segments.append(Segment(" ", filled.rich_style))
        for text, style in content.render(filled, end="", parse_style=self._style):
            if text:
                segments.append(Segment(text, (filled + style).rich_style))
        return Strip(segments).adjust_cell_length(width, filled.rich_style)

    def _selected(self, strip: Strip, start: int, end: int) -> Strip:
        """The line with the selected characters, up to `end` or, at -1, to the end, in the colours of a selection."""
        style = Style.from_styles(self.screen.get_component_styles("screen--selection")).rich_style
        first = strip.index_to_cell_position(start)
        last = strip.cell_length if end == -1 else strip.index_to_cell_position(end)
        before, chosen, after = (strip.crop(0, first), strip.crop(first, last), strip.crop(last))
        return Strip.join([before, chosen.apply_style(style), after])


def _selected_text(line: Line, first: int, last: int | None) -> str:
    """The part of a line that is selected, counted in the characters that are shown."""
    text = text_of(line)
    num_margin = line.margin.width + bool(line.fill)
    if last is None and first <= num_margin:
        return ("" if line.fill or line.is_continued else line.margin.written) + text
    return text[max(0, first - num_margin) : None if last is None else max(0, last - num_margin)]
