"""Shows in one row what the engine does and how fast it is, with as many figures as fit.

In a narrow terminal the least important figures become short, and then are left out. What is under the pointer explains
itself in a tooltip; the machine panel shows all of it to the keyboard.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.style import Style
from textual.widget import Widget

from offload.units import format_bytes
from tui.chat.engine.state import EngineState, Phase
from tui.chat.machine.drawing import fit_text, progress_bar, rate_text
from tui.terminal_text import one_line

GAP = "  "
BAR_WIDTH = 8
_BUSY_WIDTH = 33  # of the longest words of an answer in progress, so that figures do not come and go with every pass
_LOOKS: Mapping[Phase, tuple[str, str, str]] = {
    "no model": ("○ ", "$text-muted", "No model is loaded; /model lists those on this machine."),
    "loading": ("", "$text-accent", "Loading: starting."),
    "ready": ("● ", "$text-success", "The model waits for a prompt."),
    "prefill": (
        *("", "$text-accent"),
        "The target reads the prompt, in chunks; what it has read before is not read again.",
    ),
    "drafting": ("", "$text-primary", "The draft proposes a tree of continuations, level by level."),
    "verifying": (
        *("", "$text-primary"),
        "One pass of the target over all nodes of the tree; streamed layers cross the link.",
    ),
    "stopped": ("■ ", "$text-warning", "The answer was stopped; what came is kept."),
    "error": ("✗ ", "bold $text-error", "error"),
    "dead": ("✗ ", "bold $text-error", "dead"),
}
"""Of each phase the mark, the style, and what it means where the state does not say it."""


@dataclass(frozen=True, slots=True)
class StatusFigure:
    """One figure of the status row."""

    text: str
    """Stands where there is room."""
    short: str
    """Stands where there is little."""
    importance: int
    """The lowest is left out first."""
    tooltip: str
    """Says what it means."""
    style: str = ""


def phase_text(state: EngineState) -> str:
    """Say what the engine does and how far it is."""
    match state.phase:
        case "loading":
            return _loading_text(state)
        case "prefill":
            return _steps_text("prefill", state.prefill.num_done_tokens, state.prefill.num_prompt_tokens, unit="tokens")
        case "drafting":
            nodes = f", {state.drafted.width} nodes" if state.drafted.width else ""
            return f"drafting level {state.drafted.level}{nodes}".ljust(_BUSY_WIDTH)
        case "verifying":
            return _steps_text("verifying", state.running.num_done_layers, state.running.num_layers, unit="layers")
        case phase:
            words = one_line(state.sentence) or ("no model: /model" if phase == "no model" else phase)
            return f"{_LOOKS[phase][0]}{words}"


def phase_tooltip(state: EngineState) -> str:
    """Say the same in a sentence."""
    what = one_line(state.load.latest.progress.what)
    return one_line(state.sentence) or (f"Loading: {what}." if what else _LOOKS[state.phase][2])


def fit_figures(figures: Iterable[StatusFigure], width: int) -> dict[StatusFigure, str]:
    """Return each figure that fits, with its text: the least important become short first, then are left out."""
    texts = {figure: figure.text for figure in figures}
    by_importance = sorted(texts, key=lambda figure: figure.importance)
    for figure in by_importance:
        if cell_len(GAP.join(texts.values())) > width:
            texts[figure] = figure.short
    for figure in by_importance:
        if cell_len(GAP.join(texts.values())) > width:
            del texts[figure]
    return texts


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


def status_figures(state: EngineState) -> Iterator[StatusFigure]:
    """Yield all figures that are known, in the order in which they stand."""
    figures, model = state.figures, state.model
    if figures.tokens_per_second is not None and figures.tokens_per_pass is not None:
        rate, per_pass = f"{rate_text(figures.tokens_per_second)} tok/s", f"{figures.tokens_per_pass:.1f}"
        predicted = state.predicted_tokens_per_second
        expected = "" if predicted is None else f"; the planner expects {rate_text(predicted)}"
        yield StatusFigure(rate, rate, 9, f"Tokens per second over the last rounds{expected}.", style="bold")
        tooltip = "Tokens that one pass of the target brings, over the last rounds."
        yield StatusFigure(f"{per_pass} tok/pass", f"{per_pass}/pass", 7, tooltip)
    if figures.link_bytes_per_second is not None and figures.link_utilization is not None:
        speed, share = f"{format_bytes(figures.link_bytes_per_second)}/s", f"{figures.link_utilization:.0%}"
        tooltip = f"Streamed layers cross the link at {speed}; it is busy {share} of the time."
        yield StatusFigure(f"link {speed} {share}", f"link {share}", 6, tooltip)
    if model is not None and model.device_bytes:
        size = format_bytes(model.device_bytes)
        yield StatusFigure(f"device {size}", f"dev {size}", 4, f"The runtime holds {size} on the device.")
    if state.session.process_bytes:
        size = format_bytes(state.session.process_bytes)
        yield StatusFigure(f"host {size}", f"host {size}", 3, f"The engine's process holds {size} of host memory.")
    if model is not None:
        used, limit = state.session.num_context_tokens, model.context_tokens
        tooltip = f"Prompt and answer take {used} of {limit} tokens of the context."
        yield StatusFigure(f"context {used}/{limit}", f"ctx {used / limit:.0%}", 8, tooltip)


def status_row(state: EngineState, width: int) -> Content:
    """Return the phase at the left and what fits of the figures at the right, in at most `width` cells.

    The style of each piece holds its tooltip.
    """
    phase = _piece(fit_text(phase_text(state), width), _LOOKS[state.phase][1], phase_tooltip(state))
    fitting = fit_figures(status_figures(state), width - phase.cell_length - len(GAP))
    figures = Content(GAP).join(_piece(text, figure.style, figure.tooltip) for figure, text in fitting.items())
    return Content.assemble(phase, " " * (width - phase.cell_length - figures.cell_length), figures)


def _piece(text: str, style: str, tooltip: str) -> Content:
    return Content.styled(text, style).stylize(Style.from_meta({"tooltip": tooltip}))


class StatusLine(Widget):
    """Shows an `EngineState`; is drawn again only when a character changes."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._state = EngineState()
        self._row = Content()

    def show(self, state: EngineState) -> None:
        """Show that state from now on."""
        self._state = state
        row = status_row(state, self.content_size.width)
        if not row.is_same(self._row):
            self._row = row
            self.refresh()

    def on_resize(self) -> None:
        self.show(self._state)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Explain the figure under the pointer."""
        tooltip = event.style.meta.get("tooltip")
        if self.tooltip != tooltip:
            self.tooltip = tooltip

    def render(self) -> Content:
        return self._row
