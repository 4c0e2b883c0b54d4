"""Shows in one or two rows what the engine does and how fast it is, with as many figures as fit.

One row: the phase, then the figures. Two rows: the phase and the model above, the figures below. In a narrow terminal
the least important figures become short, and then are left out. The figure under the pointer explains itself in a
tooltip; the machine panel shows all of them to the keyboard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from offload.units import format_bytes
from tui.chat.engine.state import EngineState, Phase
from tui.chat.machine.drawing import fit_text, progress_bar, rate_text
from tui.terminal_text import one_line

GAP = "  "
BAR_WIDTH = 8
_BUSY_WIDTH = 33  # of the longest words of an answer in progress, so that figures do not come and go with every pass
_MARKS: dict[Phase, str] = {"no model": "○", "ready": "●", "stopped": "■", "error": "✗", "dead": "✗"}


@dataclass(frozen=True, slots=True)
class StatusFigure:
    """One figure of a status row."""

    name: str
    """Names it, for styles."""
    text: str
    """Stands where there is room."""
    short: str
    """Stands where there is little."""
    importance: int
    """The lowest is left out first."""
    tooltip: str
    """Says what it means."""


def phase_text(state: EngineState) -> str:
    """Say what the engine does and how far it is."""
    match state.phase:
        case "loading":
            return _loading_text(state)
        case "prefill":
            return _steps_text("prefill", state.num_prefilled_tokens, state.num_prompt_tokens, unit="tokens")
        case "drafting":
            nodes = f", {state.draft_width} nodes" if state.draft_width else ""
            return f"drafting level {state.draft_level}{nodes}".ljust(_BUSY_WIDTH)
        case "verifying":
            return _steps_text("verifying", state.num_done_layers, state.num_layers, unit="layers")
        case "error" | "dead":
            return f"{_MARKS[state.phase]} {one_line(state.sentence) or state.phase}"
        case "no model":
            return f"{_MARKS[state.phase]} no model: /model"
        case _:
            return f"{_MARKS[state.phase]} {state.phase}"


def phase_tooltip(state: EngineState) -> str:
    """Say the same in a sentence."""
    match state.phase:
        case "no model":
            return "No model is loaded; /model lists those on this machine."
        case "loading":
            return f"Loading: {one_line(state.load.latest.progress.what) or 'starting'}."
        case "ready":
            return "The model waits for a prompt."
        case "stopped":
            return "The answer was stopped; what came is kept."
        case "prefill":
            return "The target reads the prompt, in chunks; what it has read before is not read again."
        case "drafting":
            return "The draft proposes a tree of continuations, level by level."
        case "verifying":
            return "One pass of the target over all nodes of the tree; streamed layers cross the link."
        case _:
            return one_line(state.sentence) or state.phase


def status_figures(state: EngineState) -> tuple[StatusFigure, ...]:
    """Return all figures that are known, in the order in which they stand."""
    found = (_rates(state), _link(state), _memory(state), _context(state))
    return tuple(figure for group in found for figure in group)


def fit_figures(figures: Sequence[StatusFigure], width: int) -> tuple[tuple[StatusFigure, str], ...]:
    """Return each figure that fits, with its text: the least important become short first, then are left out."""
    by_importance = sorted(figures, key=lambda figure: figure.importance)
    kept, shortened = list(figures), set[str]()
    for figure in by_importance:
        if _width(kept, shortened) <= width:
            break
        shortened.add(figure.name)
    for figure in by_importance:
        if _width(kept, shortened) <= width:
            break
        kept.remove(figure)
    return tuple((figure, _text(figure, shortened)) for figure in kept)


def duration_text(seconds: float) -> str:
    """Return `8 s`, `2:05 min` or `1:04 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _loading_text(state: EngineState) -> str:
    load, progress = state.load, state.load.latest.progress
    parts = ["downloading" if progress.what.startswith("downloading ") else "loading"]
    if load.share is None:
        parts += [one_line(progress.what)] if progress.what else []
    else:
        parts += [
            progress_bar(load.share, BAR_WIDTH),
            f"{format_bytes(progress.num_done_bytes)}/{format_bytes(progress.num_bytes)}",
        ]
    if load.bytes_per_second is not None:
        parts.append(f" {format_bytes(load.bytes_per_second)}/s")
    if load.seconds_left is not None:
        parts.append(f" {duration_text(load.seconds_left)} left")
    return " ".join(parts)


def _steps_text(what: str, num_done: int, num_steps: int, *, unit: str) -> str:
    if num_steps <= 0:
        return what.ljust(_BUSY_WIDTH)
    bar = progress_bar(num_done / num_steps, BAR_WIDTH)
    return f"{what} {bar} {num_done}/{num_steps} {unit}".ljust(_BUSY_WIDTH)


def _rates(state: EngineState) -> list[StatusFigure]:
    figures = state.figures
    if figures.tokens_per_second is None or figures.tokens_per_pass is None:
        return []
    rate, per_pass = rate_text(figures.tokens_per_second), f"{figures.tokens_per_pass:.1f}"
    predicted = state.predicted_tokens_per_second
    expected = "" if predicted is None else f"; the planner expects {rate_text(predicted)}"
    return [
        StatusFigure("rate", f"{rate} tok/s", f"{rate} tok/s", 9, f"Tokens per second over the last rounds{expected}."),
        StatusFigure(
            *("per pass", f"{per_pass} tok/pass", f"{per_pass}/pass", 7),
            "Tokens that one pass of the target brings, over the last rounds.",
        ),
    ]


def _link(state: EngineState) -> list[StatusFigure]:
    rate, share = state.figures.link_bytes_per_second, state.figures.link_utilization
    if rate is None or share is None:
        return []
    speed = f"{format_bytes(rate)}/s"
    tooltip = f"Streamed layers cross the link at {speed}; it is busy {share:.0%} of the time."
    return [StatusFigure("link", f"link {speed} {share:.0%}", f"link {share:.0%}", 6, tooltip)]


def _memory(state: EngineState) -> list[StatusFigure]:
    found = []
    if state.model is not None and state.model.device_bytes:
        size = format_bytes(state.model.device_bytes)
        tooltip = f"The runtime holds {size} on the device."
        found.append(StatusFigure("device", f"device {size}", f"dev {size}", 4, tooltip))
    if state.session.process_bytes:
        size = format_bytes(state.session.process_bytes)
        tooltip = f"The engine's process holds {size} of host memory."
        found.append(StatusFigure("host", f"host {size}", f"host {size}", 3, tooltip))
    return found


def _context(state: EngineState) -> list[StatusFigure]:
    if state.model is None or state.model.context_tokens <= 0:
        return []
    used, size = state.session.num_context_tokens, state.model.context_tokens
    share = f"{used / size:.0%}"
    tooltip = f"Prompt and answer take {used} of {size} tokens of the context."
    return [StatusFigure("context", f"context {used}/{size}", f"ctx {share}", 8, tooltip)]


def _text(figure: StatusFigure, shortened: set[str]) -> str:
    return figure.short if figure.name in shortened else figure.text


def _width(figures: Sequence[StatusFigure], shortened: set[str]) -> int:
    texts = [cell_len(_text(figure, shortened)) for figure in figures]
    return sum(texts) + len(GAP) * max(0, len(texts) - 1)


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
    """Text at one place of a row, a gap included."""

    text: str
    style: str
    tooltip: str


class StatusLine(Widget):
    """Shows an `EngineState`; is drawn again only when a character changes."""

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

    def __init__(self, *, num_rows: int = 1, id: str | None = None) -> None:
        super().__init__(id=id)
        self._state = EngineState()
        self._rows: tuple[tuple[StatusPiece, ...], ...] = ()
        self.set_reactive(StatusLine.num_rows, num_rows)
        self.set_class(num_rows > 1, "-two-rows")

    def show(self, state: EngineState) -> None:
        """Show that state from now on."""
        self._state = state
        self._lay_out()

    def watch_num_rows(self, num_rows: int) -> None:
        self.set_class(num_rows > 1, "-two-rows")
        self._lay_out()

    def on_resize(self) -> None:
        self._lay_out()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Explain the figure under the pointer."""
        offset = event.get_content_offset(self)
        piece = None if offset is None else piece_at(self._rows, column=offset.x, row=offset.y)
        tooltip = None if piece is None else piece.tooltip
        if self.tooltip != tooltip:
            self.tooltip = tooltip

    def render(self) -> Content:
        rows = [Content.assemble(*((piece.text, piece.style) for piece in row)) for row in self._rows]
        return Content("\n").join(rows)

    def _lay_out(self) -> None:
        rows = status_rows(self._state, width=self.content_size.width, num_rows=self.num_rows)
        if rows != self._rows:
            self._rows = rows
            self.refresh()


def status_rows(state: EngineState, *, width: int, num_rows: int) -> tuple[tuple[StatusPiece, ...], ...]:
    """Return what stands in each row, gaps included; no row is wider than `width` cells."""
    if width <= 0:
        return ((),) * num_rows
    if num_rows > 1:
        return _phase_and_model(state, width), _figures(state, width)
    words = phase_text(state)
    room = width - cell_len(words) - len(GAP)
    figures = _figures(state, room) if room > 0 else ()
    phase = _phase(state, width)
    gap = width - sum(cell_len(piece.text) for piece in (phase, *figures))
    return ((phase, _space(gap), *figures) if figures else (phase,),)


def piece_at(rows: tuple[tuple[StatusPiece, ...], ...], *, column: int, row: int) -> StatusPiece | None:
    """Return the piece in that cell; None in a gap and outside."""
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
