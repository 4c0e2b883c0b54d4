"""Every event of an answer as the app hears of it."""

from dataclasses import dataclass, field

import psutil
import pytest

from runtime.events import (
    Event,
    Finished,
    GenerationStatistics,
    LevelDrafted,
    PrefillProgress,
    TextDelta,
    TokensAccepted,
)
from runtime.planner.tree_choice import TreeChoice
from runtime.speculation.token_tree import TreeTopology
from tests.support.answer_fakes import ROUND
from tui.chat.answer_reports import AnswerReports
from tui.chat.engine.messages import Answered, Drafting, Prefilling, Report, RoundDone, TextArrived

CHOICE = TreeChoice(
    num_nodes=8,
    num_levels=4,
    expected_tokens=2.5,
    round_seconds=0.5,
    draft_seconds=0.5,
    bound="link",
    shape=TreeTopology.single,
)
STATISTICS = GenerationStatistics(
    prompt_tokens=12,
    new_tokens=9,
    rounds=3,
    prefill_seconds=0.8,
    decode_seconds=2.0,
    decode_tokens=5,
    draft_seconds=0.3,
    verify_seconds=1.7,
    bytes_streamed=3000,
    link_busy_seconds=1.5,
    decode_bytes_streamed=2000,
)


@dataclass
class FakePlanner:
    choice: TreeChoice | None = CHOICE


@dataclass
class FakeEngine:
    text: list[int] = field(default_factory=lambda: [1] * 21)
    planner: FakePlanner = field(default_factory=FakePlanner)


REPORTS = AnswerReports(7, FakeEngine(), device_bytes=5000)


@pytest.mark.parametrize(
    ("event", "report"),
    [
        (PrefillProgress(256, 300), Prefilling(7, 256, 300)),
        (LevelDrafted(2, 5), Drafting(7, 2, 5)),
        (TokensAccepted((1, 2)), None),
        (TextDelta("x\x1b"), TextArrived(7, "x\x1b")),
        (Finished("stopped", "text", STATISTICS), Answered(7, "stopped", 12, 9, 3, 0.8, 0.4, 0.75)),
    ],
)
def test_an_event_becomes_a_report(event: Event, report: Report | None):
    assert REPORTS.of(event) == report


def test_a_round_tells_its_tree_its_costs_and_what_was_expected():
    report = REPORTS.of(ROUND)
    assert isinstance(report, RoundDone)
    assert 10**7 < report.process_bytes <= psutil.virtual_memory().total
    assert report == RoundDone(
        answer_id=7,
        num_emitted=2,
        parents=ROUND.parents,
        path=(0, 1),
        draft_seconds=0.5,
        verify_seconds=2.0,
        link_busy_seconds=1.5,
        bytes_streamed=1000,
        num_context_tokens=21,
        predicted_seconds_per_token=0.2,
        process_bytes=report.process_bytes,
        device_bytes=5000,
    )
    unplanned = AnswerReports(7, FakeEngine(planner=FakePlanner(None)), device_bytes=5000).of(ROUND)
    assert isinstance(unplanned, RoundDone) and unplanned.predicted_seconds_per_token is None
