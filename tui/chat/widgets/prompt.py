"""Where prompts are written: grows with its text, sends on Enter, and brings earlier prompts back with up and down."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from tui.chat.widgets.lists import CompletionList
from tui.terminal_text import show_escapes_in_place


class SafeTextArea(TextArea):
    """An area that draws what a terminal would obey as signs, one for each, so that the cursor stays where it belongs.

    The text keeps what was typed or pasted.
    """

    def get_line(self, line_index: int) -> Text:
        """Return a line as it is drawn."""
        return Text(show_escapes_in_place(self.document.get_line(line_index)), end="", no_wrap=True)


class PromptArea(SafeTextArea):
    """The prompt that is being written."""

    DEFAULT_CLASSES = "prompt"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", show=False, tooltip="Send the prompt to the model"),
        Binding("shift+enter,ctrl+j", "new_line", "New line", show=False, tooltip="Begin another line of the prompt"),
        Binding("tab", "complete", "Complete", show=False, tooltip="Take what the list over the prompt proposes"),
        Binding("up", "older_or_up", "Older prompt", show=False, tooltip="In the first line: the prompt before"),
        Binding("down", "newer_or_down", "Newer prompt", show=False, tooltip="In the last line: the prompt after"),
    ]

    @dataclass
    class Sent(Message):
        """The user wants the prompt to be answered or obeyed."""

        text: str

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            tab_behavior="focus",
            show_line_numbers=False,
            highlight_cursor_line=False,
            compact=True,
            placeholder="Ask something; Enter sends it, / lists the commands",
        )
        self.set_history(())
        self.completions = CompletionList(id="completions")
        """What could follow; the screen shows it over the prompt."""

    def set_history(self, prompts: Iterable[str]) -> None:
        """Take earlier prompts, oldest first, for up and down."""
        self._history = [*prompts, ""]  # last of all what is being written, while an earlier one is shown
        self._shown_index = len(self._history) - 1

    def put(self, text: str) -> None:
        """Show `text` instead of what is there, with the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        """Do at once what a key is bound to here.

        Else it would be done when the key has bubbled up to the app: behind letters that came together with it, as they
        do while the screen is busy, so that a backspace took the letter typed after it.
        """
        for binding in self._bindings.key_to_bindings.get(event.key, ()):
            if await self.app.run_action(binding.action, self):
                event.stop()
                event.prevent_default()
                return

    def action_send(self) -> None:
        text = self.text
        if text.strip():
            earlier = self._history[:-1]
            self.set_history(earlier if earlier[-1:] == [text] else [*earlier, text])
            self.put("")
            self.post_message(self.Sent(text))

    def action_new_line(self) -> None:
        self.insert("\n")

    def action_complete(self) -> None:
        if (chosen := self.completions.chosen) is None:
            self.screen.focus_next()
        else:
            self.put(chosen.text)

    def action_older_or_up(self) -> None:
        if self.completions.display:
            self.completions.action_cursor_up()
        elif self.wrapped_document.location_to_offset(self.cursor_location).y > 0:
            self.action_cursor_up()
        else:
            self._recall(self._shown_index - 1)

    def action_newer_or_down(self) -> None:
        if self.completions.display:
            self.completions.action_cursor_down()
        elif self.wrapped_document.location_to_offset(self.cursor_location).y < self.wrapped_document.height - 1:
            self.action_cursor_down()
        else:
            self._recall(self._shown_index + 1)

    def _recall(self, index: int) -> None:
        if 0 <= index < len(self._history):
            if self._shown_index == len(self._history) - 1:
                self._history[-1] = self.text
            self._shown_index = index
            self.put(self._history[index])
