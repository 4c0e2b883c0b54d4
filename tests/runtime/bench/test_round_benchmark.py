"""Parts and rounds on a tiny model: complete, consistent, and over the pace of an emulated link."""

from pathlib import Path

import pytest

from runtime.bench.round_benchmark import MeasuredRound, RoundReport, run_round_benchmark
from runtime.bench.round_parts import RoundParts
from runtime.errors import OptionError
from runtime.sampling_params import SamplingParams
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder

LAYER_SECONDS = 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2)


def test_parts_rounds_and_report_belong_together(folder: Path) -> None:
    """Four layers of 40 KB over a link that needs 10 ms for each: no round is faster, and the model knows it."""
    with open_tiny(folder, draft=folder, tree="8x4", link=f"{40_000 / LAYER_SECONDS:.0f}B/s") as opened:
        measured = list(run_round_benchmark(opened, num_rounds=3, num_repeats=2))
        text = answer(opened, request())[1]
    with open_tiny(folder) as plain:
        assert answer(plain, request())[1] == text  # measuring leaves the session as good as new
    assert [type(item) for item in measured] == [RoundParts, *[MeasuredRound] * 3, RoundParts, RoundReport]
    report = measured[-1]
    assert isinstance(report, RoundReport)
    assert (report.num_nodes, report.num_levels) == (8, 4)
    parts = report.parts
    assert min(parts.compute_seconds, parts.draft_seconds, parts.head_seconds) > 0
    assert parts.link_seconds == pytest.approx(4 * LAYER_SECONDS, rel=0.3)
    assert parts.predicted_seconds >= 0.95 * max(parts.link_seconds, parts.compute_seconds + parts.draft_seconds)
    assert report.predictions == pytest.approx([parts.predicted_seconds] * 3, rel=0.3)
    assert all(item.link_seconds == pytest.approx(4 * LAYER_SECONDS, rel=0.3) for item in report.rounds)
    assert report.ratio > 0.5
    assert 0 < report.to_record()["link_utilization"] <= 1.1


def test_two_links_are_measured_each_on_its_own(folder: Path) -> None:
    with open_tiny(folder, link="8MB/s", disk_link="2MB/s", host_memory_bytes=90_000) as opened:
        *_, report = run_round_benchmark(opened, num_rounds=2, num_repeats=1)
    assert isinstance(report, RoundReport)
    assert report.parts.disk_seconds == pytest.approx(2 * 40_000 / 2e6, rel=0.3)
    assert report.parts.link_seconds == pytest.approx(4 * 40_000 / 8e6, rel=0.3)


def test_without_a_streamed_layer_there_is_nothing_to_measure(folder: Path) -> None:
    with open_tiny(folder) as opened, pytest.raises(OptionError, match="no layer streams here"):
        next(run_round_benchmark(opened))


def test_people_get_one_line_for_each_step(folder: Path) -> None:
    parts = RoundParts(1.0, 0.0, 0.5, 0.05, 1.1, 0.25, 1.2, 1.3)
    assert parts.describe().startswith("apart: link 1.000 s")
    assert MeasuredRound(1.25, 1.0, 0.2, 5, 0.8, 0.9, 0.0).describe() == (
        "round: 1.250 s for 5 tokens, pass 1.000 s, draft 0.200 s, link 80 % busy"
    )


def test_each_round_is_held_against_the_copies_timed_around_it() -> None:
    parts = RoundParts(1.0, 0.0, 0.5, 0.05, 1.1, 0.25, 1.2, 1.3)
    rounds = tuple(MeasuredRound(seconds, 0.9 * seconds, 0.2, 5, 0.8, seconds, 0.0) for seconds in (1.0, 2.0, 4.0))
    report = RoundReport(8, 4, 100, parts, rounds, predictions=(1.0, 1.6, 2.0), shared_predictions=(1.0, 2.0, 2.0))
    assert report.ratio == 1.25
    assert report.shared_ratio == 1.0
    assert report.pass_over_bound == pytest.approx(0.9)
    assert report.pass_over_free_overlap == pytest.approx(1.8 / 1.1)


def test_a_text_that_ends_too_soon_is_a_sentence(folder: Path) -> None:
    with (
        open_tiny(folder, draft=folder, tree="8x4", link="40MB/s", context_tokens=60) as opened,
        pytest.raises(OptionError, match="--context"),
    ):
        list(run_round_benchmark(opened, num_rounds=50, num_repeats=1))


@pytest.mark.parametrize("verification", ["sequoia", "coupled"])
def test_choosing_and_judging_children_is_told_apart_from_the_forwards(folder: Path, verification: str) -> None:
    params = SamplingParams(temperature=0.8, verification=verification)
    with open_tiny(folder, draft=folder, tree="8x4", num_residents=0) as opened:
        *_, report = run_round_benchmark(opened, num_rounds=2, num_repeats=1, params=params)
    assert isinstance(report, RoundReport)
    for measured in report.rounds:
        assert 0 < measured.placing_seconds < measured.draft_seconds
        assert 0 < measured.walk_seconds < measured.seconds - measured.draft_seconds
    assert 0 < report.verification_share < 1
    assert report.to_record()["verification_share"] == report.verification_share
