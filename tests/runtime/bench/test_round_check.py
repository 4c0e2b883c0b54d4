"""Trees in turn on a session whose copies are the longest part, and the arithmetic of the comparison."""

from pathlib import Path

import numpy as np
import pytest

from runtime.bench.round_check import LinkCheck, ShapeCheck, TimedRound, check_link, predict, time_shapes
from runtime.errors import OptionError
from runtime.planner.costs import CostTable, RoundCosts
from runtime.speculation.token_tree import TreeTopology
from tests.support.session_factory import answer, open_tiny, request, save_tiny_folder

COSTS = RoundCosts(
    copy_seconds=(0.1, None, 0.1),
    pass_seconds=CostTable((1, 100), (0.01, 0.01)),
    draft_step_seconds=CostTable((1, 3), (0.02, 0.04)),
    walk_seconds=CostTable((1,), (0.005,)),
    num_slots=2,
)
TREES = (TreeTopology.from_child_counts([3, 1, 1, 0, 0, 0]), TreeTopology.chain(4), TreeTopology.single())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=37)


def test_every_tree_gets_its_rounds_and_none_is_faster_than_the_link(folder: Path) -> None:
    """148 KB at 4 MB/s: 37 ms of copies a round."""
    with open_tiny(folder, draft=folder, link="4MB/s") as opened:
        own = opened.session.engine.planner
        timed = list(time_shapes(opened, [request(), request("in the end")], TREES, num_turns=2))
        assert opened.session.engine.planner is own
        text = answer(opened, request())[1]
    with open_tiny(folder) as plain:
        assert answer(plain, request())[1] == text  # the session is as good as new
    assert [item.shape_index for item in timed] == [0, 1, 2] * 2
    assert all(item.copy_seconds == pytest.approx(0.037, rel=0.3) for item in timed)
    assert all(item.seconds > 0.9 * 0.037 for item in timed)


def test_a_prompt_that_leaves_no_room_is_a_sentence(folder: Path) -> None:
    with open_tiny(folder, draft=folder, link="4MB/s") as opened, pytest.raises(OptionError, match="--context"):
        list(time_shapes(opened, [request()], [TreeTopology.chain(70)], num_turns=1))


def test_predictions_add_the_draft_by_width_and_scale_the_copies() -> None:
    # the tree drafts 1 node, then 2 of the level of 3: 0.02 + 0.03 s; copies 0.2 s hide behind nothing else
    assert predict(TREES[0], COSTS, 0.2) == pytest.approx(0.2)
    assert predict(TREES[0], COSTS, 0.02) == pytest.approx(0.01 + 0.02 + 0.03 + 0.005, abs=0.002)
    assert predict(TREES[2], COSTS, 0.4) == pytest.approx(0.4)


def test_errors_and_the_choice_are_held_against_the_measurement() -> None:
    timed = [
        TimedRound(0, 0.25, 0.2),
        TimedRound(1, 0.2, 0.2),
        TimedRound(2, 0.2, 0.2),
        TimedRound(0, 0.35, 0.3),
        TimedRound(1, 0.3, 0.3),
        TimedRound(2, 0.3, 0.3),
    ]
    check = check_link("disk", timed, TREES, COSTS, predicted_tokens=[2.5, 2.0, 1.0], measured_tokens=[2.4, 2.5, 1.0])
    first, second, third = check.shapes
    assert (first.num_nodes, first.num_levels, first.num_rounds) == (6, 3, 2)
    assert first.measured_seconds == pytest.approx(0.3)
    assert first.predicted_seconds == pytest.approx(0.25)
    assert first.round_error == pytest.approx(abs(0.25 / 0.3 - 1))
    assert first.token_error == pytest.approx(abs((0.25 / 2.5) / (0.3 / 2.4) - 1))
    assert third.measured_seconds_per_token == pytest.approx(0.25)
    assert check.choice_over_best == pytest.approx((0.3 / 2.4) / (0.25 / 2.5))
    record = check.to_record()
    assert record["choice"] == "6x3"
    assert record["worst_round_error"] == pytest.approx(first.round_error)
    assert record["median_round_error"] == pytest.approx(float(np.median([s.round_error for s in check.shapes])))
    assert second.num_levels == 4


def test_a_choice_that_nothing_beats_is_worth_one() -> None:
    shapes = (ShapeCheck(8, 4, 1.0, 1.0, 3, 4.0, 4.0), ShapeCheck(1, 1, 0.9, 0.9, 3, 1.0, 1.0))
    assert LinkCheck("1GB/s", 0.5, shapes).choice_over_best == 1.0
