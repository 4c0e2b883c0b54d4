"""All commands with their keys, and the keys that are no commands, on one page."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.chat.command_palette import key_text
from tui.chat.command_registry import COMMANDS

OTHER_KEYS = (
    ("Enter", "Send the prompt."),
    ("Ctrl+J, Shift+Enter", "Begin another line."),
    ("Up, Down", "At the first or last line: the prompts before and after."),
    ("Tab", "Take a completion; else go to the next part of the screen."),
    ("PageUp, PageDown", "Scroll the conversation."),
    ("Ctrl+Home, Ctrl+End", "Go to the first turn; to the last one, and follow it."),
    ("F6", "Go to the choices of a notice."),
    ("Ctrl+P", "Find a command by any word."),
    ("Ctrl+C", "Copy what is selected; twice quits."),
)
"""Keys beside those of the commands, with what they do."""
_INDENT = 22


class HelpScreen(ModalScreen[None]):
    """The page."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q", "dismiss", "Close", tooltip="Back to the chat"),
    ]

    def compose(self) -> ComposeResult:
        """Keys, then commands."""
        with VerticalScroll(classes="dialog -page"):
            yield Static(help_content())

    def on_mount(self) -> None:
        """Let the arrows scroll."""
        page = self.query_one(VerticalScroll)
        page.border_title = "Keys and commands"
        page.border_subtitle = "Esc closes"
        page.focus()


def help_content() -> Content:
    """One line for each key and command, and what it does below where both do not fit."""
    lines = [_line(keys, words) for keys, words in OTHER_KEYS]
    lines.append(Content(""))
    for command in COMMANDS:
        name = f"/{command.name}" + (f"  {key_text(command.key)}" if command.key else "")
        lines.append(_line(name, command.help))
    return Content("\n").join(lines)


def _line(keys: str, words: str) -> Content:
    return Content.assemble((keys.ljust(_INDENT), "bold $text-accent"), (words, ""))
