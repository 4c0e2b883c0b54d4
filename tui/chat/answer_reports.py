"""Turns what the engine yields while it answers into reports for the app.

Reads two figures of the session beside the events: how long the text is and what the planner expects. Imports no torch.
"""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Protocol

import psutil

from runtime.events import Event, Finished, LevelDrafted, PrefillProgress, Round, TextDelta
from runtime.planner.tree_choice import TreeChoice
from tui.chat.engine.messages import Answered, Drafting, Prefilling, Report, RoundDone, TextArrived


class PlannerLike(Protocol):
    """What chooses the trees."""

    @property
    def choice(self) -> TreeChoice | None:
        """The latest choice and what it promises."""


class EngineLike(Protocol):
    """The round loop."""

    @property
    def text(self) -> Sized:
        """Prompt and accepted tokens."""

    @property
    def planner(self) -> PlannerLike:
        """What chooses the trees."""


@dataclass(frozen=True, slots=True)
class AnswerReports:
    """The reports of one answer."""

    answer_id: int
    """Names it."""
    engine: EngineLike
    """What writes it."""
    device_bytes: int
    """What the session holds on the device."""

    def of(self, event: Event) -> Report | None:
        """The report that an event makes; None if the app needs none."""
        match event:
            case PrefillProgress():
                return Prefilling(self.answer_id, event.num_done_tokens, event.num_prompt_tokens)
            case LevelDrafted():
                return Drafting(self.answer_id, event.level, event.width)
            case Round():
                return self._round_done(event)
            case TextDelta():
                return TextArrived(self.answer_id, event.text)
            case Finished():
                return self._answered(event)
            case _:
                return None

    def _round_done(self, event: Round) -> RoundDone:
        return RoundDone(
            answer_id=self.answer_id,
            num_emitted=event.num_emitted,
            parents=event.parents,
            path=event.path,
            draft_seconds=event.draft_seconds,
            verify_seconds=event.verify_seconds,
            link_busy_seconds=event.pass_statistics.link_busy_seconds,
            bytes_streamed=event.pass_statistics.bytes_streamed,
            num_context_tokens=len(self.engine.text),
            predicted_seconds_per_token=predicted_seconds_per_token(self.engine),
            process_bytes=int(psutil.Process().memory_info().rss),
            device_bytes=self.device_bytes,
        )

    def _answered(self, event: Finished) -> Answered:
        costs = event.statistics
        return Answered(
            answer_id=self.answer_id,
            finish_reason=event.finish_reason,
            num_prompt_tokens=costs.prompt_tokens,
            num_new_tokens=costs.new_tokens,
            num_rounds=costs.rounds,
            prefill_seconds=costs.prefill_seconds,
            seconds_per_token=costs.seconds_per_token,
            link_utilization=costs.link_utilization,
        )


def predicted_seconds_per_token(engine: EngineLike) -> float | None:
    """What the planner expects of the tree that it chose last; None for a fixed tree, or before the first choice."""
    choice = engine.planner.choice
    return None if choice is None else choice.seconds_per_token
