"""What the engine is doing and what it has measured, folded from its reports into one frozen value.

Pure: takes the reports of `messages` and the app's word that a request was sent or that the process is gone.
Knows no process, no clock and no widget; every widget that shows the machine is fed by this value alone.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from tui.chat.engine.messages import (
    Answered,
    Drafting,
    Failed,
    Loaded,
    Loading,
    PassRunning,
    Prefilling,
    Report,
    RoundDone,
)
from tui.chat.machine.figures import RunningFigures

Phase = Literal["no model", "loading", "ready", "prefill", "drafting", "verifying", "stopped", "error", "dead"]
BUSY_PHASES: tuple[Phase, ...] = ("prefill", "drafting", "verifying")
"""Phases in which an answer is being written."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is."""

    what: str = ""
    """What is being done now."""
    num_done_bytes: int = 0
    """Weight bytes read so far."""
    num_bytes: int = 0
    """Weight bytes to read; 0 if that is not known."""
    seconds: float = 0.0
    """Since the load began."""
    begun_bytes: int = 0
    """What was read when reading began, as far as this has seen."""
    begun_seconds: float = 0.0
    """When that was, since the load began."""

    @property
    def share(self) -> float | None:
        """From 0 to 1; None if that is not known."""
        return min(1.0, self.num_done_bytes / self.num_bytes) if self.num_bytes > 0 else None

    @property
    def bytes_per_second(self) -> float | None:
        """Of the reading; None before two reports of it."""
        elapsed = self.seconds - self.begun_seconds
        num_read = self.num_done_bytes - self.begun_bytes
        return num_read / elapsed if elapsed > 0 and num_read > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None if that is not known."""
        rate = self.bytes_per_second
        return max(0, self.num_bytes - self.num_done_bytes) / rate if rate and self.num_bytes > 0 else None

    def with_report(self, report: Loading) -> "LoadProgress":
        """This progress and one more report of it; another thing that is being done begins anew."""
        is_same_reading = self.num_bytes > 0 and self.num_done_bytes <= report.num_done_bytes
        return LoadProgress(
            what=report.what,
            num_done_bytes=report.num_done_bytes,
            num_bytes=report.num_bytes,
            seconds=report.seconds,
            begun_bytes=self.begun_bytes if is_same_reading else report.num_done_bytes,
            begun_seconds=self.begun_seconds if is_same_reading else report.seconds,
        )


@dataclass(frozen=True, slots=True)
class EngineState:
    """The engine at one moment."""

    phase: Phase = "no model"
    """What it is doing."""
    sentence: str = ""
    """For `error` and `dead`: what happened and what to do; may hold anything, a model's name included."""
    error_kind: str = ""
    """For `error`: as in `Failed.kind`."""
    load: LoadProgress = LoadProgress()
    """For `loading`: how far."""
    model: Loaded | None = None
    """The session that is open, if one is."""
    num_prefilled_tokens: int = 0
    """For `prefill`: prompt tokens in the caches so far."""
    num_prompt_tokens: int = 0
    """Of so many; 0 before the engine has said it."""
    draft_level: int = 0
    """For `drafting`: depth of the level that was proposed last."""
    draft_width: int = 0
    """Nodes in it that were run."""
    num_done_layers: int = 0
    """Layers computed of the pass that runs; 0 between passes."""
    layers_in_slots: tuple[int, ...] = ()
    """Streamed layers in the ring's slots, or being copied there."""
    figures: RunningFigures = field(default_factory=RunningFigures)
    """What was measured since the model was loaded."""

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being written."""
        return self.phase in BUSY_PHASES

    @property
    def num_layers(self) -> int:
        """Decoder layers of the target; 0 without a model."""
        return self.model.num_layers if self.model else 0

    @property
    def predicted_tokens_per_second(self) -> float | None:
        """By the last round, before it by the plan."""
        if self.figures.predicted_tokens_per_second is not None:
            return self.figures.predicted_tokens_per_second
        seconds = self.model.predicted_seconds_per_token if self.model else None
        return 1 / seconds if seconds else None


def begin_load() -> EngineState:
    """After a request to load was sent: whatever was open is being closed."""
    return EngineState(phase="loading")


def begin_answer(state: EngineState) -> EngineState:
    """After a request for an answer was sent, before the engine's first word about it."""
    return replace(_between_passes(state), phase="prefill", num_prefilled_tokens=0, num_prompt_tokens=0)


def with_death(sentence: str) -> EngineState:
    """The process is gone; nothing that it reported counts any more."""
    return EngineState(phase="dead", sentence=sentence)


def with_report(state: EngineState, report: Report) -> EngineState:
    """The state after one more report."""
    if state.phase == "dead":
        return state
    match report:
        case Loading():
            return EngineState(phase="loading", load=state.load.with_report(report))
        case Loaded():
            return EngineState(phase="ready", model=report)
        case Failed():
            return _failed(state, report)
        case Answered():
            phase: Phase = "stopped" if report.finish_reason == "stopped" else "ready"
            return replace(_between_passes(state), phase=phase)
        case Prefilling() | Drafting() | PassRunning() | RoundDone():
            return _within_answer(state, report)
        case _:
            return state


def _within_answer(state: EngineState, report: Prefilling | Drafting | PassRunning | RoundDone) -> EngineState:
    match report:
        case Prefilling():
            return replace(
                state,
                phase="prefill",
                num_prefilled_tokens=report.num_done_tokens,
                num_prompt_tokens=report.num_prompt_tokens,
            )
        case Drafting():
            return replace(_between_passes(state), phase="drafting", draft_level=report.level, draft_width=report.width)
        case PassRunning():
            return replace(
                state,
                phase="prefill" if _is_prompt_unread(state) else "verifying",
                num_done_layers=report.num_done_layers,
                layers_in_slots=report.layers_in_slots,
            )
        case RoundDone():
            is_plain = state.model is not None and state.model.draft == "none"
            return replace(
                _between_passes(state),
                phase="verifying" if is_plain else "drafting",
                figures=state.figures.with_round(report),
            )


def _is_prompt_unread(state: EngineState) -> bool:
    """Whether the pass that runs is one of the prompt; the last token of a prompt is the root of the first tree."""
    return state.phase == "prefill" and state.num_prefilled_tokens < state.num_prompt_tokens - 1


def _between_passes(state: EngineState) -> EngineState:
    return replace(state, sentence="", error_kind="", draft_level=0, draft_width=0, num_done_layers=0)


def _failed(state: EngineState, report: Failed) -> EngineState:
    kept = EngineState() if report.answer_id is None else _between_passes(state)
    return replace(kept, phase="error", sentence=report.sentence, error_kind=report.kind)
