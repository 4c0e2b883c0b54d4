"""Chooses how far trees that take their shape from context may grow: the fewest predicted seconds per token.

What such a tree brings is predicted by comparison. Of positions in groups of equal confidence two trees are forecast
with the same flaw, that nodes are independent of their parents: a dynamic one and the best static one. Their ratio,
times what the static tree is predicted to bring by depth and rank, is the prediction, times a factor that rounds teach.
Sizes and levels lie on a grid, since neighbours hardly differ. Knows numbers only.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.acceptance import SEPARATE_DRAFT_SPREAD, SUBSTITUTE_SPREAD
from runtime.planner.costs import RoundCosts
from runtime.planner.tree_choice import TreeChoice, TreeRanking, bound_of
from runtime.speculation.acceptance import BUILTIN_CONFIDENCE, builtin_acceptance
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.growth_forecast import GrowthForecast, forecast_growth
from runtime.speculation.tree_search import best_first_by_levels, make_non_increasing

LEAST_WIDTH, WIDTH_SHARE = 8, 4
"""A step may run this many nodes, or one of so many of the tree's: wide enough that no level has to wait."""
GRID_FACTOR = 1.2
"""From one size, or level limit, to the next."""
TEXT_SHARE = 0.75
"""Of the logarithm by which rounds miss what was expected of them, how much lies in the text. Texts of 32 tokens differ
from calibrated averages by 12 to 15 %, the gain of a dynamic tree from the predicted one by less than half as much."""


@dataclass(frozen=True, slots=True, eq=False)
class ContextChances:
    """How likely the draft's candidates are, position by position rather than on average."""

    by_confidence: NDArray[np.float64]
    """(G, R) how likely the candidate of each rank is the emitted token, in groups of as many positions each."""
    spread: float
    """How far draft and target differ, in logits; see `profiles.acceptance`."""


def builtin_chances(*, substitute_held: str | None) -> ContextChances:
    """What to plan with before anything was measured; `substitute_held` is None for a separate draft.

    Nothing is known of single positions of a substitute: then no tree in context is predicted to be better.
    """
    if substitute_held is None:
        return ContextChances(np.asarray(BUILTIN_CONFIDENCE), SEPARATE_DRAFT_SPREAD)
    return ContextChances(builtin_acceptance(substitute_held=substitute_held)[None, :], SUBSTITUTE_SPREAD)


