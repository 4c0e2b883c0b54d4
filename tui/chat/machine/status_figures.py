"""The engine's state as short pieces of text, and which of them fit a row.

Where a row is too narrow the least important figures become short, and then are left out. Knows no widget.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from offload.units import format_bytes
from tui.chat.engine.engine_state import EngineState, Phase
from tui.chat.widgets.text_bars import progress_bar
from tui.terminal_text import one_line

GAP = "  "
BAR_WIDTH = 8
_BUSY_WIDTH = 33  # of the longest words of an answer in progress, so that figures do not come and go with every pass
_MARKS: dict[Phase, str] = {"no model": "○", "ready": "●", "stopped": "■", "error": "✗", "dead": "✗"}


@dataclass(frozen=True, slots=True)
class StatusFigure:
    """One piece of a status row."""

    name: str
    """What it is of, for tests and styles."""
    text: str
    """In full."""
    short: str
    """Where there is little room."""
    importance: int
    """The lowest goes first."""
    tooltip: str
    """What it means."""


def phase_text(state: EngineState) -> str:
    """What the engine does, with how far it is."""
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
    """The same as a sentence."""
    match state.phase:
        case "no model":
            return "No model is loaded; /model lists those on this machine."
        case "loading":
            return f"Loading: {one_line(state.load.what) or 'starting'}."
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
    """All figures that are known, in the order in which they stand."""
    found = (_rates(state), _link(state), _memory(state), _context(state))
    return tuple(figure for group in found for figure in group)


def fit_figures(figures: Sequence[StatusFigure], width: int) -> tuple[tuple[StatusFigure, str], ...]:
    """Each figure that fits, with its text: the least important are made short first, then left out."""
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


def fit_text(text: str, width: int) -> str:
    """The text in at most `width` cells, with an ellipsis where it was cut."""
    return text if cell_len(text) <= width else set_cell_size(text, max(0, width - 1)).rstrip() + "…" * (width > 0)


def duration_text(seconds: float) -> str:
    """`8 s`, `2:05 min` or `1:04 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def rate_text(tokens_per_second: float) -> str:
    """`0.42`, `8.1` or `112`, without its unit."""
    num_decimals = 2 if tokens_per_second < 0.995 else 1 if tokens_per_second < 99.95 else 0
    return f"{tokens_per_second:.{num_decimals}f}"


def _loading_text(state: EngineState) -> str:
    load = state.load
    parts = ["downloading" if load.what.startswith("downloading ") else "loading"]
    if load.share is None:
        parts += [one_line(load.what)] if load.what else []
    else:
        parts += [
            progress_bar(load.share, BAR_WIDTH),
            f"{format_bytes(load.num_done_bytes)}/{format_bytes(load.num_bytes)}",
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
    figures = state.figures
    device_bytes = figures.device_bytes or (sum(state.model.memory.values()) if state.model else 0)
    found = []
    if device_bytes:
        size = format_bytes(device_bytes)
        tooltip = f"The runtime holds {size} on the device."
        found.append(StatusFigure("device", f"device {size}", f"dev {size}", 4, tooltip))
    if figures.process_bytes:
        size = format_bytes(figures.process_bytes)
        tooltip = f"The engine's process holds {size} of host memory."
        found.append(StatusFigure("host", f"host {size}", f"host {size}", 3, tooltip))
    return found


def _context(state: EngineState) -> list[StatusFigure]:
    if state.model is None or state.model.context_tokens <= 0:
        return []
    used, size = state.figures.num_context_tokens, state.model.context_tokens
    share = f"{used / size:.0%}"
    tooltip = f"Prompt and answer take {used} of {size} tokens of the context."
    return [StatusFigure("context", f"context {used}/{size}", f"ctx {share}", 8, tooltip)]


def _text(figure: StatusFigure, shortened: set[str]) -> str:
    return figure.short if figure.name in shortened else figure.text


def _width(figures: Sequence[StatusFigure], shortened: set[str]) -> int:
    texts = [cell_len(_text(figure, shortened)) for figure in figures]
    return sum(texts) + len(GAP) * max(0, len(texts) - 1)
