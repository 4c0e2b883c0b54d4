"""What an answer calls, with all its arguments, and what the tool said: one line that opens.

Every line that a model or a tool wrote stands behind a bar, so that none can pass for the app's own.
"""

import json
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Static

from runtime.prompts.prompt_file import ToolCall
from tui.chat.commands.keymap import bind
from tui.chat.store.records import StoredMessage
from tui.terminal_text import counted, one_line, show_terminal_escapes

MAX_SHOWN_CHARACTERS = 20_000
_BAR = "│ "
_OUTCOMES = {"done": "said", "failed": "failed", "refused": "was not allowed", "stopped": "was stopped"}


def tool_words(name: str) -> str:
    """Return a tool's name as people read it: `read of files` for `files__read`."""
    server, parted, own_name = name.partition("__")
    return one_line(f"{own_name} of {server}" if parted else name)


def argument_lines(arguments: str) -> str:
    """Return the arguments of a call, one behind the other, each line behind a bar."""
    lines = []
    for name, value in json.loads(arguments).items():
        first, *rest = barred_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        lines += [f"{_BAR}{_line(name)}: {first}", *(f"{_BAR}  {line}" for line in rest)]
    return "\n".join(lines) or f"{_BAR}no arguments"


def barred_text(text: str) -> list[str]:
    """Return the lines of a text with signs for what a terminal would obey."""
    return [_line(line) for line in text.replace("\r\n", "\n").splitlines() or [""]]


def _line(text: str) -> str:
    return show_terminal_escapes(text).replace("\n", "␊")


class ToolCallView(Vertical):
    """The call at an answer's end; hidden where there is none."""

    DEFAULT_CLASSES = "tool-call"

    def __init__(self, call: ToolCall | None = None) -> None:
        super().__init__()
        self._call = call
        self._head = Static("", markup=False, classes="tool-head")
        self._arguments = Static("", markup=False, classes="tool-text")
        self._words = Static("", markup=False, classes="tool-words")
        self._words.display = False

    def compose(self) -> ComposeResult:
        yield from (self._head, self._arguments, self._words)

    def on_mount(self) -> None:
        self.show(self._call)

    def show(self, call: ToolCall | None) -> None:
        """Show a call, whole."""
        self._call = call
        self.display = call is not None
        if call is not None:
            self._head.update(f"calls {tool_words(call.name)}")
            self._arguments.update(argument_lines(call.arguments))

    def tell(self, words: str) -> None:
        """Say how the call stands; nothing once that is over."""
        self._words.update(words)
        self._words.display = bool(words)


class ToolTurn(Vertical, can_focus=True):
    """What a tool said, folded to a line."""

    DEFAULT_CLASSES = "turn tool-turn"
    FOCUS_ON_CLICK = False  # the prompt keeps the focus
    BINDINGS: ClassVar[list[BindingType]] = [
        bind("fold", "fold", "Open or fold", tooltip="Open or fold what the tool said")
    ]

    def __init__(self, message: StoredMessage) -> None:
        super().__init__()
        self.message = message
        self.is_open = False
        self._head = Static("", markup=False, classes="tool-head")
        self._body = Static("", markup=False, classes="tool-text")

    def compose(self) -> ComposeResult:
        yield from (self._head, self._body)

    def on_mount(self) -> None:
        self.open(False)

    def open(self, is_open: bool) -> None:
        """Show all that the tool said, or the line alone."""
        self.is_open = is_open
        self._head.update(f"{'▾' if is_open else '▸'} {result_line(self.message)}")
        self._head.tooltip = f"{'Fold' if is_open else 'Open'} what the tool said"
        shown = self.message.content[:MAX_SHOWN_CHARACTERS] if is_open else ""
        self._body.update("\n".join(f"{_BAR}{line}" for line in barred_text(shown)))
        self._body.display = is_open

    def action_fold(self) -> None:
        self.open(not self.is_open)

    def on_click(self) -> None:
        self.action_fold()


def result_line(message: StoredMessage) -> str:
    """Return what is said of a result that is folded: whose, how it went, how much, and its first line."""
    name = "a tool" if message.call is None else tool_words(message.call.name)
    seconds = message.statistics.get("seconds")
    figures = [counted(len(message.content), "character")]
    if isinstance(seconds, int | float) and seconds:
        figures.append(f"{seconds:.1f} s")
    first = next((line for line in barred_text(message.content) if line.strip()), "")
    return f"{name} {_OUTCOMES[message.outcome]} ({', '.join(figures)}): “{first.strip()}”"