def growth_limits(num_nodes: int, num_levels: int) -> GrowthLimits:
    """The limits of a tree of so many nodes and levels, both with the root."""
    return GrowthLimits(
        num_nodes,
        num_levels - 1,
        max_width=max(LEAST_WIDTH, num_nodes // WIDTH_SHARE),
        least_worth=1 / num_nodes,
        max_run=num_nodes,
    )


def choose_growth(
    costs: RoundCosts,
    chances: ContextChances,
    static: TreeRanking,
    *,
    factor: float = 1.0,
    shape: tuple[int, int] | None = None,
) -> TreeChoice | None:
    """The best dynamic tree within the limits of a ranking of static ones, or the one of this `shape` (nodes, levels).

    None where no tree may have two nodes. `factor`: tokens that such trees have really brought over those predicted.
    """
    num_limits, num_sizes = static.seconds_per_token.shape
    sizes, limits = _grid(num_sizes), _grid(num_limits)
    if shape is not None:
        sizes, limits = np.array([shape[0]]), np.array([shape[1]])
    if not len(sizes) or not len(limits) or costs.draft_step_seconds is None:
        return None
    with np.errstate(divide="ignore"):
        forecast = forecast_growth(np.log(chances.by_confidence), num_limits)
    at = np.ix_(limits - 1, sizes - 1)
    dynamic = forecast.expected_tokens(num_sizes)[at]
    alike = _static_tokens(chances, num_sizes, num_limits)[at]
    is_possible = np.isfinite(dynamic) & np.isfinite(alike) & np.isfinite(static.expected_tokens[at])
    gain = np.divide(dynamic, alike, out=np.zeros_like(dynamic), where=is_possible)
    tokens = factor * gain * np.where(is_possible, static.expected_tokens[at], 0.0)  # (L, S)
    draft_seconds = _draft_seconds(costs, forecast, sizes, limits)
    round_seconds = costs.round_periods(sizes)(draft_seconds + costs.walk_seconds(sizes))
    seconds = np.divide(round_seconds, tokens, out=np.full(tokens.shape, np.inf), where=tokens > 0)
    row, column = map(int, np.unravel_index(np.argmin(seconds), seconds.shape))
    if not np.isfinite(seconds[row, column]):
        return None
    num_nodes, num_levels = int(sizes[column]), int(limits[row])
    return TreeChoice(
        num_nodes=num_nodes,
        num_levels=num_levels,
        expected_tokens=float(tokens[row, column]),
        round_seconds=float(round_seconds[row, column]),
        draft_seconds=float(draft_seconds[row, column]),
        bound=bound_of(costs, num_nodes, float(draft_seconds[row, column])),
        shape=lambda: growth_limits(num_nodes, num_levels),
        is_dynamic=True,
    )


class YieldLearner:
    """How many tokens rounds with static and with dynamic trees bring beside those expected of them; old rounds fade.

    A text may be harder than those of the calibration, which either kind would feel: most of what rounds of one kind
    bring too little is expected to be missing with the other kind too, until rounds of that say otherwise.
    """

    def __init__(self, *, prior_tokens: float = 64.0, num_kept: int = 50) -> None:
        """`prior_tokens` a: tokens that the expectation counts for; the last `num_kept` rounds are remembered."""
        self._prior_tokens = prior_tokens
        self._rounds: deque[tuple[bool, float, float]] = deque(maxlen=num_kept)

    def factor(self, *, is_in_context: bool) -> float:
        """Of dynamic trees, if `is_in_context`, or of static ones: (a t + seen) / (a + expected).

        t is the text's share of what all rounds brought beside what was expected of them; 1 before anything was seen.
        """
        text = self._ratio(self._rounds, prior=1.0) ** TEXT_SHARE
        return self._ratio([each for each in self._rounds if each[0] == is_in_context], prior=text)

    def observe(self, num_tokens: int, *, expected_tokens: float, is_in_context: bool) -> None:
        """Learn one round of either kind."""
        self._rounds.append((is_in_context, float(num_tokens), expected_tokens))

    def _ratio(self, rounds: Iterable[tuple[bool, float, float]], *, prior: float) -> float:
        seen, expected = self._prior_tokens * prior, self._prior_tokens
        for _, num_tokens, expected_tokens in rounds:
            seen, expected = seen + num_tokens, expected + expected_tokens
        return seen / expected


def _grid(most: int) -> NDArray[np.int64]:
    """2 .. most, by a factor."""
    count = int(np.log(max(most, 2) / 2) / np.log(GRID_FACTOR)) + 1
    points = np.unique(np.append(np.round(2 * GRID_FACTOR ** np.arange(count)).astype(np.int64), most))
    return points[(points >= 2) & (points <= most)]


def _static_tokens(chances: ContextChances, num_sizes: int, num_limits: int) -> NDArray[np.float64]:
    """(D, N) of the best static trees where every position is like all of them on average."""
    means = make_non_increasing(chances.by_confidence.mean(axis=0))
    return np.stack([search.expected_tokens for search in best_first_by_levels(means, num_sizes, num_limits)])


def _draft_seconds(
    costs: RoundCosts, forecast: GrowthForecast, sizes: NDArray[np.int64], limits: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(L, S) one step for every level but the last, by how many of its nodes lead by enough to be run."""
    assert costs.draft_step_seconds is not None
    step_seconds, lead = costs.draft_step_seconds, growth_limits(2, 2).least_lead
    rows = []
    for limit in limits.tolist():
        widths = forecast.run_per_level(sizes, limit, least_lead=lead)  # (limit - 1, S)
        steps = step_seconds(np.maximum(widths, 1.0)) * np.minimum(widths, 1.0)  # some trees do not get so far
        rows.append(steps.sum(axis=0))
    return np.array(rows)
