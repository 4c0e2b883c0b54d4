"""Where prompts are written: grows with its text, sends on Enter, and brings earlier prompts back with up and down.

What is being written is never thrown away: while something else is shown, an earlier prompt or a command that was begun
from a list, it waits, and it comes back when that is sent or put away.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import TextArea

from tui.chat.commands.keymap import bind, bindings_of
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
        bind("send", "send", "Send", tooltip="Send the prompt to the model"),
        bind("new_line", "new_line", "New line", tooltip="Begin another line of the prompt"),
        bind("complete", "complete", "Complete", tooltip="Take what the list over the prompt proposes"),
        bind("suspend", "app.suspend_process", "Suspend", tooltip="Back to the shell; fg returns here"),
        bind("undo_typing", "undo", "Undo", tooltip="Take back what was typed last; Ctrl+Y redoes"),
        bind("older", "older_or_up", "Older prompt", tooltip="In the first line: the prompt before"),
        bind("newer", "newer_or_down", "Newer prompt", tooltip="In the last line: the prompt after"),
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
        self._history: list[str] = []  # earlier prompts, oldest first, as they are or as they were changed here
        self._place = 0  # of what is shown; behind the last one it is what is being written
        self._written = ""  # what is being written, while something else is shown
        self._shown_as = ""  # what that was before anybody changed it
        self.completions = CompletionList(id="completions")
        """What could follow; the screen shows it over the prompt."""

    @property
    def written(self) -> str:
        """What is being written, also while something else is shown."""
        return self.text if self._is_own else self._written

    @property
    def changed(self) -> str:
        """The earlier prompt that is shown instead, if it was changed; else empty."""
        return "" if self._is_own or self.text == self._shown_as else self.text

    @property
    def _is_own(self) -> bool:
        return self._place == len(self._history)

    def set_history(self, prompts: Iterable[str]) -> None:
        """Take earlier prompts, oldest first, for up and down; what is shown stays."""
        is_own, shown_as = self._is_own, self._shown_as
        self._history = list(prompts)
        if not is_own and self._history[-1:] != [shown_as]:
            self._history.append(shown_as)
        self._place = len(self._history) - (not is_own)

    def put(self, text: str) -> None:
        """Show `text` instead of what is there, with the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def write(self, text: str) -> None:
        """Let `text` be what is being written, and show it."""
        self._place = len(self._history)
        self.put(text)

    def show_beside(self, text: str) -> None:
        """Show an earlier prompt, or a command that is begun; what is being written waits."""
        self._keep()
        if self._history[-1:] != [text]:
            self._history.append(text)
        self._show(len(self._history) - 1)

    def show_written(self) -> None:
        """Put away what is shown beside, where up finds it as it is now; what is being written comes back."""
        self._keep()
        self._show(len(self._history))

    def give_back(self, text: str) -> None:
        """Show what could not be sent; what was written meanwhile stays below it, or waits beside a command."""
        written = self.text
        if not written.strip():
            self.put(text)
        elif text.startswith("/"):
            self.show_beside(text)
        else:
            self.put(f"{text}\n{written}")

    async def _on_key(self, event: events.Key) -> None:
        """Do at once what a key is bound to, here or on the screen.

        Else it would be done when the key has bubbled up to the app: behind letters that came together with it, as they
        do while the screen is busy. A backspace took the letter typed after it, and what was typed after the key of a
        new conversation stood in the old one.
        """
        owners = [(owner, *bindings_of(owner, event.key)) for owner in (self, self.screen)]
        chosen = [(owner, binding) for owner, bindings, _ in owners for binding in bindings]
        usual = [(owner, binding) for owner, _, bindings in owners for binding in bindings]
        for owner, binding in (*chosen, *usual):
            if await self.app.run_action(binding.action, owner):
                event.stop()
                event.prevent_default()
                return

    def action_send(self) -> None:
        """Send the prompt; a command that is not typed to its end is taken from the list first."""
        if (wanted := self.completions.wanted(self.text)) is not None:
            self.put(wanted.text)
            if wanted.text.endswith("/"):  # a folder, in which something is still to be chosen
                return
        text = self.text
        if not text.strip():
            return
        written = "" if self._is_own else self._written
        if not self._is_own:
            self._history[self._place] = self._shown_as
        if self._history[-1:] != [text]:
            self._history.append(text)
        self.write(written)
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
        else:
            self._recall(self._place - 1)

    def action_newer_or_down(self) -> None:
        if self.completions.display:
            self.completions.move(1)
        elif self.wrapped_document.location_to_offset(self.cursor_location).y < self.wrapped_document.height - 1:
            self.action_cursor_down()
        else:
            self._recall(self._place + 1)

    def _recall(self, place: int) -> None:
        if 0 <= place <= len(self._history):
            self._keep()
            self._show(place)

    def _keep(self) -> None:
        """Keep what is shown, as it is now, where it belongs."""
        if self._is_own:
            self._written = self.text
        else:
            self._history[self._place] = self.text

    def _show(self, place: int) -> None:
        self._place = place
        self._shown_as = self._written if self._is_own else self._history[place]
        self.put(self._shown_as)
