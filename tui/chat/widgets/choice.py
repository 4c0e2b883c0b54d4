"""One of a few values in one row, `‹ auto ›`: left and right, Space and a click go on, typing a letter jumps.

Small enough for dense forms, and it never covers what is below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from tui.chat.commands.keymap import bind
from tui.terminal_text import show_terminal_escapes


class ChoiceField(Widget, can_focus=True):
    """Holds one of its values."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("value_before", "step(-1)", "Previous value", tooltip="Take the value before"),
        bind("value_after", "step(1)", "Next value", tooltip="Take the value after"),
    ]
    value = reactive("", init=False)
    """The one that is chosen."""

    @dataclass
    class Changed(Message):
        """Another value is chosen."""

        field: "ChoiceField"
        value: str

        @property
        def control(self) -> "ChoiceField":
            return self.field

    def __init__(self, values: Sequence[str], value: str, *, id: str | None = None, tooltip: str = "") -> None:
        super().__init__(id=id)
        self.values = tuple(values) if value in values else (value, *values)
        self.set_reactive(ChoiceField.value, value)
        self.tooltip = tooltip or None

    def watch_value(self, value: str) -> None:
        self.post_message(self.Changed(self, value))

    def render(self) -> Content:
        return Content(f"‹ {show_terminal_escapes(self.value)} ›")

    def action_step(self, step: int) -> None:
        """Take the value after, or with -1 the one before; the ends are neighbours."""
        self.value = self.values[(self.values.index(self.value) + step) % len(self.values)]

    def on_key(self, event: events.Key) -> None:
        """Jump to the next value that begins with the letter."""
        if event.character is None or not event.character.isalnum():
            return
        start = self.values.index(self.value) + 1
        rotated = (*self.values[start:], *self.values[:start])
        found = next((value for value in rotated if value.lower().startswith(event.character.lower())), None)
        if found is not None:
            event.stop()
            self.value = found

    def on_click(self) -> None:
        self.action_step(1)
