"""Folds the engine's reports into one frozen value: what the engine is doing and what it has measured.

Pure: takes the reports of `messages` and the app's word that a request was sent or that the process is gone. Every
widget that shows the machine is fed by this value alone.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from runtime.events import Finished, LevelDrafted, LoadProgress, PrefillProgress, Round
from tui.chat.engine.messages import (
    AnswerEvent,
    Failed,
    Loaded,
    Loading,
    LoadRefused,
    OfAnswer,
    PassRunning,
    Report,
    SessionFigures,
    SessionNote,
    StillLoading,
    TokensCounted,
)
from tui.chat.machine.figures import RunningFigures

Phase = Literal["no model", "loading", "ready", "prefill", "drafting", "verifying", "stopped", "error", "dead"]
_NOTHING_PREFILLED, _NOTHING_DRAFTED, _NO_PASS = PrefillProgress(0, 0), LevelDrafted(0, 0), PassRunning(0, 0, ())
_NOTHING_READ = Loading(LoadProgress("", 0, 0), seconds=0.0)


@dataclass(frozen=True, slots=True)
class LoadPace:
    """How far a load is, and how fast."""

    latest: Loading = _NOTHING_READ
    """The last report of it."""
    first: Loading = _NOTHING_READ
    """The first report of what is being read now."""
    grown: Loading = _NOTHING_READ
    """The last report with more bytes than the one before."""

    @property
    def share(self) -> float | None:
        progress = self.latest.progress
        return min(1.0, progress.num_done_bytes / progress.num_bytes) if progress.num_bytes > 0 else None

    @property
    def bytes_per_second(self) -> float | None:
        """Rate of reading; None before two reports of it."""
        elapsed = self.grown.seconds - self.first.seconds
        num_read = self.grown.progress.num_done_bytes - self.first.progress.num_done_bytes
        return num_read / elapsed if elapsed > 0 and num_read > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at the rate so far; None if that is not known, or was over before the end came."""
        progress, rate = self.latest.progress, self.bytes_per_second
        if not rate or progress.num_bytes <= 0:
            return None
        left = (progress.num_bytes - progress.num_done_bytes) / rate - (self.latest.seconds - self.grown.seconds)
        return left if left > 0 else None

    def with_report(self, report: Loading) -> "LoadPace":
        """Return this load after one more report; where another thing is being read, the rate begins anew."""
        before = self.latest.progress
        is_same_reading = before.num_bytes > 0 and before.num_done_bytes <= report.progress.num_done_bytes
        is_grown = not is_same_reading or before.num_done_bytes < report.progress.num_done_bytes
        return LoadPace(report, self.first if is_same_reading else report, report if is_grown else self.grown)


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine at one moment."""

    phase: Phase = "no model"
    """What it is doing."""
    sentence: str = ""
    """For `error` and `dead`: what happened and what to do; may hold anything, a model's name included."""
    load: LoadPace = field(default_factory=LoadPace)
    """For `loading`: how far."""
    model: Loaded | None = None
    """The session that is open, if one is."""
    late: LoadProgress | None = None
    """How far the session's layers have been read, while it answers already; None once all are there."""
    prefill: PrefillProgress = _NOTHING_PREFILLED
    """For `prefill`: the last report of it; no tokens before the engine has said how many."""
    drafted: LevelDrafted = _NOTHING_DRAFTED
    """For `drafting`: the level that was proposed last; of depth 0 before the first."""
    running: PassRunning = _NO_PASS
    """The last report of a pass; no layer is done between passes."""
    figures: RunningFigures = field(default_factory=RunningFigures)
    """What the rounds since the model was loaded say."""
    session: SessionFigures = field(default_factory=SessionFigures)
    """How the session stands after the last of them."""
    is_thinking: bool = False
    """Whether the answer under way has said nothing yet, and thinks."""

    @property
    def predicted_tokens_per_second(self) -> float | None:
        """What the planner expects after the last round; before it, or where it does not say, the plan."""
        seconds = self.session.predicted_seconds_per_token
        if seconds is None and self.model is not None:
            seconds = self.model.predicted_seconds_per_token
        return 1 / seconds if seconds else None


