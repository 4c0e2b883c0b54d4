"""All commands and keys on one page, or how one command is used; from the registry, so that it is never out of date."""

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from runtime.errors import OptionError
from tui.chat.commands.registry import COMMANDS, find_command, key_text
from tui.chat.commands.slash import unknown_command
from tui.chat.settings.settings import TYPED_SETTINGS


def command_help(name: str) -> str:
    """Say how one command is used, in a few sentences. Raises OptionError for a name that is none."""
    command = find_command(name.removeprefix("/"))
    if command is None:
        raise OptionError(unknown_command(name.removeprefix("/")))
    others = f" Also {', '.join(f'/{alias}' for alias in command.aliases)}." if command.aliases else ""
    key = f" Key: {key_text(command.key)}." if command.key else ""
    settings = f" Names: {', '.join(TYPED_SETTINGS)}." if command.name == "set" else ""
    return f"{command.usage}: {command.help}{key}{others}{settings}"


class HelpScreen(ModalScreen[None]):
    """The page; any of Esc, Enter, q and F1 closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,f1", "dismiss", "Close", tooltip="Back to the conversation"),
    ]

    def __init__(self, bindings: Iterable[BindingType] = ()) -> None:
        """Take the bindings whose keys are to be listed, those of commands aside."""
        super().__init__()
        helps = {command.help for command in COMMANDS}
        explained = [each for each in bindings if isinstance(each, Binding) and each.tooltip]
        self._keys = sorted((each for each in explained if each.tooltip not in helps), key=lambda each: each.action)

    def compose(self) -> ComposeResult:
        with Vertical(id="help-page") as page:
            page.border_title = "Help"
            with VerticalScroll():
                yield Static("Commands: in the prompt, by key, or in the palette (Ctrl+P)", classes="help-part -first")
                for command in COMMANDS:
                    yield _help_row(command.usage, key_text(command.key) if command.key else "", command.help)
                yield Static("Keys", classes="help-part")
                for binding in self._keys:
                    yield _help_row("", ", ".join(map(key_text, binding.key.split(","))), binding.tooltip)
            yield Static("↑↓ scroll · Esc closes", id="help-hint")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()


def _help_row(name: str, key: str, words: str) -> Horizontal:
    """Put name, key and words beside each other; without a name the key has its room."""
    columns = (("name", name), ("key" if name else "key -alone", key), ("words", words))
    shown = (Static(Content(text), classes=f"help-{kind}") for kind, text in columns if kind != "name" or text)
    return Horizontal(*shown, classes="help-row")
