"""Where prompts are written: grows with its text, sends on Enter, and brings earlier prompts back with up and down.

A message is what is written and what is attached to it, as `tui.attachments` puts them together. What is being written
is never thrown away: while something else is shown, an earlier prompt or a command that was begun from a list, it
waits, and it comes back when that is sent or put away.
"""

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import TextArea

from profiles.errors import BadInputError
from tui.attachments import (
    Attachment,
    is_long_paste,
    joined_messages,
    pasted,
    read_attachment,
    split_attachments,
    with_attachments,
)
from tui.chat.commands.keymap import bind, bindings_of
from tui.chat.commands.mentions import mention_at, mentioned_files
from tui.chat.commands.slash import Completion, is_command, message_text
from tui.chat.widgets.attachments import AttachmentList
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
        """As it was typed."""
        attachments: tuple[Attachment, ...] = ()
        """What goes along, unless it is a command."""

        @property
        def message(self) -> str:
            """What the model reads."""
            return with_attachments(message_text(self.text.strip("\n")), self.attachments)

    @dataclass
    class Refused(Message):
        """Something cannot be attached."""

        sentence: str

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            tab_behavior="focus",
            show_line_numbers=False,
            highlight_cursor_line=False,
            compact=True,
            placeholder="Ask something; Enter sends it, / lists the commands, @ attaches files",
        )
        self._history: list[str] = []  # earlier prompts, oldest first, as they are or as they were changed here
        self._place = 0  # of what is shown; behind the last one it is what is being written
        self._written = ""  # what is being written, while something else is shown
        self._shown_as = ""  # what that was before anybody changed it
        self.completions = CompletionList(id="completions")
        """What could follow; the screen shows it over the prompt."""
        self.attached = AttachmentList(id="attached")
        """What goes along with the text; the screen shows it over the prompt."""

    @property
    def message(self) -> str:
        """What is shown, with what is attached to it."""
        return with_attachments(self.text, self.attached.attachments)

    @property
    def written(self) -> str:
        """The message that is being written, also while something else is shown."""
        return self.message if self._is_own else self._written

    @property
    def changed(self) -> str:
        """The earlier message that is shown instead, if it was changed; else empty."""
        return "" if self._is_own or self.message == self._shown_as else self.message

    @property
    def mention(self) -> str | None:
        """What is typed behind the `@` before the cursor; None without one."""
        row, column = self.cursor_location
        return mention_at(self.document.get_line(row), column)

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
        """Show `text` instead of what is there, with the cursor at its end; what is attached stays."""
        self.text = text
        self.move_cursor(self.document.end)

    def write(self, message: str) -> None:
        """Let `message` be what is being written, and show it."""
        self._place = len(self._history)
        self._put_message(message)

    def show_beside(self, message: str) -> None:
        """Show an earlier message, or a command that is begun; what is being written waits."""
        self._keep()
        if self._history[-1:] != [message]:
            self._history.append(message)
        self._show(len(self._history) - 1)

    def show_written(self) -> None:
        """Put away what is shown beside, where up finds it as it is now; what is being written comes back."""
        self._keep()
        self._show(len(self._history))

    def keep_aside(self, text: str) -> None:
        """Let up find a text, while what is shown stays."""
        self.show_beside(text)
        self.show_written()

    def give_back(self, message: str) -> None:
        """Show what could not be sent; what was written meanwhile stays below it, or waits beside a command."""
        if is_command(message) and not self.text.strip():
            self.put(message)
        elif message.startswith("/") and self.text.strip():
            self.show_beside(message)
        else:
            self._put_message(joined_messages((message, self.message)))

    async def attach(self, path: Path) -> bool:
        """Attach a text file; return whether it can be. Keys that come meanwhile wait."""
        try:
            self.attached.add(await asyncio.to_thread(read_attachment, path))
        except BadInputError as error:
            self.post_message(self.Refused(str(error)))
            return False
        return True

    async def take_file(self, path: str) -> None:
        """Attach a file in place of the `@` before the cursor, which stays where that fails; go on in a folder."""
        mention, (row, column) = self.mention, self.cursor_location
        start = (row, column - (0 if mention is None else len(mention) + 1))
        if path.endswith("/"):
            self.replace(f"@{path}", start, (row, column))
            return
        self.completions.show(())
        if await self.attach(Path(os.path.expanduser(path))):  # noqa: PTH111 - which leaves an unknown home as it is
            self.replace("", start, (row, column))

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

    async def _on_paste(self, event: events.Paste) -> None:
        """Attach a long text instead of writing it, unless it is pasted into a command."""
        text = event.text
        if is_command(self.text) or not is_long_paste(text):
            return
        event.prevent_default()
        try:
            self.attached.add(pasted(text))
        except BadInputError as error:
            self.post_message(self.Refused(str(error)))

    async def action_send(self) -> None:
        """Send the prompt; a command that is not typed to its end is taken from the list first."""
        if (wanted := self.completions.wanted(self.text)) is not None:
            await self._take(wanted)
            if wanted.is_file or wanted.text.endswith("/"):  # a folder, in which something is still to be chosen
                return
        is_order = is_command(self.text)
        if not is_order and not await self._attach_mentioned():
            return
        text, attached = self.text, self.attached.attachments
        message = text if is_order else self.message
        if not message.strip():
            return
        written = self._written if not self._is_own else with_attachments("", attached if is_order else ())
        if not self._is_own:
            self._history[self._place] = self._shown_as
        if self._history[-1:] != [message]:
            self._history.append(message)
        self.write(written)
        self.post_message(self.Sent(text, () if is_order else attached))

    async def _attach_mentioned(self) -> bool:
        """Attach the files that the text names with an `@`, which becomes their plain name; return whether all are."""
        if "@" not in self.text:
            return True
        for word, path in await asyncio.to_thread(lambda: list(mentioned_files(self.text))):
            if not await self.attach(path):
                return False
            self.put(self.text.replace(word, word[1:], 1))
        return True

    async def _take(self, completion: Completion) -> None:
        if completion.is_file:
            await self.take_file(completion.text)
        else:
            self.put(completion.text)

    def action_new_line(self) -> None:
        self.insert("\n")

    async def action_complete(self) -> None:
        if (chosen := self.completions.chosen) is None:
            self.screen.focus_next()
        else:
            await self._take(chosen)

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
            self._written = self.message
        else:
            self._history[self._place] = self.message

    def _show(self, place: int) -> None:
        self._place = place
        self._shown_as = self._written if self._is_own else self._history[place]
        self._put_message(self._shown_as)

    def _put_message(self, message: str) -> None:
        attachments, text = split_attachments(message)
        self.attached.put(attachments)
        self.put(text)
