"""Dialogs that ask for a text: one line, such as a title or a file name, or several, such as a system prompt.

They return what was written, or None if it was not wanted after all.
"""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static, TextArea

from tui.chat.widgets.prompt import PromptArea


class LineDialog(ModalScreen[str | None]):
    """Asks for one line; nothing at all counts as not wanted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Cancel", tooltip="Leave everything as it was"),
    ]

    def __init__(self, question: str, text: str = "", *, hint: str = "Enter keeps it, Esc does not") -> None:
        super().__init__()
        self._question, self._text, self._hint = question, text, hint

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._question, markup=False, classes="dialog-title")
            yield Input(self._text, compact=True)
            yield Static(self._hint, markup=False, classes="dialog-hint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip() or None)


class TextDialog(ModalScreen[str | None]):
    """Asks for several lines; an empty text is an answer too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "keep", "Keep", tooltip="Keep the text as it is now", priority=True),
        Binding("escape", "dismiss", "Cancel", tooltip="Leave everything as it was"),
    ]

    def __init__(self, question: str, text: str = "") -> None:
        super().__init__()
        self._question, self._text = question, text

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -tall"):
            yield Static(self._question, markup=False, classes="dialog-title")
            yield _SeveralLines(self._text, soft_wrap=True, compact=True, highlight_cursor_line=False)
            yield Static("Ctrl+S keeps it, Esc does not; empty is the model's own", classes="dialog-hint")

    def action_keep(self) -> None:
        self.dismiss(self.query_one(TextArea).text)


class _SeveralLines(TextArea):
    get_line = PromptArea.get_line
