"""Shows in one row what the engine does, with which model and how fast, with as many figures as fit.

In a narrow terminal the least important figures become short, and then are left out: the rate and the words of what is
being done stay longest. What is under the pointer explains itself in a tooltip; the machine panel shows the rest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.style import Style
from textual.widget import Widget

from offload.units import format_bytes
from tui.chat.commands.keymap import key_now
from tui.chat.engine.state import EngineState, Phase
from tui.chat.machine.drawing import (
    SIGN_STYLES,
    fit_text,
    layer_signs,
    layer_strip,
    num_levels,
    path_strip,
    progress_bar,
    rate_text,
)
from tui.terminal_text import counted, one_line

GAP = "  "
BAR_WIDTH = 8
SLOW_SECONDS = 1.0
"""Drafting and verifying are named in turns only where each takes so long: faster words could not be read."""
LONG_PREFILL_SECONDS = 2.0
"""What reading a prompt takes is foretold from so many seconds on."""
_ANSWERING: Mapping[Phase, tuple[str, str]] = {
    "drafting": ("guessing ahead", "drafting"),
    "verifying": ("checking", "verifying"),
}
"""The words for everybody, and those of the field."""
_LOOKS: Mapping[Phase, tuple[str, str, str]] = {
    "no model": ("○ no model, F4 chooses one", "$text-muted", "No model is loaded; F4 or /model lists those here."),
    "loading": ("loading", "$text-accent", "Loading: starting."),
    "ready": ("● ready", "$text-success", "The model waits for a prompt."),
    "prefill": (
        *("reading", "$text-accent"),
        "The model reads the prompt (prefill), in pieces; what it has read before is not read again.",
    ),
    "drafting": (
        *("writing", "$text-primary"),
        "Guessing ahead (drafting): a fast draft proposes a tree of continuations, level by level.",
    ),
    "verifying": (
        *("writing", "$text-primary"),
        "Checking (verifying): one pass of the model over all guesses; layers not in memory stream in.",
    ),
    "stopped": ("■ stopped", "$text-warning", "The answer was stopped; what came is kept."),
    "error": ("✗ failed", "bold $text-error", "error"),
    "dead": ("✗ engine ended, /restart", "bold $text-error", "dead"),
}
"""Of each phase the words, the style, and what it means where the state does not say it."""


@dataclass(frozen=True, slots=True)
class StatusFigure:
    """One piece of the status row."""

    text: str
    """Stands where there is room."""
    short: str
    """Stands where there is little."""
    importance: int
    """The lowest is left out first."""
    tooltip: str
    """Says what it means."""
    style: str = ""


def phase_words(state: EngineState) -> str:
    """Say what the engine does, in words that stand long enough to be read."""
    if state.phase == "loading" and state.load.latest.progress.what.startswith("downloading "):
        return "downloading"
    if state.phase == "error":
        return "✗ no model" if state.model is None else "✗ no answer"
    if (named := _named_phase(state)) is None:
        is_thinking = state.is_thinking and state.phase in _ANSWERING
        return "thinking" if is_thinking else _LOOKS[state.phase][0]
    words = [_ANSWERING[phase][0] for phase in _slow_phases(state)]
    return _ANSWERING[named][0].ljust(max(map(len, words)))


def phase_tooltip(state: EngineState) -> str:
    """Say the same in a sentence, with the words of the field."""
    what = one_line(state.load.latest.progress.what)
    if state.phase == "drafting" and state.drafted.width:
        return f"{_LOOKS['drafting'][2][:-1]}; level {state.drafted.level}, {counted(state.drafted.width, 'node')}."
    return one_line(state.sentence) or (f"Loading: {what}." if what else _LOOKS[state.phase][2])


def _slow_phases(state: EngineState) -> list[Phase]:
    """Return which of drafting and verifying took so long in the last round that a person can follow it."""
    last = state.figures.last
    took: Mapping[Phase, float] = (
        {} if last is None else {"drafting": last.draft_seconds, "verifying": last.verify_seconds}
    )
    return [phase for phase, seconds in took.items() if seconds >= SLOW_SECONDS]


def _named_phase(state: EngineState) -> Phase | None:
    """Return which of the two to name: the present one if both are slow, the slow one of them, or neither."""
    slow = _slow_phases(state)
    if state.phase not in _ANSWERING or not slow:
        return None
    return state.phase if state.phase in slow else slow[0]


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


def progress_figures(state: EngineState, wanted: str = "", *, choose: str = "F4") -> Iterator[StatusFigure]:
    """Yield what the engine does and how far it is: for the left.

    `wanted` is the model that is being loaded, `choose` the key that chooses one.
    """
    words, style, tooltip = phase_words(state), _LOOKS[state.phase][1], phase_tooltip(state)
    if state.phase == "loading":
        yield from _loading_figures(state, words, style, tooltip, wanted)
        return
    if state.phase == "no model":
        words, tooltip = (text.replace("F4", choose) for text in (words, tooltip))
    yield StatusFigure(words, words, 20, tooltip, style)
    if state.late is not None:
        loaded = f"{state.late.num_done_bytes / max(1, state.late.num_bytes):.0%}"
        about = "The model is still being loaded; the first answer waits for each layer as it comes."
        yield StatusFigure(f"({loaded} loaded)", loaded, 15, about, "$text-accent")
    if state.phase == "prefill":
        num_done, num_tokens = state.prefill.num_done_tokens, state.prefill.num_prompt_tokens
        num_read = num_done + round(state.prefill.num_pass_tokens * _share_of_pass(state))
        share = num_read / num_tokens if num_tokens > 0 else 0.0
        yield _bar(share, tooltip, style)
        if num_tokens > 0:
            yield StatusFigure(f"{num_read}/{num_tokens} tokens", f"{share:.0%}", 6, tooltip, style)
        if (seconds := state.prefill.expected_seconds) is not None and seconds >= LONG_PREFILL_SECONDS:
            expected = f"about {duration_text(seconds)}"
            yield StatusFigure(
                expected, expected, 5, "What is left of it should take so long, by earlier passes.", style
            )
    elif state.phase in _ANSWERING:
        yield _bar(_share_of_pass(state), tooltip, style)
        if (named := _named_phase(state)) is not None:
            term = f"({_ANSWERING[named][1]})".ljust(11 if len(_slow_phases(state)) > 1 else 0)
            yield StatusFigure(term, term, 1, tooltip, "$text-muted")


def _share_of_pass(state: EngineState) -> float:
    return state.running.num_done_layers / max(1, state.running.num_layers)


def _bar(share: float, tooltip: str, style: str) -> StatusFigure:
    bar = progress_bar(share, BAR_WIDTH)
    return StatusFigure(bar, bar, 17, tooltip, style)


def _loading_figures(state: EngineState, words: str, style: str, tooltip: str, wanted: str) -> Iterator[StatusFigure]:
    load, progress = state.load, state.load.latest.progress
    named = progress.what.removeprefix("downloading ") if words == "downloading" else wanted
    text = f"{words} {one_line(named)}".rstrip()
    yield StatusFigure(text, fit_text(text, 24), 20, tooltip, style)
    if load.share is None:
        if progress.what and words == "loading":
            yield StatusFigure(one_line(progress.what), "", 1, tooltip, "$text-muted")
        return
    yield _bar(load.share, tooltip, style)
    done, whole = format_bytes(progress.num_done_bytes), format_bytes(progress.num_bytes)
    if done.split()[-1] == whole.split()[-1]:
        done = done.split()[0]
    yield StatusFigure(f"{done}/{whole}", f"{load.share:.0%}", 12, tooltip, style)
    if load.bytes_per_second is not None:
        rate = f"{format_bytes(load.bytes_per_second)}/s"
        yield StatusFigure(rate, rate, 10, tooltip, style)
    if load.seconds_left is not None:
        left = f"{duration_text(load.seconds_left)} left"
        yield StatusFigure(left, left, 14, tooltip, style)


def status_figures(
    state: EngineState, thinking: str = "", num_context_tokens: int | None = None
) -> Iterator[StatusFigure]:
    """Yield all figures that are known, in the order in which they stand: for the right.

    `thinking` is what was chosen about it, if anything was; `num_context_tokens` what the open conversation takes of
    the context, if it is not the one that the engine holds.
    """
    figures, model = state.figures, state.model
    if model is not None and model.can_think and thinking:
        meaning = {"on": "as long as it likes", "off": "not at all"}.get(thinking, f"for at most {thinking} tokens")
        tooltip = f"Before it answers the model may think {meaning}; /think changes that."
        yield StatusFigure(f"think {thinking}", "", 7, tooltip, "$text-muted")
    if model is not None:
        running = state.running
        signs = layer_signs(
            model.num_layers,
            resident=model.resident_layers,
            in_slots=running.layers_in_slots,
            current=running.num_done_layers if 0 < running.num_done_layers < model.num_layers else None,
        )
        tooltip = "The model's layers: █ stay in memory, ░ stream in for every pass, ▒ arrive, ◆ computes now."
        yield StatusFigure(layer_strip(signs, 12), layer_strip(signs, 10), 9, tooltip)
    if figures.last is not None and (num_ahead := num_levels(figures.last.parents) - 1) > 0:
        num_kept = len(figures.last.path) - 1
        tooltip = (
            f"The tree of the last round guessed {counted(num_ahead, 'token')} ahead; {num_kept} of them were kept."
        )
        yield StatusFigure(path_strip(num_kept, num_ahead, 10), path_strip(num_kept, num_ahead, 6), 8, tooltip)
    if model is not None:
        name = one_line(model.target)
        tooltip = f"The model that is open: {name}."
        yield StatusFigure(fit_text(name, 32), fit_text(name, 18), 16, tooltip, "$text-muted")
    if figures.tokens_per_second is not None and figures.tokens_per_pass is not None:
        rate = f"{rate_text(figures.tokens_per_second)} tok/s"
        predicted = state.predicted_tokens_per_second
        expected = "" if predicted is None else f"; the planner expects {rate_text(predicted)}"
        per_pass = f"{rate_text(figures.tokens_per_pass)} tokens per pass, without drafts it would be 1"
        yield StatusFigure(rate, rate, 19, f"Tokens per second over the last rounds{expected}. {per_pass}.", "bold")
    if model is not None:
        used = state.session.num_context_tokens if num_context_tokens is None else num_context_tokens
        limit = model.context_tokens
        tooltip = f"Prompt and answer take {used:,} of the {limit:,} tokens that the context holds."
        yield StatusFigure(f"context {used / limit:.0%}", f"ctx {used / limit:.0%}", 18, tooltip)


def status_row(
    state: EngineState,
    width: int,
    wanted: str = "",
    *,
    choose: str = "F4",
    thinking: str = "",
    num_context_tokens: int | None = None,
) -> Content:
    """Return what is done at the left and what fits of the figures at the right, in at most `width` cells.

    The style of each piece holds its tooltip.
    """
    left = tuple(progress_figures(state, wanted, choose=choose))
    right = tuple(status_figures(state, thinking, num_context_tokens))
    fitting = fit_figures((*left, *right), width)
    if not fitting and left:
        fitting = {left[0]: fit_text(left[0].short, width)}
    words, figures = _joined(left, fitting), _joined(right, fitting)
    return Content.assemble(words, " " * (width - words.cell_length - figures.cell_length), figures)


def _joined(figures: Sequence[StatusFigure], texts: Mapping[StatusFigure, str]) -> Content:
    shown = [figure for figure in figures if texts.get(figure)]
    return Content(GAP).join(_piece(texts[figure], figure.style, figure.tooltip) for figure in shown)


def _piece(text: str, style: str, tooltip: str) -> Content:
    piece = Content.styled(text, style)
    if not style:
        for signs, look in SIGN_STYLES.items():
            piece = piece.highlight_regex(f"[{signs}]+", style=look)
    return piece.stylize(Style.from_meta({"tooltip": tooltip}))


class StatusLine(Widget):
    """Shows an `EngineState`; is drawn again only when a character changes."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._state = EngineState()
        self._wanted = self._thinking = ""
        self._num_context_tokens: int | None = None
        self._row = Content()

    def show(
        self, state: EngineState, wanted: str = "", *, thinking: str = "", num_context_tokens: int | None = None
    ) -> None:
        """Show that state from now on.

        `wanted` is the model that is being loaded, the others are as for `status_figures`.
        """
        self._state, self._wanted, self._thinking = state, wanted, thinking
        self._num_context_tokens = num_context_tokens
        row = status_row(
            state,
            self.content_size.width,
            wanted,
            choose=key_now(self, "model"),
            thinking=thinking,
            num_context_tokens=num_context_tokens,
        )
        if not row.is_same(self._row):
            self._row = row
            self.refresh()

    def on_resize(self) -> None:
        self.show(self._state, self._wanted, thinking=self._thinking, num_context_tokens=self._num_context_tokens)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Explain the figure under the pointer."""
        tooltip = event.style.meta.get("tooltip")
        if self.tooltip != tooltip:
            self.tooltip = tooltip

    def render(self) -> Content:
        return self._row
