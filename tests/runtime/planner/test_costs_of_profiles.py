"""From profiles to tables and vectors: interpolation, shrinkage, tails, and what best-first needs."""

from dataclasses import replace

import numpy as np
import pytest

from profiles.acceptance import ForcedPosition, acceptance_tables
from profiles.pair_profile import AcceptanceTable, PairProfile, PassCost
from runtime.planner.costs import costs_from_profiles
from runtime.planner.growth import chances_of
from runtime.planner.tree_choice import choose_tree
from runtime.speculation.acceptance import (
    DEPTH_POSITIONS,
    TAIL_POSITIONS,
    acceptance_of,
    acceptance_range,
    builtin_acceptance,
)
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import expected_tokens
from tests.support.profile_factory import PAIR

BUILTIN = builtin_acceptance(substitute_held=None)


def pair_with(
    by_rank: list[float],
    counts: list[int],
    *,
    by_depth: list[list[float]] | None = None,
    depth_positions: list[int] | None = None,
) -> PairProfile:
    table = AcceptanceTable(
        temperature=0.0,
        by_rank=tuple(by_rank),
        by_rank_errors=(None,) * len(by_rank),
        num_positions=tuple(counts),
        by_depth=tuple(map(tuple, by_depth or [])),
        by_depth_positions=tuple(depth_positions or []),
        num_texts=4,
    )
    return replace(PAIR, acceptance=(table,))


def pass_at(*costs: tuple[int, int, float], context: int) -> list[float]:
    pair = replace(PAIR, pass_costs=tuple(PassCost(*cost) for cost in costs))
    found = costs_from_profiles(pair, copy_seconds=[0.1], num_slots=2, context_tokens=context)
    return found.pass_seconds([1, 50, 100]).tolist()


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (0, [1.0, 1.49, 1.99]),
        (128, [1.0, 1.49, 1.99]),
        (384, [2.0, 2.98, 3.98]),
        (640, [3.0, 4.47, 5.97]),
        (9000, [3.0] * 3),
    ],
)
def test_passes_lie_between_the_nearest_contexts(context: int, expected: list[float]) -> None:
    costs = [(1, 128, 1.0), (100, 128, 1.99), (1, 640, 3.0), (100, 640, 5.97)]
    if context == 9000:
        costs = [(1, 128, 1.0), (100, 128, 1.99), (1, 640, 3.0)]  # one size alone is a constant
    assert pass_at(*costs, context=context) == pytest.approx(expected, abs=0.011)


def test_contexts_measured_at_other_sizes_are_joined_at_all_of_them() -> None:
    found = pass_at((1, 128, 1.0), (100, 128, 2.0), (1, 256, 2.0), (50, 256, 4.0), context=192)
    assert found == pytest.approx([1.5, (1 + 49 / 99 + 4) / 2, (2 + 4 + 2 * 50 / 49) / 2])


def test_the_rest_of_a_round_is_the_profiles() -> None:
    pair = replace(PAIR, compute_slowdown=0.3, copy_slowdown=0.2)
    costs = costs_from_profiles(
        pair, copy_seconds=[0.1, None], num_slots=3, read_seconds=[0.2, None], num_stages=2, context_tokens=128
    )
    assert costs.draft_step_seconds is not None
    assert costs.draft_step_seconds([1, 8]).tolist() == [0.01, 0.02]
    assert costs.walk_seconds([1, 64]).tolist() == [0.005, 0.01]
    assert (costs.copy_seconds, costs.read_seconds) == ((0.1, None), (0.2, None))
    assert (costs.num_slots, costs.num_stages, costs.compute_slowdown, costs.copy_slowdown) == (3, 2, 0.3, 0.2)


@pytest.mark.parametrize(("temperature", "first"), [(0.0, 0.8), (0.4, 0.8), (0.5, 0.8), (0.6, 0.7), (9.0, 0.7)])
def test_the_nearest_temperature_is_taken_and_of_two_the_cooler(temperature: float, first: float) -> None:
    assert acceptance_of(PAIR, temperature, by_depth=False)[0] == pytest.approx(first)


