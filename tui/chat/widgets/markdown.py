"""Markdown as a model writes it: escapes and HTML are shown as text, code blocks can be copied, links only too.

Everything is drawn while it still arrives.
"""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Label, Markdown, Static
from textual.widgets.markdown import MarkdownBlock, MarkdownFence

from tui.terminal_text import show_terminal_escapes


class SafeMarkdownIt(MarkdownIt):
    """The parser: nothing that it returns can act on a terminal."""

    def __init__(self) -> None:
        super().__init__("gfm-like", {"html": False})

    def parse(self, src: str, env: MutableMapping[str, Any] | None = None) -> list[Token]:
        """Return the source's tokens; what only entities spell, as `&#x202e;`, is shown as signs too."""
        tokens = super().parse(show_terminal_escapes(src), env)
        _show_escapes_of(tokens)
        return tokens


def _show_escapes_of(tokens: Sequence[Token]) -> None:
    for token in tokens:
        token.content = show_terminal_escapes(token.content)
        _show_escapes_of(token.children or ())


class CopyLabel(Static):
    """The word that copies a code block when it is clicked."""

    ALLOW_SELECT = False

    def __init__(self) -> None:
        super().__init__(" copy ", markup=False, classes="copy-label")
        self.tooltip = "Copy this code block to the clipboard"


class CodeBlock(MarkdownFence):
    """Code with its language and a word that copies it."""

    @dataclass
    class CopyWanted(Message):
        """The user wants the code in the clipboard."""

        block: "CodeBlock"

    @property
    def language(self) -> str:
        """The code's language as the model named it; empty if it did not."""
        return (self.lexer.split() or [""])[0]

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        """Colour the code; a block without a language is plain, since guessing takes longer than drawing."""
        return super().highlight(code, (language.split() or ["text"])[0], ansi=ansi, dark=dark)

    def compose(self) -> ComposeResult:
        with Horizontal(classes="code-head"):
            yield Label(self.language or "text", markup=False, classes="code-language")
            yield CopyLabel()
        yield from super().compose()

    def on_click(self, event: events.Click) -> None:
        if isinstance(event.widget, CopyLabel):
            self.post_message(self.CopyWanted(self))


class AnswerMarkdown(Markdown):
    """One answer."""

    BLOCKS: dict[str, type[MarkdownBlock]] = {  # noqa: RUF012 - as the base class declares it
        **Markdown.BLOCKS,
        "fence": CodeBlock,
        "code_block": CodeBlock,
    }

    def __init__(self, text: str = "") -> None:
        super().__init__(text, parser_factory=SafeMarkdownIt, open_links=False)
