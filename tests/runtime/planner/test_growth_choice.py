"""Trees in context against static ones: what is predicted, what is chosen, and what rounds teach."""

import numpy as np
import pytest

from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.growth_choice import (
    TEXT_SHARE,
    ContextChances,
    YieldLearner,
    builtin_chances,
    choose_growth,
    growth_limits,
)
from runtime.planner.tree_choice import choose_tree
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.growth_forecast import forecast_growth
from runtime.speculation.tree_search import best_first

TWO_KINDS = np.array([[0.5, 0.2, 0.1, 0.05], [0.96, 0.02, 0.01, 0.001]])
MEANS = TWO_KINDS.mean(axis=0)


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
    assert growth_limits(128, 24) == GrowthLimits(128, 23, 32, least_worth=1 / 128, max_run=128)
    assert growth_limits(5, 3).max_width == 8


def test_without_a_measurement_a_substitute_is_not_predicted_to_gain() -> None:
    chances = builtin_chances(substitute_held="int8")
    assert len(chances.by_confidence) == 1
    assert builtin_chances(substitute_held=None).by_confidence.shape[0] > 1


def test_rounds_teach_how_much_they_really_bring_and_old_ones_fade() -> None:
    learner = YieldLearner(prior_tokens=64, num_kept=50)
    assert learner.factor(is_in_context=True) == learner.factor(is_in_context=False) == 1
    for num_tokens in (5, 12):
        for _ in range(200):
            learner.observe(num_tokens, expected_tokens=10, is_in_context=True)
        text = ((64 + 50 * num_tokens) / (64 + 500)) ** TEXT_SHARE
        assert learner.factor(is_in_context=True) == pytest.approx((64 * text + 50 * num_tokens) / (64 + 500))
        assert learner.factor(is_in_context=False) == pytest.approx(text)


def test_a_hard_text_speaks_against_a_kind_of_tree_only_beside_the_other() -> None:
    learner = YieldLearner(prior_tokens=64, num_kept=50)
    for _ in range(20):
        learner.observe(7, expected_tokens=10, is_in_context=True)
    in_context, static = (learner.factor(is_in_context=kind) for kind in (True, False))
    assert 0.7 < in_context < 0.8 < static < 0.85
    for _ in range(20):
        learner.observe(7, expected_tokens=10, is_in_context=False)
    both = [learner.factor(is_in_context=kind) for kind in (True, False)]
    assert both[0] == both[1] < static
