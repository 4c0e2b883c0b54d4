"""Parts and rounds on a tiny model: complete, consistent, and over the pace of an emulated link."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from offload.pass_statistics import PassStatistics
from profiles.steps import finish
from runtime.bench.rounds import (
    RoundParts,
    TimedRound,
    measure_parts,
    predict_round,
    run_rounds,
    summarize_rounds,
    time_rounds,
)
from runtime.config import SamplingParams
from runtime.errors import OptionError
from runtime.events import Round
from runtime.speculation.token_tree import TreeTopology
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder
from tests.support.trees import tree_of_counts

PARTS = RoundParts(
    link_seconds=0.4,
    disk_seconds=0.0,
    compute_seconds=0.2,
    head_seconds=0.0,
    free_overlap_seconds=0.5,
    draft_seconds=0.0,
)
TREES = (tree_of_counts([3, 1, 1, 0, 0, 0]), TreeTopology.chain(4), TreeTopology.single())


def timed_round(seconds: float, pass_seconds: float, link_seconds: float) -> TimedRound:
    """A round of 5 tokens that drafted for 0.2 s and had the link busy for a second."""
    passed = PassStatistics(pass_seconds, 0.0, 1.0, 100, 4, 4, 0.5)
    done = Round((-1, 0, 1, 2, 3, 4), (0, 1, 2, 3, 4), 0.2, seconds - 0.2, passed, 6)
    return TimedRound(done, link_seconds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2)


def test_parts_rounds_and_report_belong_together(folder: Path) -> None:
    """No round is faster than the link, and the model knows it."""
    with open_tiny(folder, draft=folder, tree="8x4", link="4MB/s") as opened:
        paced_seconds = opened.placement.streamed_bytes / 4e6
        said = list[str]()
        report = finish(run_rounds(opened, num_rounds=3, num_repeats=2), said.append)
        text = answer(opened, request())[1]
    with open_tiny(folder) as plain:
        assert answer(plain, request())[1] == text  # measuring leaves the session as good as new
    assert [sentence.split(" ")[0] for sentence in said] == ["measuring", *["round"] * 3, "measuring"]
    assert (report["num_nodes"], report["num_levels"]) == (8, 4)
    parts = report["parts"]
    assert min(parts["compute_seconds"], parts["draft_seconds"], parts["head_seconds"]) > 0
    assert parts["link_seconds"] > 0.8 * paced_seconds
    for timed, predicted in zip(report["rounds"], report["predictions"], strict=True):
        assert timed["link_seconds"] > 0.8 * paced_seconds
        assert predicted > 0.99 * max(timed["link_seconds"], parts["compute_seconds"] + parts["draft_seconds"])
    assert report["ratio"] > 0.5
    assert 0 < report["link_utilization"] < 1.5
    json.dumps(report, allow_nan=False)


def test_two_links_are_measured_each_on_its_own(folder: Path) -> None:
    with open_tiny(folder, link="8MB/s", disk_link="2MB/s", host_memory_bytes=90_000) as opened:
        report = finish(run_rounds(opened, num_rounds=2, num_repeats=1))
        num_bytes = opened.placement.streamed_bytes
    assert report["parts"]["disk_seconds"] > 0.8 * num_bytes / 2 / 2e6  # two of four layers
    assert report["parts"]["link_seconds"] > 0.8 * num_bytes / 8e6


def test_without_a_streamed_layer_there_is_nothing_to_measure(folder: Path) -> None:
    with open_tiny(folder) as opened, pytest.raises(OptionError, match="no layer streams here"):
        next(run_rounds(opened))


def test_each_round_is_held_against_the_copies_timed_around_it() -> None:
    parts = RoundParts(1.0, 0.0, 0.5, 0.05, 1.1, 0.25)
    rounds = [timed_round(seconds, 0.9 * seconds, seconds) for seconds in (1.0, 2.0, 4.0)]
    record = summarize_rounds(parts, rounds, [1.0, 1.6, 2.0])
    assert record["ratio"] == 1.25
    assert record["pass_over_free_overlap"] == pytest.approx(1.8 / 1.1)
    assert record["link_utilization"] == 0.5
    second = record["rounds"][1]
    assert (second["seconds"], second["copy_seconds"], second["link_utilization"]) == (2.0, 2.0, 0.5)
    assert (second["done"]["num_emitted"], second["done"]["num_nodes"], second["done"]["num_pass_tokens"]) == (5, 6, 6)


def test_rounds_go_on_with_the_prompt_again_where_the_context_is_full(folder: Path) -> None:
    """33 tokens at most leave room for 32 of the prompt and few rounds of 4."""
    with open_tiny(folder, draft=folder, tree="8x4", link="40MB/s", context_tokens=60) as opened:
        report = finish(run_rounds(opened, num_rounds=12, num_repeats=1))
        assert len(report["rounds"]) == 12
        assert len(opened.session.engine.text) <= 60


def test_a_context_without_room_for_two_trees_is_a_sentence(folder: Path) -> None:
    with (
        open_tiny(folder, draft=folder, tree="8x4", link="40MB/s", context_tokens=40) as opened,
        pytest.raises(OptionError, match="no prompt leaves room for two trees of 4 levels; give a larger --context"),
    ):
        finish(run_rounds(opened, num_rounds=2, num_repeats=1))


def test_every_tree_gets_its_rounds_and_none_is_faster_than_the_link(folder: Path) -> None:
    """The planner learns nothing, and goes on with its own tree."""
    with open_tiny(folder, draft=folder, link="4MB/s") as opened:
        planner, paced_seconds = opened.session.engine.planner, opened.placement.streamed_bytes / 4e6
        before = planner.tree_name
        prompts = [opened.session.format_prompt(asked) for asked in (request(), request("in the end"))]
        timed = list(time_rounds(opened, prompts, [TREES] * 2))
        assert (planner.held_tree, planner.tree_name, planner.choice) == (None, before, None)
        text = answer(opened, request())[1]
    with open_tiny(folder) as plain:
        assert answer(plain, request())[1] == text  # the session is as good as new
    assert len(timed) == 6
    assert [single.done.num_emitted for single in timed[2::3]] == [1, 1]
    assert min(done.link_seconds for done in timed) > 0.8 * paced_seconds
    for turn in (timed[:3], timed[3:]):
        assert (
            sum(timed.done.seconds for timed in turn) > 0.8 * 3 * paced_seconds
        )  # two of twelve layers may be there already


@pytest.mark.parametrize("verification", ["sequoia", "coupled"])
def test_choosing_and_judging_children_is_told_apart_from_the_forwards(folder: Path, verification: str) -> None:
    params = SamplingParams(temperature=0.8, verification=verification)
    with open_tiny(folder, draft=folder, tree="8x4", num_residents=0) as opened:
        report = finish(run_rounds(opened, num_rounds=2, num_repeats=1, params=params))
    for done in (timed["done"] for timed in report["rounds"]):
        assert 0 < done["placing_seconds"] < done["draft_seconds"]
        assert 0 < done["walk_seconds"] < done["verify_seconds"]
    assert 0 < report["verification_share"] < 1


def test_what_a_free_overlap_takes_beyond_the_longer_part_is_charged_to_it(folder: Path) -> None:
    with open_tiny(folder, num_residents=0) as opened:
        assert predict_round(opened, PARTS) == pytest.approx(0.5)
        longer = replace(PARTS, compute_seconds=0.8, free_overlap_seconds=1.0)
        assert predict_round(opened, longer) == pytest.approx(1.0)
        quicker = replace(PARTS, free_overlap_seconds=0.3)  # noise cannot make a pass shorter than its parts
        assert predict_round(opened, quicker) == pytest.approx(0.4)


def test_an_emulated_link_shares_nothing_with_the_computation(folder: Path) -> None:
    with open_tiny(folder, draft=folder, tree="8x4", link="4MB/s") as opened:
        parts = measure_parts(opened, TREES[0], 1)
        assert parts.free_overlap_seconds == max(parts.link_seconds, parts.compute_seconds)
        assert predict_round(opened, parts) > 0


def test_a_disk_is_read_while_the_pass_computes(folder: Path) -> None:
    with open_tiny(folder, draft=folder, tree="8x4", num_residents=1) as opened:
        parts = measure_parts(opened, TREES[0], 2)
    assert parts.free_overlap_seconds > 0.5 * parts.compute_seconds > 0
