"""Trees in context: forecasts against closed forms and grown trees, the choice, and what rounds teach."""

from dataclasses import replace

import numpy as np
import pytest

from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.growth import (
    LEAST_LOG_WORTH,
    NUM_BINS,
    RUN_WORTHS,
    TEXT_SHARE,
    ContextChances,
    YieldLearner,
    builtin_chances,
    choose_growth,
    forecast_growth,
    growth_limits,
)
from runtime.planner.tree_choice import choose_tree
from runtime.speculation.dynamic_tree import GrowthLimits, TreeGrowth
from runtime.speculation.tree_search import best_first

TWO_KINDS = np.array([[0.5, 0.2, 0.1, 0.05], [0.96, 0.02, 0.01, 0.001]])
MEANS = TWO_KINDS.mean(axis=0)
BIN = -LEAST_LOG_WORTH / NUM_BINS


def costs(*, copy: float = 5.0, step: float = 0.01, node: float = 1e-3) -> RoundCosts:
    """A link so slow that a round costs a pass's copies, whatever is drafted and verified."""
    return RoundCosts(
        copy_seconds=(copy / 4,) * 4,
        pass_seconds=CostTable((0, 1), (0.0, node)),
        draft_step_seconds=CostTable((0, 1), (step, step + 1e-4)),
        walk_seconds=CostTable((1,), (0.01,)),
        num_slots=2,
    )


def test_where_positions_differ_a_tree_in_context_brings_more() -> None:
    ranking = choose_tree(costs(), MEANS, max_nodes=200, max_levels=24)
    grown = choose_growth(costs(), ContextChances(TWO_KINDS, 0.8), ranking)
    assert grown is not None
    assert grown.expected_tokens > 1.1 * ranking.best.expected_tokens
    assert grown.seconds_per_token < ranking.best.seconds_per_token
    limits = grown.shape()
    assert isinstance(limits, GrowthLimits)
    assert (limits.num_nodes, limits.num_steps + 1) == (grown.num_nodes, grown.num_levels)


def test_the_prediction_is_the_static_one_times_the_ratio_of_two_forecasts() -> None:
    by_depth = np.vstack([MEANS, MEANS * 1.03])  # deeper is easier
    ranking = choose_tree(costs(), by_depth, max_nodes=100, max_levels=16)
    grown = choose_growth(costs(), ContextChances(TWO_KINDS, 0.8), ranking, factor=0.9)
    assert grown is not None
    n, d = grown.num_nodes, grown.num_levels
    forecast = forecast_growth(np.log(TWO_KINDS), 16).expected_tokens(100)[d - 1, n - 1]
    alike = best_first(MEANS, n, d).expected_tokens[-1]
    static = best_first(by_depth, n, d).expected_tokens[-1]
    assert grown.expected_tokens == pytest.approx(0.9 * static * forecast / alike)


def test_where_all_positions_are_alike_nothing_is_gained() -> None:
    ranking = choose_tree(costs(), MEANS, max_nodes=64, max_levels=12)
    grown = choose_growth(costs(), ContextChances(np.array([MEANS]), 0.8), ranking)
    assert grown is not None
    static = best_first(MEANS, grown.num_nodes, grown.num_levels).expected_tokens[-1]
    assert grown.expected_tokens == pytest.approx(static, rel=0.03)


def test_drafting_is_a_step_for_every_level_by_what_leads() -> None:
    """A chain of one sure candidate runs one node a level; steps that cost a second each make trees shallow."""
    sure = ContextChances(np.array([[0.9]]), 0.8)
    cheap, dear = (choose_tree(costs(step=step), [0.9], max_nodes=16, max_levels=16) for step in (1e-6, 1.0))
    deep, shallow = choose_growth(costs(step=1e-6), sure, cheap), choose_growth(costs(step=1.0), sure, dear)
    assert deep is not None and shallow is not None
    assert deep.num_levels == 16 > shallow.num_levels
    assert shallow.draft_seconds == pytest.approx(shallow.num_levels - 1, rel=0.1)


def test_the_root_alone_does_not_grow() -> None:
    ranking = choose_tree(costs(), MEANS, max_nodes=1, max_levels=1)
    assert choose_growth(costs(), ContextChances(TWO_KINDS, 0.8), ranking) is None


def test_limits_count_the_root_and_keep_to_the_drafts_slots() -> None:
    assert growth_limits(128, 24) == GrowthLimits(128, 23, 32, least_worth=1.5 / 128, max_run=128)
    assert growth_limits(5, 3).max_width == 8


def test_what_the_draft_may_run_is_not_spent_on_nodes_that_are_outdone() -> None:
    """Found: with nodes run that are worth 1 / N, deep trees ended for want of nodes to run, not of levels."""
    chances = np.array(builtin_chances(substitute_held=None).by_confidence)
    limits = growth_limits(128, 40)
    eager = replace(limits, least_worth=1 / 128)
    (tokens, num_run), (eager_tokens, eager_run) = (
        np.sum([grown_from(chances, each, seed=seed) for seed in range(12)], axis=0) for each in (limits, eager)
    )
    assert tokens > 1.01 * eager_tokens
    assert num_run < eager_run <= 12 * 128


