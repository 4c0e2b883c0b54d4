"""The line over the prompt while a turn of the conversation is selected: it has the focus, and says what keys do.

Whatever is typed besides goes to the prompt, which takes the focus and so ends the selection.
"""

from typing import ClassVar

from textual.binding import BindingType
from textual.content import Content
from textual.widget import Widget

from tui.chat.commands.keymap import bind, key_now
from tui.chat.widgets.conversation import ConversationView

_SIGNS = {"Up": "↑", "Down": "↓", "Left": "←", "Right": "→"}


class TurnKeys(Widget, can_focus=True):
    """Hands its keys to the screen; shown as long as it has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("turn_before", "screen.turn('before')", "Before", tooltip="With a turn selected: the turn before"),
        bind(
            "turn_after", "screen.turn('after')", "After", tooltip="The turn after; behind the last one is the prompt"
        ),
        bind("turn_edit", "screen.turn('edit')", "Edit", tooltip="Edit the selected turn: another version of it"),
        bind("turn_again", "screen.turn('again')", "Again", tooltip="Ask for another answer of the selected turn"),
        bind("turn_copy", "screen.turn('copy')", "Copy", tooltip="Copy the selected turn to the clipboard"),
        bind("version_before", "screen.turn('version_before')", "Version", tooltip="The turn's version before"),
        bind("version_after", "screen.turn('version_after')", "Version", tooltip="The turn's version after"),
        bind("turn_close", "screen.turn('close')", "Prompt", tooltip="From the selected turn back to the prompt"),
    ]

    def __init__(self, view: ConversationView, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._view = view
        self._place, self._version = "", ""
        self.display = False

    def show(self, place: str, version: str) -> None:
        """Say which turn is selected, as in `3/8`, and which version of it is shown, empty where there is one alone."""
        self._place, self._version = place, version
        self.display = True
        self.focus()
        self.refresh()

    def render(self) -> Content:
        """Say what the keys do, in fewer words where there is no room."""
        room = self.content_size.width
        lines = (" · ".join(self._words(is_brief=False)), "  ".join(self._words(is_brief=True)))
        return Content(next((line for line in lines if len(line) <= room), lines[-1]))

    def _words(self, *, is_brief: bool) -> list[str]:
        key = self._key
        move, version = f"{key('turn_before')}{key('turn_after')}", f"{key('version_before')}{key('version_after')}"
        words = [
            (f"turn {self._place} {move}", ""),
            (f"{key('turn_edit')} edit", f"{key('turn_edit')} edit"),
            (f"{key('turn_again')} ask again", f"{key('turn_again')} again"),
            (f"{key('turn_copy')} copy", f"{key('turn_copy')} copy"),
            (f"version {self._version} {version}", f"{version} {self._version}") if self._version else ("", ""),
            (f"{key('turn_close')} prompt", key("turn_close")),
        ]
        return [word for pair in words if (word := pair[is_brief])]

    def _key(self, name: str) -> str:
        """Write a key in one sign where it has one."""
        key = key_now(self, name)
        return _SIGNS.get(key, key.lower() if len(key) == 1 else key)

    def on_blur(self) -> None:
        """End the selection, unless it is the terminal that is left."""
        if self.app.app_focus and self.screen.focused is not self:
            self.display = False
            self._view.deselect()
