"""An answer as it was written, with what was guessed ahead in another colour, and the line that says what it means."""

from textual.content import Content
from textual.widgets import Static

from tui.chat.commands.keymap import key_now
from tui.chat.store.guesses import Guesses, Origin
from tui.terminal_text import shown_text

UNKNOWN = "what was guessed is not known of this answer"
_GUESSED, _GUESSED_WITHOUT_COLOR = "$text-success on $success 20%", "underline"
_UNKNOWN = "dim italic"


def origin_style(origin: Origin, *, has_colors: bool) -> str:
    """Return how text of that origin is drawn: told apart without colours too."""
    if origin == "guessed":
        return _GUESSED if has_colors else _GUESSED_WITHOUT_COLOR
    return _UNKNOWN if origin == "unknown" else ""


def guessed_share(num_guessed: int | None, num_tokens: int | None) -> str:
    """Say how much of an answer was guessed: `guessed ahead 82 %`."""
    if num_guessed is None or not num_tokens:
        return UNKNOWN
    share = min(100, 100 * num_guessed // num_tokens)  # rounded down, since all is only said of all
    return f"guessed ahead {share} %"


class GuessedAnswer(Static):
    """The text of an answer without its Markdown being drawn."""

    DEFAULT_CLASSES = "guessed-answer"

    def __init__(self) -> None:
        super().__init__("", markup=False)

    def show(self, text: str, guesses: Guesses | None) -> None:
        """Show a text, of which everything is of unknown origin where nothing was told."""
        known = guesses or Guesses(start=len(text))
        has_colors = not self.app.no_color
        styled = (
            (shown_text(piece), origin_style(origin, has_colors=has_colors)) for piece, origin in known.pieces(text)
        )
        self.update(Content.assemble(*styled))


class GuessesLegend(Static):
    """One line that says which colour is what, and how to go back."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("", id=id, markup=False)
        self.display = False
        self.tooltip = (
            "A draft guessed these words ahead, or they were looked up in the text, and the model agreed; all others "
            "it chose itself, one with each pass. The answer is the model's own either way."
        )

    def show(self, is_shown: bool) -> None:
        """Say it, or nothing."""
        has_colors = not self.app.no_color
        guessed, unknown = (origin_style(origin, has_colors=has_colors) for origin in ("guessed", "unknown"))
        words = Content.assemble(
            ("guessed ahead and kept", guessed),
            " · the model's own word · ",
            ("not recorded", unknown),
            (f"   ({key_now(self, 'guesses')} goes back)", "dim"),
        )
        self.update(words)
        self.display = is_shown