def test_a_draft_whose_steps_cost_by_their_width_runs_fewer_nodes() -> None:
    """Found: a processor's draft of a 512-node tree took 6 s beside a pass of 19 s, most of it for outdone nodes."""
    cheap = costs(copy=1.0, step=0.001)
    dear = replace(cheap, draft_step_seconds=CostTable((0, 1), (0.001, 0.008)))
    for each, least, most in ((cheap, 1.5, 1.5), (dear, 2.0, 3.0)):
        ranking = choose_tree(each, MEANS, max_nodes=200, max_levels=24)
        grown = choose_growth(each, ContextChances(TWO_KINDS, 0.8), ranking)
        assert grown is not None
        limits = grown.shape()
        assert isinstance(limits, GrowthLimits)
        assert least <= limits.least_worth * limits.num_nodes <= most


@pytest.mark.parametrize("run_worth", sorted(RUN_WORTHS))
def test_what_is_left_of_the_tokens_is_what_grown_trees_bring(run_worth: float) -> None:
    chances = np.array(builtin_chances(substitute_held=None).by_confidence)
    all_tokens, tokens = (
        sum(grown_from(chances, growth_limits(128, 20, run_worth=worth), seed=seed)[0] for seed in range(15))
        for worth in (1.5, run_worth)
    )
    assert tokens / all_tokens == pytest.approx(RUN_WORTHS[run_worth], abs=0.02)


@pytest.mark.parametrize("shape", [(64, 12), (128, 16), (256, 16)])
def test_as_many_nodes_are_run_as_predicted(shape: tuple[int, int]) -> None:
    """Found: those that lead the tree's least were counted, half of what is run, since many are outdone later."""
    chances = np.array(builtin_chances(substitute_held=None).by_confidence)
    with np.errstate(divide="ignore"):
        predicted = forecast_growth(np.log(chances), shape[1]).run_per_level(*shape).sum()
    num_run = np.mean([grown_from(chances, growth_limits(*shape), seed=seed)[1] for seed in range(20)])
    assert 0.8 < num_run / predicted < 1.1


