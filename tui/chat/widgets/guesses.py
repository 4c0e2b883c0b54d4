"""An answer as it was written, with what was guessed ahead in another colour, and the line that says what it means."""

from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from tui.chat.commands.keymap import key_now
from tui.chat.store.guesses import Guesses, Origin
from tui.terminal_text import shown_text

UNKNOWN = "what was guessed is not known of this answer"
_GUESSED, _GUESSED_WITHOUT_COLOR = "$text-success on $success 20%", "underline"
_UNKNOWN = "$text-muted italic"


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


class GuessesLegend(Widget):
    """One line that says which colour is what, and how to go back; in fewer words where there is no room."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.display = False
        self.tooltip = (
            "A draft guessed these words ahead, or they were looked up in the text, and the model agreed; all others "
            "it chose itself, one with each pass. The answer is the model's own either way."
        )

    def show(self, is_shown: bool) -> None:
        """Say it, or nothing."""
        self.display = is_shown
        self.refresh()

    def render(self) -> Content:
        """Show each kind of word as the answers do."""
        key = key_now(self, "guesses")
        whole = self._line("guessed ahead and kept", "the model's own word", "not recorded", f"   ({key} goes back)")
        brief = self._line("guessed", "its own", "unknown", f" ({key} back)")
        return whole if whole.cell_length <= self.content_size.width else brief

    def _line(self, guessed: str, own: str, unknown: str, end: str) -> Content:
        has_colors = not self.app.no_color
        of_guessed, of_unknown = (origin_style(each, has_colors=has_colors) for each in ("guessed", "unknown"))
        return Content.assemble((guessed, of_guessed), f" · {own} · ", (unknown, of_unknown), (end, "$text-muted"))
