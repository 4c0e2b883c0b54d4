"""One or two rows on what the engine does and how fast, in as many figures as fit.

One row: the phase, then the figures. Two rows: the phase and the model above, the figures below. The figure under the
pointer explains itself in a tooltip; all of them are in the machine panel for the keyboard.
"""

from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tui.chat.engine.engine_state import EngineState, Phase
from tui.chat.machine.status_figures import GAP, fit_figures, fit_text, phase_text, phase_tooltip, status_figures
from tui.terminal_text import one_line

_PHASE_STYLES: dict[Phase, str] = {
    "no model": "$text-muted",
    "loading": "$text-accent",
    "ready": "$text-success",
    "prefill": "$text-accent",
    "drafting": "$text-primary",
    "verifying": "$text-primary",
    "stopped": "$text-warning",
    "error": "bold $text-error",
    "dead": "bold $text-error",
}


@dataclass(frozen=True, slots=True)
class StatusPiece:
    """Text at one place of a row."""

    text: str
    """What stands there."""
    style: str
    """How."""
    tooltip: str
    """What it means."""


class StatusLine(Widget):
    """Shows an `EngineState`; redraws only when a character changes."""

    DEFAULT_CSS = """
    StatusLine {
        height: 1;
        padding: 0 1;
        background: $panel;
        color: $foreground;
    }
    StatusLine.-two-rows { height: 2; }
    """

    num_rows = reactive(1)
    """One or two."""

    def __init__(self, *, num_rows: int = 1, id: str | None = None) -> None:
        super().__init__(id=id)
        self._state = EngineState()
        self._rows: tuple[tuple[StatusPiece, ...], ...] = ()
        self.set_reactive(StatusLine.num_rows, num_rows)
        self.set_class(num_rows > 1, "-two-rows")

    def show(self, state: EngineState) -> None:
        """Shows that state from now on."""
        self._state = state
        self._lay_out()

    def watch_num_rows(self, num_rows: int) -> None:
        """Makes room for a second row, or takes it back."""
        self.set_class(num_rows > 1, "-two-rows")
        self._lay_out()

    def on_resize(self) -> None:
        """Fits the figures to the new width."""
        self._lay_out()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Explains the figure under the pointer."""
        offset = event.get_content_offset(self)
        piece = None if offset is None else piece_at(self._rows, column=offset.x, row=offset.y)
        tooltip = None if piece is None else piece.tooltip
        if self.tooltip != tooltip:
            self.tooltip = tooltip

    def render(self) -> Content:
        """The rows, one below the other."""
        rows = [Content.assemble(*((piece.text, piece.style) for piece in row)) for row in self._rows]
        return Content("\n").join(rows)

    def _lay_out(self) -> None:
        rows = status_rows(self._state, width=self.content_size.width, num_rows=self.num_rows)
        if rows != self._rows:
            self._rows = rows
            self.refresh()


def status_rows(state: EngineState, *, width: int, num_rows: int) -> tuple[tuple[StatusPiece, ...], ...]:
    """What stands in each row, gaps included, each row at most `width` cells."""
    if width <= 0:
        return ((),) * num_rows
    if num_rows > 1:
        return _phase_and_model(state, width), _figures(state, width)
    words = phase_text(state)
    room = width - cell_len(words) - len(GAP)
    figures = _figures(state, room) if room > 0 else ()
    phase = _phase(state, width)
    return ((phase, _space(width - cell_len(phase.text) - _width(figures)), *figures) if figures else (phase,),)


def piece_at(rows: tuple[tuple[StatusPiece, ...], ...], *, column: int, row: int) -> StatusPiece | None:
    """The piece in that cell; None in a gap and outside."""
    start = 0
    for piece in rows[row] if 0 <= row < len(rows) else ():
        end = start + cell_len(piece.text)
        if start <= column < end:
            return piece if piece.tooltip else None
        start = end
    return None


def _phase_and_model(state: EngineState, width: int) -> tuple[StatusPiece, ...]:
    phase = _phase(state, width)
    room = width - cell_len(phase.text) - len(GAP)
    if state.model is None or room < len("model…"):
        return (phase,)
    draft = "" if state.model.draft == "none" else f" + {one_line(state.model.draft)}"
    name = fit_text(one_line(state.model.target) + draft, room)
    tooltip = f"{one_line(state.model.target)}, draft {one_line(state.model.draft)}, on {one_line(state.model.device)}."
    model = StatusPiece(name, "$text-muted", tooltip)
    return phase, _space(width - cell_len(phase.text) - cell_len(name)), model


def _phase(state: EngineState, width: int) -> StatusPiece:
    return StatusPiece(fit_text(phase_text(state), width), _PHASE_STYLES[state.phase], phase_tooltip(state))


def _figures(state: EngineState, width: int) -> tuple[StatusPiece, ...]:
    pieces: list[StatusPiece] = []
    for figure, text in fit_figures(status_figures(state), width):
        if pieces:
            pieces.append(_space(len(GAP)))
        pieces.append(StatusPiece(text, "bold" if figure.name == "rate" else "", figure.tooltip))
    return tuple(pieces)


def _space(width: int) -> StatusPiece:
    return StatusPiece(" " * width, "", "")


def _width(pieces: tuple[StatusPiece, ...]) -> int:
    return sum(cell_len(piece.text) for piece in pieces)