def grown_from(chances: np.ndarray, limits: GrowthLimits, *, seed: int) -> tuple[float, int]:
    """Return the tokens and the nodes run of a tree whose nodes are positions of groups by chance, however it grows."""
    growth = TreeGrowth(limits, root_token_id=0)
    groups = np.random.default_rng(seed).integers(len(chances), size=(97, 97))
    keys = {0: seed}
    while len(nodes := growth.next_nodes()):
        for node in nodes[nodes > 0].tolist():
            keys[node] = 31 * keys[int(growth.nodes.parents[node])] + int(growth.nodes.ranks[node])
        rows = np.stack([chances[groups[keys[node] % 97, keys[node] // 97 % 97]] for node in nodes.tolist()])
        with np.errstate(divide="ignore"):
            growth.place_children(np.zeros(rows.shape, dtype=np.int64), np.log(rows))
    kept = np.sort(growth.nodes.worths)[-limits.num_nodes :]
    return float(np.exp(kept).sum()), len(growth.run)


def test_without_a_measurement_a_substitute_is_not_predicted_to_gain() -> None:
    chances = builtin_chances(substitute_held="int8")
    assert len(chances.by_confidence) == 1
    assert builtin_chances(substitute_held=None).by_confidence.shape[0] > 1


def test_rounds_teach_how_much_they_really_bring_and_old_ones_fade() -> None:
    learner = YieldLearner()
    assert learner.factor(is_in_context=True) == learner.factor(is_in_context=False) == 1
    for num_tokens in (5, 12):
        for _ in range(200):
            learner.observe(num_tokens, expected_tokens=10, is_in_context=True)
        text = ((64 + 50 * num_tokens) / (64 + 500)) ** TEXT_SHARE
        assert learner.factor(is_in_context=True) == pytest.approx((64 * text + 50 * num_tokens) / (64 + 500))
        assert learner.factor(is_in_context=False) == pytest.approx(text)


def test_a_hard_text_speaks_against_a_kind_of_tree_only_beside_the_other() -> None:
    learner = YieldLearner()
    for _ in range(20):
        learner.observe(7, expected_tokens=10, is_in_context=True)
    in_context, static = (learner.factor(is_in_context=kind) for kind in (True, False))
    assert 0.7 < in_context < 0.8 < static < 0.85
    for _ in range(20):
        learner.observe(7, expected_tokens=10, is_in_context=False)
    both = [learner.factor(is_in_context=kind) for kind in (True, False)]
    assert both[0] == both[1] < static


def grown_tokens(positions: np.ndarray, limits: GrowthLimits, *, num_trees: int) -> tuple[float, float]:
    """Mean and standard error of the worth of trees whose nodes draw their chances from these positions."""
    tokens = []
    for seed in range(num_trees):
        rng, growth, worth_of = np.random.default_rng(seed), TreeGrowth(limits, root_token_id=0), {(): 0.0}
        while len(nodes := growth.next_nodes()):
            rows = positions[rng.integers(len(positions), size=len(nodes))]
            for node, row in zip(nodes.tolist(), rows, strict=True):
                path = tuple(growth.path_token_ids(node))
                worth_of |= {(*path, token): worth_of[path] + worth for token, worth in enumerate(row)}
            growth.place_children(np.tile(np.arange(rows.shape[1]), (len(nodes), 1)), rows)
        tree = growth.finish()[0]
        paths = [tuple(tree.path_token_ids(node)[1:].tolist()) for node in range(tree.topology.num_nodes)]
        tokens.append(sum(np.exp(worth_of[path]) for path in paths))
    return float(np.mean(tokens)), float(np.std(tokens) / np.sqrt(num_trees))


def test_one_candidate_of_one_chance_is_a_chain() -> None:
    forecast = forecast_growth([[-10 * BIN]], max_levels=6)
    tokens = forecast.expected_tokens(8)
    assert tokens[5, :6] == pytest.approx(np.cumsum(np.exp(-10 * BIN * np.arange(6))))
    assert tokens[2, 2] == tokens[5, 2]
    assert np.isneginf(tokens[2, 3:]).all()
    assert np.isneginf(tokens[5, 6:]).all()


def test_the_sum_of_all_worths_is_true_wherever_chances_lie_between_the_bins() -> None:
    """Three levels of all nodes: 1 + m + m^2 for m the mean sum of chances."""
    chances = np.array([[0.61, 0.2, 0.07], [0.333, 0.333, 0.3]])
    forecast = forecast_growth(np.log(chances), max_levels=3)
    mean = chances.sum(axis=1).mean()
    assert forecast.tokens.sum(axis=1) == pytest.approx([1, mean, mean**2])
    assert forecast.nodes.sum(axis=1) == pytest.approx([1, 3, 9])


def test_positions_that_are_all_alike_give_what_the_static_search_gives() -> None:
    """Then context says nothing. Between the sizes of full groups of equal nodes the forecast lies on a line."""
    chances = np.array([0.7, 0.15, 0.06, 0.02])
    forecast = forecast_growth(np.log([chances, chances]), max_levels=12)
    static = best_first(chances, 64, 12).expected_tokens
    assert forecast.expected_tokens(64)[11] == pytest.approx(static, rel=0.02)


@pytest.mark.parametrize("num_nodes", [48, 96])
def test_positions_of_two_kinds_bring_what_grown_trees_bring(num_nodes: int) -> None:
    """A threshold for all trees is a little better than a size for each, so the forecast lies above; 300 trees."""
    positions = np.log([[0.96, 0.02, 0.01, 0.001], [0.5, 0.2, 0.1, 0.05]])
    forecast = forecast_growth(positions, max_levels=13).expected_tokens(num_nodes)[-1, -1]
    grown, error = grown_tokens(positions, GrowthLimits(num_nodes, 12, num_nodes), num_trees=300)
    static = best_first(np.exp(positions).mean(axis=0), num_nodes, 13).expected_tokens[-1]
    assert grown > static + 3 * error
    assert grown - 3 * error < forecast < 1.06 * grown + 3 * error


def test_of_several_sizes_each_runs_what_it_would_alone() -> None:
    forecast = forecast_growth(np.log([[0.8, 0.1], [0.6, 0.3]]), max_levels=8)
    together = forecast.run_per_level([9, 20], 6)
    assert together.shape == (5, 2)
    for column, num_nodes in enumerate((9, 20)):
        assert together[:, column] == pytest.approx(forecast.run_per_level(num_nodes, 6))
    assert (together[0] == 1).all() and (together > 0).all() and (together.sum(axis=0) <= [9, 20]).all()


def test_missing_candidates_are_none() -> None:
    forecast = forecast_growth([[-0.5, -np.inf]], max_levels=4)
    assert forecast.nodes.sum(axis=1) == pytest.approx(np.ones(4))


def test_the_draft_runs_what_is_worth_its_share_and_at_least_one_node_above_every_level() -> None:
    """A fan of 10 equal children is run whole; a chain as far as the tree goes, whatever its nodes are worth."""
    fan = forecast_growth(np.log(np.full((1, 10), 0.1)), max_levels=3)
    assert fan.run_per_level(111, 3) == pytest.approx([1, 10], rel=0.05)
    chain = forecast_growth([[np.log(0.9)]], max_levels=8)
    assert chain.run_per_level(8, 8) == pytest.approx(np.ones(7), abs=0.2)
    assert chain.run_per_level(4, 8)[5:] == pytest.approx([0, 0], abs=0.2)
