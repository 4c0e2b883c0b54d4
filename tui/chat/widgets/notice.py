"""A bar over the prompt: what happened, and what can be done about it, one key or click each.

The conversation stays in sight, and the prompt keeps the focus: a choice is made by who goes there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Button, Static

from tui.chat.commands.keymap import bind, key_now
from tui.terminal_text import one_line


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing to do about a notice."""

    label: str
    command: str
    """What the screen is told to do: the name of a command, and what stands behind it."""
    help: str


class NoticeBar(Vertical):
    """One notice at a time; the next one takes its place. What the user must have read stays above them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("choice_before", "app.focus_previous", "Left", tooltip="The button before"),
        bind("choice_after", "app.focus_next", "Right", tooltip="The button after"),
        bind("notice_close", "dismiss", "Dismiss", tooltip="Put the notice away"),
    ]

    class Dismissed(Message):
        """The notice was put away."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lasting = ""
        self.display = False

    def compose(self) -> ComposeResult:
        yield Static("", markup=False, id="notice-text")
        yield Horizontal(id="notice-choices")

    @property
    def sentence(self) -> str:
        return str(self.query_one("#notice-text", Static).content) if self.display else ""

    async def show(self, sentence: str, choices: Sequence[Choice], *, is_error: bool = True) -> None:
        """Say something, and offer choices."""
        self.query_one("#notice-text", Static).update("\n".join(filter(None, (self._lasting, one_line(sentence)))))
        row = self.query_one("#notice-choices", Horizontal)
        await row.remove_children()
        await row.mount(Static(key_now(self, "choices"), markup=False, classes="notice-hint"))
        await row.mount_all(map(_button, (*choices, Choice("Dismiss", "", "Put the notice away"))))
        self.query(Button).first().variant = "primary"
        self.set_class(is_error, "-error")
        self.display = True

    async def show_lasting(self, sentence: str) -> None:
        """Say something that stays, above whatever is said meanwhile, until the user puts it away."""
        self._lasting = one_line(sentence)
        await self.show("", ())

    def end_lasting(self) -> None:
        """Say no more what was to stay; what was said besides stays."""
        rest = self.sentence.removeprefix(self._lasting).strip()
        self._lasting = ""
        if rest:
            self.query_one("#notice-text", Static).update(rest)
        elif self.display:
            self.action_dismiss()

    async def withdraw(self) -> None:
        """Say no more what no longer holds; what lasts stays."""
        if self._lasting:
            await self.show("", ())
        elif self.display:
            self.action_dismiss()

    def focus_choices(self) -> None:
        self.query(Button).first().focus()

    def action_dismiss(self) -> None:
        self._lasting = ""
        self.display = False
        self.post_message(self.Dismissed())

    async def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_dismiss()
        if event.button.name:
            await self.run_action(f"screen.do({', '.join(map(repr, event.button.name.split()))})")


def _button(choice: Choice) -> Button:
    return Button(choice.label, name=choice.command, compact=True, tooltip=choice.help)
