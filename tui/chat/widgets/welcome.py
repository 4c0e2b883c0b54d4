"""What an empty conversation shows: which model answers, three prompts to begin with, and what is good to know."""

from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Button, Static

from tui.chat.commands.keymap import key_now, keys_now
from tui.chat.commands.registry import key_text
from tui.terminal_text import one_line

ASK = "Ask something below, or press one of these:"
EXAMPLES = (
    "Explain how a hash table works, with an example",
    "Write a Python function that merges two sorted lists",
    "What should I see in Lisbon in two days?",
)
WRITE_ON = "Begin a text below, and it writes on; or press one of these:"
BEGINNINGS = (
    "Once upon a time, in a house by the sea,",
    "def merge_sorted(left, right):",
    "The three most useful inventions are",
)


@dataclass(frozen=True, slots=True)
class Greeting:
    """All that the welcome says."""

    headline: str = ""
    has_chat_template: bool = True
    """Whether the model answers, rather than writes on from a text."""
    notes: tuple[str, ...] = ()
    """What a user should know of the model that is open."""


class Welcome(Vertical):
    """Says it, and tells the screen which prompt was pressed."""

    DEFAULT_CLASSES = "welcome"

    @dataclass
    class Chosen(Message):
        """One of the prompts is to be asked."""

        text: str

    def __init__(self, greeting: Greeting) -> None:
        super().__init__()
        self._greeting = greeting

    def compose(self) -> ComposeResult:
        yield Static(markup=False, classes="welcome-model")
        yield Static(markup=False, classes="welcome-ask")
        for number in range(len(EXAMPLES)):
            yield Button("", compact=True, name=str(number), tooltip="Ask this", classes="welcome-example")
        yield Static(self._keys(), markup=False, classes="welcome-keys")
        yield Static(markup=False, classes="welcome-notes")

    def _keys(self) -> str:
        new_line = key_text(keys[-1]) if (keys := keys_now(self, "new_line")) else "/help"
        words = f"{new_line} new line · / commands · {key_now(self, 'help')} all keys"
        return f"{words}\nWhat is said here stays on this machine."

    def on_mount(self) -> None:
        self.show(self._greeting)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return what can be pressed."""
        return EXAMPLES if self._greeting.has_chat_template else BEGINNINGS

    def show(self, greeting: Greeting) -> None:
        """Say this from now on."""
        self._greeting = greeting
        headline = self.query_one(".welcome-model", Static)
        headline.update(one_line(greeting.headline))
        headline.display = bool(greeting.headline)
        self.query_one(".welcome-ask", Static).update(ASK if greeting.has_chat_template else WRITE_ON)
        for button, text in zip(self.query(Button), self.prompts, strict=True):
            button.label = f"› {text}"
        notes = self.query_one(".welcome-notes", Static)
        notes.update("\n".join(map(one_line, greeting.notes)))
        notes.display = bool(greeting.notes)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Chosen(self.prompts[int(event.button.name or 0)]))
