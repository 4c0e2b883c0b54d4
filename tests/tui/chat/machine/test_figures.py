"""Figures of the rounds so far, against sums by hand."""

import pytest

from tests.support.chat_states import round_done
from tui.chat.machine.figures import (
    MAX_DEPTH,
    NUM_REMEMBERED_ROUNDS,
    NUM_SMOOTHED_ROUNDS,
    RunningFigures,
    link_utilization,
    tokens_per_second,
)


def figures_of(*reports):
    figures = RunningFigures()
    for report in reports:
        figures = figures.with_round(report)
    return figures


def test_nothing_is_claimed_before_the_first_round():
    figures = RunningFigures()
    assert figures.tokens_per_second is figures.tokens_per_pass is figures.link_bytes_per_second is None
    assert figures.link_utilization is figures.last is None
    assert figures.acceptance == ()


def test_one_round_is_its_own_mean():
    figures = figures_of(round_done())
    assert figures.tokens_per_second == pytest.approx(8)
    assert figures.tokens_per_pass == 4
    assert figures.link_bytes_per_second == pytest.approx(2e9)
    assert figures.link_utilization == pytest.approx(0.9)
    assert figures.last == round_done()


def test_rates_weigh_rounds_by_their_time():
    slow = round_done(path=(0, 1), draft_seconds=0.5, verify_seconds=1.0)
    assert figures_of(round_done(), slow).tokens_per_second == pytest.approx(6 / 2)


def test_rates_forget_what_is_long_ago():
    slow = [round_done(path=(0,), verify_seconds=9.0)] * 3
    figures = figures_of(*slow, *([round_done()] * NUM_SMOOTHED_ROUNDS))
    assert figures.tokens_per_second == pytest.approx(8)


def test_memory_of_rounds_is_bounded():
    figures = figures_of(*([round_done()] * (NUM_REMEMBERED_ROUNDS + 5)))
    assert len(figures.rounds) == NUM_REMEMBERED_ROUNDS
    assert figures.num_accepted[1] == NUM_REMEMBERED_ROUNDS + 5


def test_no_link_is_claimed_where_nothing_streams():
    figures = figures_of(round_done(bytes_streamed=0, link_busy_seconds=0.0))
    assert figures.link_bytes_per_second is None
    assert figures.link_utilization is None


def test_a_round_without_time_brings_no_infinite_rate():
    figures = figures_of(round_done(draft_seconds=0.0, verify_seconds=0.0))
    assert figures.tokens_per_second is None
    assert tokens_per_second(figures.rounds) is link_utilization(figures.rounds) is None


def test_acceptance_counts_where_there_were_children():
    """The tree of ten: the walk of (0, 1, 4, 7) stood before children four times and was refused the fourth."""
    assert figures_of(round_done()).acceptance == (1, 1, 1, 0)
    leaf = round_done(path=(0, 1, 4, 7, 9))
    assert figures_of(round_done(), leaf).acceptance == (1, 1, 1, 0.5)
    refused = round_done(path=(0,))
    assert figures_of(round_done(), leaf, refused).acceptance == pytest.approx((2 / 3, 1, 1, 0.5))


def test_a_tree_of_one_node_says_nothing_of_acceptance():
    assert figures_of(round_done(parents=(-1,), path=(0,))).acceptance == ()


def test_very_deep_levels_count_as_one():
    chain = round_done(parents=tuple(range(-1, 49)), path=tuple(range(50)))
    figures = figures_of(chain)
    assert len(figures.num_tried) == MAX_DEPTH
    assert figures.num_tried.total() == 49
