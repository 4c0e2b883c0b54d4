"""Cost tables between and beyond their points, and rounds that agree with the recurrence."""

import numpy as np
import pytest

from offload.pipeline_model import PipelineParts, round_seconds
from runtime.planner.round_costs import CostTable, RoundCosts


def test_a_table_is_straight_between_its_points_and_goes_on_beyond_them() -> None:
    table = CostTable((1, 3, 4), (1.0, 2.0, 4.0))
    assert table([0.5, 1, 2, 3, 4, 6]).tolist() == [1.0, 1.0, 1.5, 2.0, 4.0, 8.0]
    assert CostTable((8,), (0.5,))([1, 8, 80]).tolist() == [0.5] * 3


def test_a_table_that_falls_at_its_end_stays_level_beyond() -> None:
    assert CostTable((1, 2), (2.0, 1.0))([2, 100]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [((), ()), ((1, 1), (1.0, 1.0)), ((2, 1), (1.0, 1.0)), ((1,), (-1.0,)), ((1,), (np.nan,)), ((1, 2), (1.0,))],
)
def test_nonsense_is_no_table(sizes: tuple[float, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cost table"):
        CostTable(sizes, seconds)


def test_rounds_are_those_of_the_recurrence() -> None:
    costs = RoundCosts(
        copy_seconds=(0.1, None, 0.1),
        pass_seconds=CostTable((1, 101), (0.03, 0.63)),
        draft_step_seconds=CostTable((1,), (0.01,)),
        walk_seconds=CostTable((1,), (0.02,)),
        num_slots=2,
    )
    for nodes, draft_seconds in ((1, 0.0), (51, 0.1), (201, 0.3)):
        expected = round_seconds(
            PipelineParts(
                copy_seconds=costs.copy_seconds,
                compute_seconds=((0.03 + 0.006 * (nodes - 1)) / 3,) * 3,
                num_slots=2,
                between_passes_seconds=draft_seconds + 0.02,
            )
        )
        assert costs.round_seconds([nodes], [draft_seconds]) == pytest.approx([expected])


def test_shared_cores_slow_the_copies_and_the_computation() -> None:
    """Four layers, copies 0.1 s, computation long or short: the longer of both, each with its share of the other."""
    costs = RoundCosts(
        copy_seconds=(0.1,) * 4,
        pass_seconds=CostTable((1, 101), (0.04, 0.84)),
        draft_step_seconds=None,
        walk_seconds=CostTable((1,), (0.0,)),
        num_slots=3,
        compute_slowdown=0.5,
        copy_slowdown=0.25,
    )
    assert costs.round_seconds([1, 101], [0.0, 0.0]) == pytest.approx([0.4 + 0.25 * 0.04, 0.84 + 0.5 * 0.4])


def test_rounds_with_the_gap_left_open_are_the_same_rounds() -> None:
    costs = RoundCosts(
        copy_seconds=(0.1, None, 0.2, 0.1),
        pass_seconds=CostTable((1, 101), (0.04, 0.84)),
        draft_step_seconds=None,
        walk_seconds=CostTable((1, 100), (0.01, 0.1)),
        num_slots=2,
        read_seconds=(None, None, 0.3, 0.3),
        num_stages=2,
        compute_slowdown=0.5,
        copy_slowdown=0.25,
    )
    nodes, draft_seconds = np.array([1, 30, 200]), np.array([0.0, 0.5, 0.1])
    found = costs.round_periods(nodes)(draft_seconds + costs.walk_seconds(nodes))
    assert found == pytest.approx(costs.round_seconds(nodes, draft_seconds), rel=1e-12)
