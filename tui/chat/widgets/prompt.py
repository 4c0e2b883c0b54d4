"""Where prompts are written: grows with its text, sends on Enter, and brings earlier prompts back with up and down."""

from collections.abc import Iterable, Sequence
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


class PromptHistory:
    """The prompts of a conversation and a place among them; what was being written waits at the newest end."""

    def __init__(self, prompts: Iterable[str] = ()) -> None:
        self._prompts = list(prompts)
        self._index = len(self._prompts)  # of what is shown; the length: what is being written
        self._unsent = ""

    def add(self, prompt: str) -> None:
        """Add one that was sent, and go to the newest end. The same one twice in a row is kept once."""
        if not self._prompts or self._prompts[-1] != prompt:
            self._prompts.append(prompt)
        self._index = len(self._prompts)
        self._unsent = ""

    def older(self, shown: str) -> str | None:
        """Return the prompt before the one that is `shown`; None at the oldest."""
        if self._index == 0:
            return None
        if self._index == len(self._prompts):
            self._unsent = shown
        self._index -= 1
        return self._prompts[self._index]

    def newer(self) -> str | None:
        """Return the prompt after; at the end what was being written; None beyond that."""
        if self._index == len(self._prompts):
            return None
        self._index += 1
        return self._unsent if self._index == len(self._prompts) else self._prompts[self._index]


class PromptArea(SafeTextArea):
    """The prompt that is being written."""

    DEFAULT_CLASSES = "prompt"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", tooltip="Send the prompt to the model"),
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
            placeholder="Ask something, or / for commands",
        )
        self._history = PromptHistory()
        self.completions = CompletionList(id="completions")
        """What could follow; the screen shows it over the prompt."""

    def set_history(self, prompts: Sequence[str]) -> None:
        """Earlier prompts, oldest first, for up and down."""
        self._history = PromptHistory(prompts)

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
            self._history.add(text)
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
            self.completions.move(-1)
        elif self.wrapped_document.location_to_offset(self.cursor_location).y > 0:
            self.action_cursor_up()
        elif (older := self._history.older(self.text)) is not None:
            self.put(older)

    def action_newer_or_down(self) -> None:
        if self.completions.display:
            self.completions.move(1)
        elif self.wrapped_document.location_to_offset(self.cursor_location).y < self.wrapped_document.height - 1:
            self.action_cursor_down()
        elif (newer := self._history.newer()) is not None:
            self.put(newer)