def begin_load() -> EngineState:
    """Return the state after a request to load was sent: whatever was open is being closed."""
    return EngineState(phase="loading")


def begin_answer(state: EngineState) -> EngineState:
    """Return the state after a request for an answer was sent, before the engine's first word about it."""
    return replace(_between_passes(state), phase="prefill", prefill=_NOTHING_PREFILLED, is_thinking=False)


def with_thinking(state: EngineState, *, is_thinking: bool) -> EngineState:
    """Return the state after more was thought, or something was said."""
    return state if state.is_thinking == is_thinking else replace(state, is_thinking=is_thinking)


def with_death(sentence: str) -> EngineState:
    """Return the state after the process is gone; nothing that it reported counts any more."""
    return EngineState(phase="dead", sentence=sentence)


def with_report(state: EngineState, report: Report) -> EngineState:
    """Return the state after one more report."""
    if state.phase == "dead":
        return state
    match report:
        case Loading():
            return EngineState(phase="loading", load=state.load.with_report(report))
        case Loaded():
            return EngineState(phase="ready", model=report)
        case StillLoading():
            late = None if state.model is None else report.progress
            return replace(_with_sentences(state, report.sentences), late=late)
        case SessionNote():
            return _with_sentences(state, report.sentences)
        case TokensCounted():
            return state
        case LoadRefused():
            return EngineState(phase="ready", model=report.loaded)
        case Failed():
            return EngineState(phase="no model" if report.kind == "stopped" else "error", sentence=report.sentence)
        case OfAnswer():
            return _within_answer(state, report.event)


def _with_sentences(state: EngineState, sentences: tuple[str, ...]) -> EngineState:
    """Add what there is to know about the session that is open, if one is."""
    model = state.model
    if model is None:
        return state
    more = tuple(sentence for sentence in sentences if sentence not in model.sentences)
    return replace(state, model=replace(model, sentences=(*model.sentences, *more)))


def _within_answer(state: EngineState, event: AnswerEvent) -> EngineState:
    match event:
        case PrefillProgress():
            return replace(state, phase="prefill", prefill=event)
        case LevelDrafted():
            return replace(_between_passes(state), phase="drafting", drafted=event)
        case PassRunning():
            return replace(state, phase="prefill" if _is_prompt_unread(state) else "verifying", running=event)
        case Round():
            is_plain = state.model is not None and state.model.draft == "none"
            return replace(
                _between_passes(state),
                phase="verifying" if is_plain else "drafting",
                figures=state.figures.with_round(event),
            )
        case SessionFigures():
            return replace(state, session=event)
        case Finished():
            phase: Phase = "stopped" if event.finish_reason == "stopped" else "ready"
            return replace(_between_passes(state), phase=phase, is_thinking=False)
        case Failed():
            return replace(_between_passes(state), phase="error", sentence=event.sentence, is_thinking=False)
        case _:
            return state


def _is_prompt_unread(state: EngineState) -> bool:
    """Whether the pass that runs is one of the prompt; the last token of a prompt is the root of the first tree."""
    return state.phase == "prefill" and state.prefill.num_done_tokens < state.prefill.num_prompt_tokens - 1


def _between_passes(state: EngineState) -> EngineState:
    return replace(state, sentence="", drafted=_NOTHING_DRAFTED, running=replace(state.running, num_done_layers=0))


def measured(finished: Finished) -> dict[str, Any]:
    """Return what an answer cost, under the names that it is stored by."""
    costs = finished.statistics
    return {
        "finish_reason": finished.finish_reason,
        "num_prompt_tokens": costs.prompt_tokens,
        "num_new_tokens": costs.new_tokens,
        "num_guessed_tokens": finished.num_guessed_tokens,
        "num_rounds": costs.rounds,
        "prefill_seconds": costs.prefill_seconds,
        "expected_prefill_seconds": finished.expected_prefill_seconds,
        "seconds_per_token": costs.seconds_per_token,
        "link_utilization": costs.link_utilization,
    }
