"""Dialogs that ask for a text: one line, such as a title or a file name, or several, such as a system prompt.

They return what was written, or None if it was not wanted after all.
"""

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static, TextArea

from tui.chat.widgets.prompt import SafeTextArea


class _Dialog(ModalScreen[str | None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Cancel", tooltip="Leave everything as it was"),
    ]

    def __init__(self, question: str, field: Callable[[], Input | TextArea], hint: str) -> None:
        """`field` makes the field once an app runs, without which no input can be made."""
        super().__init__()
        self._question, self._field, self._hint = question, field, hint

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._question, markup=False, classes="dialog-title")
            yield self._field()
            yield Static(self._hint, markup=False, classes="dialog-hint")


class LineDialog(_Dialog):
    """Asks for one line; nothing at all counts as not wanted."""

    def __init__(self, question: str, text: str = "", *, hint: str = "Enter keeps it, Esc does not") -> None:
        super().__init__(question, lambda: Input(text, compact=True), hint)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip() or None)


class TextDialog(_Dialog):
    """Asks for several lines; an empty text is an answer too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "keep", "Keep", tooltip="Keep the text as it is now", priority=True),
    ]

    def __init__(self, question: str, text: str = "") -> None:
        super().__init__(
            question,
            lambda: SafeTextArea(text, soft_wrap=True, compact=True, highlight_cursor_line=False),
            "Ctrl+S keeps it, Esc does not; empty is the model's own",
        )

    def action_keep(self) -> None:
        self.dismiss(self.query_one(TextArea).text)