def test_a_tail_that_nobody_measured_has_the_builtin_shape() -> None:
    found = acceptance_of(pair_with([0.7, 0.1, 0.04], [300, 300, 300]), 0.0, by_depth=False)
    assert found[:3] == pytest.approx([0.7, 0.1, 0.04])
    assert found[3:] == pytest.approx(BUILTIN[3:] * 0.04 / BUILTIN[2])


def test_ranks_that_were_never_accepted_make_the_tail_thinner() -> None:
    """200 positions without one of rank 4: the builtin tail counts for 40 positions among 240."""
    found = acceptance_of(pair_with([0.7, 0.1, 0.04, 0.0], [300, 300, 300, 200]), 0.0, by_depth=False)
    assert found[3:] == pytest.approx(BUILTIN[3:] * 0.04 / BUILTIN[2] * TAIL_POSITIONS / (TAIL_POSITIONS + 200))


def test_a_rank_without_positions_is_not_taken_for_one_that_is_never_accepted() -> None:
    measured = acceptance_of(pair_with([0.7, 0.1], [300, 300]), 0.0, by_depth=False)
    padded = acceptance_of(pair_with([0.7, 0.1, 0.0, 0.0], [300, 300, 0, 0]), 0.0, by_depth=False)
    assert padded == pytest.approx(measured)


def test_violations_are_pooled_by_their_positions() -> None:
    found = acceptance_of(pair_with([0.7, 0.02, 0.08], [300, 200, 100]), 0.0, by_depth=False)
    assert found[1:3] == pytest.approx([0.04, 0.04])


def test_nothing_accepted_leaves_nothing_to_hope_for() -> None:
    assert acceptance_of(pair_with([0.0, 0.0], [300, 200]), 0.0, by_depth=False).tolist() == [0.0] * 32


def test_a_draft_that_is_nearly_always_right_leaves_its_tail_the_rest() -> None:
    found = acceptance_of(pair_with([0.98, 0.015], [300, 300]), 0.0, by_depth=False)
    assert found[:2] == pytest.approx([0.98, 0.015])
    assert found.sum() == pytest.approx(1.0)


def test_depths_with_few_positions_are_drawn_towards_the_depth_above() -> None:
    pair = pair_with(
        [0.8, 0.1], [1000, 1000], by_depth=[[0.7, 0.15], [0.95, 0.02], [0.0, 0.0]], depth_positions=[980, 40, 0]
    )
    pooled, rows = acceptance_of(pair, 0.0, by_depth=False), acceptance_of(pair, 0.0)
    assert DEPTH_POSITIONS == 20
    assert rows[0, 0] == pytest.approx((980 * 0.7 + 20 * 0.8) / 1000)
    assert rows[1, 0] == pytest.approx((40 * 0.95 + 20 * rows[0, 0]) / 60)
    assert rows[2] == pytest.approx(rows[1])
    for row in rows:  # what the first two ranks leave is shared out alike
        assert row[2:] / (1 - row[:2].sum()) == pytest.approx(pooled[2:] / (1 - pooled[:2].sum()))


def test_easy_stretches_that_stay_easy_are_predicted_from_a_calibrations_positions() -> None:
    """Sixteen texts of 27 tokens, rank 1 at .95 of the positions of the easy half and at .6 of the hard one, seed 3: a
    chain of 16 nodes brings 6.8 tokens, and less than 5.1 to whoever takes positions for independent."""
    rng = np.random.default_rng(3)
    positions = []
    for number in range(16):
        for _ in range(27):
            hits = np.zeros(4)
            rank = rng.choice(5, p=[0.95, 0.02, 0.01, 0.01, 0.01] if number % 2 else [0.6, 0.2, 0.1, 0.05, 0.05])
            hits[min(rank, 3)] = rank < 4
            positions.append(ForcedPosition(0.0, number, hits, hits))
    pair = replace(PAIR, acceptance=acceptance_tables(positions))
    chain = TreeTopology.chain(16)
    truth = np.mean([sum(rate**depth for depth in range(16)) for rate in (0.95, 0.6)])
    assert truth == pytest.approx(6.85, abs=0.05)
    assert expected_tokens(chain, acceptance_of(pair, 0.0, by_depth=False)) < 0.75 * truth
    assert expected_tokens(chain, acceptance_of(pair, 0.0)) == pytest.approx(truth, rel=0.1)


