"""Dialogs that ask for a line, such as a title, or for several, such as a system prompt; and the help page.

A dialog returns what was written, or None if it was not wanted after all.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static, TextArea

from tui.chat.commands.keymap import bind, key_now, keys_now
from tui.chat.commands.registry import COMMANDS, GROUPS, Command, commands_of, key_text
from tui.chat.settings.settings import TYPED_SETTINGS
from tui.chat.widgets.prompt import SafeTextArea


class _Dialog(ModalScreen[str | None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        bind("cancel", "dismiss", "Cancel", show=True, tooltip="Leave everything as it was"),
    ]

    def __init__(self, question: str, field: Callable[[], Input | TextArea], hint: Callable[[], str]) -> None:
        """`field` and `hint` are asked once an app runs, without which no input can be made and no key is known."""
        super().__init__()
        self._question, self._field, self._hint = question, field, hint

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._question, markup=False, classes="dialog-title")
            yield self._field()
            yield Static(self._hint(), markup=False, classes="dialog-hint")


class LineDialog(_Dialog):
    """Asks for one line; nothing at all counts as not wanted."""

    def __init__(self, question: str, text: str = "", *, hint: str = "") -> None:
        """`hint`: what is said below the field, unless it is which keys keep it."""
        usual = "Enter keeps it, {} does not"
        super().__init__(
            question, lambda: Input(text, compact=True), lambda: hint or usual.format(key_now(self, "cancel"))
        )

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip() or None)


class TextDialog(_Dialog):
    """Asks for several lines; an empty text is an answer too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("keep", "keep", "Keep", show=True, priority=True, tooltip="Keep the text as it is now"),
    ]

    def __init__(self, question: str, text: str = "") -> None:
        super().__init__(
            question,
            lambda: SafeTextArea(text, soft_wrap=True, compact=True, highlight_cursor_line=False),
            lambda: f"{key_now(self, 'keep')} keeps it, {key_now(self, 'cancel')} does not; empty is the model's own",
        )

    def action_keep(self) -> None:
        self.dismiss(self.query_one(TextArea).text)


class HelpScreen(ModalScreen[None]):
    """All commands and keys on one page, or one command; any of Esc, Enter, q and F1 closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bind("help_close", "dismiss", "Close", show=True, tooltip="Back to the conversation"),
    ]

    def __init__(self, bindings: Iterable[BindingType] = (), *, command: Command | None = None) -> None:
        """Take the bindings whose keys are to be listed, those of commands aside; or explain one `command`."""
        super().__init__()
        self._command = command
        helps = {command.help for command in COMMANDS}
        explained = [each for each in bindings if isinstance(each, Binding) and each.tooltip]
        self._keys = sorted((each for each in explained if each.tooltip not in helps), key=lambda each: each.action)

    def compose(self) -> ComposeResult:
        with Vertical(id="help-page") as page:
            page.border_title = "Help"
            with VerticalScroll():
                yield from self._all() if self._command is None else self._one(self._command)
            close, palette = key_now(self, "help_close"), key_now(self, "palette")
            words = f"↑↓ scroll · {close} closes · commands are typed, or found with {palette}"
            yield Static(words, id="help-hint", markup=False)

    def _all(self) -> ComposeResult:
        for group in GROUPS:
            yield Static(group, classes="help-part")
            yield from map(self._command_row, commands_of(group))
        yield Static("Keys", classes="help-part")
        for binding in self._keys:
            keys = binding.key.split(",") if binding.id is None else keys_now(self, binding.id)
            name = "" if binding.id is None else f" ({binding.id})"
            yield _help_row("", ", ".join(map(key_text, keys)) or "no key", f"{binding.tooltip}{name}")
        words = "A table [keys] in the settings file gives other keys, by these names and those of the commands."
        yield Static(words, classes="help-words", markup=False)

    def _one(self, command: Command) -> ComposeResult:
        yield self._command_row(command)
        if command.aliases:
            yield _help_row("also", "", ", ".join(f"/{alias}" for alias in command.aliases))
        if command.name == "set":
            for setting in TYPED_SETTINGS.values():
                yield _help_row(setting.name, "", setting.help)

    def _command_row(self, command: Command) -> Horizontal:
        return _help_row(command.usage, ", ".join(map(key_text, keys_now(self, command.name))), command.help)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()


def _help_row(name: str, key: str, words: str) -> Horizontal:
    """Put name, key and words beside each other; without a name the key has its room."""
    columns = (("name", name), ("key" if name else "key -alone", key), ("words", words))
    shown = (Static(Content(text), classes=f"help-{kind}") for kind, text in columns if kind != "name" or text)
    return Horizontal(*shown, classes="help-row")