def test_a_profile_without_depths_gives_one_row() -> None:
    pair = pair_with([0.8, 0.1], [100, 100])
    assert acceptance_of(pair, 0.0) == pytest.approx(acceptance_of(pair, 0.0, by_depth=False)[None, :])


def test_a_standard_error_moves_what_is_missed_at_every_depth() -> None:
    """First rank 0.8 +- 0.05: misses grow to 1.25 times as many, or shrink to 0.75."""
    pair = pair_with([0.8, 0.1], [1000, 1000], by_depth=[[0.8, 0.1], [0.9, 0.05]], depth_positions=[1000, 500])
    table = replace(pair.acceptance[0], by_rank_errors=(0.05, None))
    pair = replace(pair, acceptance=(table,))
    rows, around = acceptance_of(pair, 0.0), acceptance_range(pair, 0.0)
    assert around is not None
    for found, factor in zip(around, (1.25, 0.75), strict=True):
        assert 1 - found[:, 0] == pytest.approx(factor * (1 - rows[:, 0]))
        assert found[:, 1:] == pytest.approx(factor * rows[:, 1:])


def test_without_an_error_there_is_no_range() -> None:
    assert acceptance_range(pair_with([0.8], [1]), 0.0) is None
    certain = replace(pair_with([1.0], [50]).acceptance[0], by_rank_errors=(0.0,))
    assert acceptance_range(replace(PAIR, acceptance=(certain,)), 0.0) is None


@pytest.mark.parametrize("error", [0.0, 0.3, 1.0])
def test_a_range_can_be_searched_however_wide(error: float) -> None:
    pair = pair_with([0.5, 0.3, 0.1], [9, 9, 9], by_depth=[[0.5, 0.3, 0.1], [0.05, 0.05, 0.0]], depth_positions=[9, 9])
    pair = replace(pair, acceptance=(replace(pair.acceptance[0], by_rank_errors=(error, None, None)),))
    for rows in acceptance_range(pair, 0.0) or pytest.fail("there is an error"):
        assert ((rows >= 0) & (rows <= 1)).all() and (np.diff(rows) <= 0).all()
        assert (rows.sum(axis=1) <= 1 + 1e-12).all()


def test_any_table_can_be_searched() -> None:
    """Random means and counts, ranks without positions, more ranks than the builtin vector: no row increases."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        num_ranks, num_depths = int(rng.integers(1, 40)), int(rng.integers(1, 6))
        rows = rng.dirichlet(np.full(num_ranks + 1, 0.2), size=num_depths + 1)[:, :-1]
        counts = np.sort(rng.integers(0, 50, size=num_ranks))[::-1]
        pair = pair_with(
            np.where(counts > 0, rows[0], 0.0).tolist(),
            counts.tolist(),
            by_depth=rows[1:].tolist(),
            depth_positions=rng.integers(0, 60, size=num_depths).tolist(),
        )
        costs = costs_from_profiles(pair, copy_seconds=[0.5] * 4, num_slots=2, context_tokens=100)
        for acceptance in (acceptance_of(pair, 0.3), acceptance_of(pair, 0.3, by_depth=False)):
            assert (np.diff(acceptance) <= 0).all()
            assert (acceptance.sum(axis=-1) <= 1 + 1e-12).all()
            assert choose_tree(costs, acceptance, max_nodes=20, max_levels=6).best.expected_tokens >= 1


def test_single_positions_are_those_of_the_nearest_temperature_that_has_any() -> None:
    measured = replace(
        PAIR.acceptance[1], num_positions=(200, 200), spread=0.7, by_confidence=((0.6, 0.2), (0.9, 0.05))
    )
    pair = replace(PAIR, acceptance=(PAIR.acceptance[0], measured))
    chances = chances_of(pair, 0.0)
    assert chances is not None
    assert chances.spread == 0.7
    assert chances.by_confidence.tolist() == [[0.6, 0.2], [0.9, 0.05]]
    assert chances_of(PAIR, 0.0) is None
