"""Chooses how far trees that take their shape from context may grow: the fewest predicted seconds per token.

Of positions in groups of equal confidence two trees are forecast with the same flaw, that nodes are independent of
their parents: a dynamic one and the best static one. Their ratio, times what the static tree is predicted to bring by
depth and rank and a factor that rounds teach, is the prediction. Sizes and levels lie on a grid.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.acceptance import SEPARATE_DRAFT_SPREAD, SUBSTITUTE_SPREAD
from profiles.builtin_profiles import unmeasured_pair
from profiles.pair_profile import PairProfile
from runtime.planner.costs import RoundCosts
from runtime.planner.tree_choice import TreeChoice, TreeRanking, bound_of
from runtime.speculation.acceptance import builtin_acceptance
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.tree_search import best_first_by_levels, make_non_increasing

GRID_FACTOR = 1.2
"""From one size, or level limit, to the next."""
LEAST_WIDTH, WIDTH_SHARE = 8, 4
"""Nodes of the widest step, or one of so many of the tree's: wide enough that no level has to wait."""
RUN_WORTHS = {1.5: 1.0, 2.0: 0.99, 3.0: 0.96}
"""What a node may have to be worth to be run, in shares of the tree, and the share of tokens that is left with it.

The draft may run as many nodes as the tree has. With 1 it runs out of them in wide early steps, on nodes that are
outdone later: simulated from the built-in groups of positions, 1.5 brings 2.6 to 3.4 % more tokens in trees of 256
nodes on up to 40 levels. With 2 it runs 14 to 16 % fewer for 0.2 to 1 % of the tokens, with 3 40 % fewer for 2.7 to
2.8 % (256 and 512 nodes on 26 levels): on a processor, whose steps cost by their width, that pays."""
RUN_WORTH = min(RUN_WORTHS)
MOST_LEVELS = 64
"""Of trees that are considered; where a draft is so good that deeper ones pay, context has nothing to add."""
LEAST_LOG_WORTH = -14.0
"""Nodes less likely than one in a million are of no use, nor is what stands below them."""
NUM_BINS = 700
"""Of the logarithms of worths that a forecast tells apart."""
NUM_KEPT_ROUNDS, PRIOR_TOKENS = 50, 64.0
"""Rounds that are remembered, and tokens that what was expected of them counts for."""
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
    """Return what to plan with before anything was measured; `substitute_held` is None for a separate draft.

    Nothing is known of single positions of a substitute: then no tree in context is predicted to be better.
    """
    if substitute_held is None:
        return ContextChances(np.array(unmeasured_pair().by_confidence), SEPARATE_DRAFT_SPREAD)
    return ContextChances(builtin_acceptance(substitute_held=substitute_held)[None, :], SUBSTITUTE_SPREAD)


def chances_of(pair: PairProfile, temperature: float) -> ContextChances | None:
    """Return what is known of single positions near a temperature; None where that was not measured."""
    tables = [table for table in pair.believed_acceptance if table.by_confidence and table.spread]
    if not tables:
        return None
    table = min(tables, key=lambda table: (abs(table.temperature - temperature), table.temperature))
    assert table.spread is not None
    return ContextChances(np.array(table.by_confidence), table.spread)


def growth_limits(num_nodes: int, num_levels: int, *, run_worth: float = RUN_WORTH) -> GrowthLimits:
    """Return the limits of a tree of so many nodes and levels, both with the root; see RUN_WORTHS."""
    return GrowthLimits(
        num_nodes,
        num_levels - 1,
        max_width=max(LEAST_WIDTH, num_nodes // WIDTH_SHARE),
        least_worth=run_worth / num_nodes,
        max_run=num_nodes,
    )


@dataclass(frozen=True, slots=True, eq=False)
class GrowthForecast:
    """What trees shaped by context bring on average: expected nodes and tokens by level and worth; D level limits.

    A node of such a tree has children whose chances are those of some position. Take each node's as drawn from the
    positions that a calibration saw, independent of its parent's: then the logarithms of worths spread from level to
    level by one convolution, and a tree takes all nodes whose worth is above a threshold that depends on its size. This
    is what positional acceptance is for static trees (arXiv 2402.12374, 4.1), with the same flaw: easy stretches are
    longer than chance would have them.
    """

    nodes: NDArray[np.float64]
    """(D, M) expected nodes of each level in each bin of worth, the largest worth first; the root's level first."""
    tokens: NDArray[np.float64]
    """(D, M) the sum of their worths."""

    def expected_tokens(self, max_nodes: int) -> NDArray[np.float64]:
        """Return (D, N) [d - 1, n - 1] tokens per pass of n nodes on at most d levels; -inf if there are fewer."""
        counts = np.cumsum(np.cumsum(self.nodes, axis=0), axis=1)  # (D, M) nodes within the limit and above the bin
        worths = np.cumsum(np.cumsum(self.tokens, axis=0), axis=1)
        sizes = np.arange(1, max_nodes + 1)
        rows = [np.interp(sizes, count, worth) for count, worth in zip(counts, worths, strict=True)]
        is_possible = sizes <= counts[:, -1:] + 1e-9
        return np.where(is_possible, np.array(rows), -np.inf)

    def run_per_level(
        self, num_nodes: ArrayLike, level_limit: int, *, run_worth: float = RUN_WORTH
    ) -> NDArray[np.float64]:
        """Return (d - 1, ...) nodes that the draft runs in each level, of trees of `num_nodes` (...) on d levels.

        Those worth `run_worth` shares of the tree, even if outdone later, as many as the tree has at most; at
        least one where the next level has one. Those of the last level have no children.
        """
        sizes = np.asarray(num_nodes, dtype=np.float64)
        within = np.cumsum(self.nodes[:level_limit], axis=1)  # (d, M)
        last_bins = np.interp(sizes, within.sum(axis=0), np.arange(NUM_BINS))
        least = np.minimum(_at_bins(within[1:], last_bins), 1.0)
        worth = _at_bins(within[:-1], np.log(sizes / run_worth) / (-LEAST_LOG_WORTH / NUM_BINS))
        more = np.maximum(worth - 1.0, 0.0) * least
        room = np.maximum(sizes - least.sum(axis=0), 0.0)
        return np.asarray(least + more * np.minimum(1.0, room / np.maximum(more.sum(axis=0), 1e-9)), dtype=np.float64)


def forecast_growth(log_chances: ArrayLike, max_levels: int) -> GrowthForecast:
    """Forecast from positions (P, B): the logarithm of each candidate's chance there, -inf for no candidate.

    Each chance is shared out between the two bins beside it such that both the number and the sum of worths stay true.
    """
    chances = np.atleast_2d(np.asarray(log_chances, dtype=np.float64))
    width = -LEAST_LOG_WORTH / NUM_BINS
    places = np.minimum(chances[chances > LEAST_LOG_WORTH], 0.0) / -width
    lower = np.floor(places).astype(np.int64)
    # a exp(0) + (1 - a) exp(-width) = exp(-rest), divided by what they share
    share = (np.exp(-(places - lower) * width) - np.exp(-width)) / -np.expm1(-width)
    step = np.zeros(NUM_BINS + 1)  # children of a node by worth
    np.add.at(step, lower, share / len(chances))
    np.add.at(step, lower + 1, (1 - share) / len(chances))
    nodes = np.zeros((max_levels, NUM_BINS))
    nodes[0, 0] = 1.0
    for level in range(1, max_levels):
        nodes[level] = np.convolve(nodes[level - 1], step[:NUM_BINS])[:NUM_BINS]
    return GrowthForecast(nodes, nodes * np.exp(-width * np.arange(NUM_BINS)))


def choose_growth(
    costs: RoundCosts,
    chances: ContextChances,
    static: TreeRanking,
    *,
    factor: float = 1.0,
    shape: tuple[int, int] | None = None,
) -> TreeChoice | None:
    """Choose the best dynamic tree within the limits of a ranking of static ones, or of this `shape` (nodes, levels).

    None where no tree may have two nodes. `factor`: tokens that such trees have really brought over those predicted.
    """
    num_limits, num_sizes = static.seconds_per_token.shape
    if shape is None:
        num_limits = min(num_limits, MOST_LEVELS)
        sizes, limits = _grid(num_sizes), _grid(num_limits)
    else:
        sizes, limits = np.array([shape[0]]), np.array([shape[1]])
    if not len(sizes) or not len(limits) or costs.draft_step_seconds is None:
        return None
    groups = np.ascontiguousarray(chances.by_confidence, dtype=np.float64)
    forecast, in_context, on_average = _forecasts(groups.tobytes(), groups.shape[1], num_limits, num_sizes)
    at = np.ix_(limits - 1, sizes - 1)
    dynamic, alike = in_context[at], on_average[at]
    is_possible = np.isfinite(dynamic) & np.isfinite(alike) & np.isfinite(static.expected_tokens[at])
    gain = np.divide(dynamic, alike, out=np.zeros_like(dynamic), where=is_possible)
    tokens = factor * gain * np.where(is_possible, static.expected_tokens[at], 0.0)  # (L, S)
    choices = (
        _cheapest(costs, forecast, share * tokens, (sizes, limits), run_worth=run_worth)
        for run_worth, share in RUN_WORTHS.items()
    )
    return min(filter(None, choices), key=lambda choice: choice.seconds_per_token, default=None)


@lru_cache(maxsize=4)  # a plan asks again and again for other costs, a session after every few rounds
def _forecasts(
    groups: bytes, num_ranks: int, num_limits: int, num_sizes: int
) -> tuple[GrowthForecast, NDArray[np.float64], NDArray[np.float64]]:
    """Return the forecast from groups (G, R) of float64, and (D, N) tokens of trees in context and of the best static
    ones where every position is like all on average.
    """
    by_confidence = np.frombuffer(groups).reshape(-1, num_ranks)
    with np.errstate(divide="ignore"):
        forecast = forecast_growth(np.log(by_confidence), num_limits)
    means = make_non_increasing(by_confidence.mean(axis=0))
    alike = np.stack([search.expected_tokens for search in best_first_by_levels(means, num_sizes, num_limits)])
    return forecast, forecast.expected_tokens(num_sizes), alike


def _cheapest(
    costs: RoundCosts,
    forecast: GrowthForecast,
    tokens: NDArray[np.float64],
    grid: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    run_worth: float,
) -> TreeChoice | None:
    """The fewest seconds per token of this grid (S,), (L,) of sizes and level limits; `tokens` (L, S)."""
    sizes, limits = grid
    draft_seconds = _draft_seconds(costs, forecast, sizes, limits, run_worth=run_worth)
    round_seconds = costs.round_seconds(sizes, draft_seconds)
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
        shape=lambda: growth_limits(num_nodes, num_levels, run_worth=run_worth),
        is_dynamic=True,
    )


class YieldLearner:
    """How many tokens rounds with static and with dynamic trees bring beside those expected of them; old rounds fade.

    A text may be harder than those of the calibration, which either kind would feel: most of what rounds of one kind
    bring too little is expected to be missing with the other kind too, until rounds of that say otherwise.
    """

    def __init__(self) -> None:
        self._rounds: deque[tuple[bool, float, float]] = deque(maxlen=NUM_KEPT_ROUNDS)

    def factor(self, *, is_in_context: bool) -> float:
        """Return (a t + seen) / (a + expected) of dynamic trees, if `is_in_context`, or of static ones; a PRIOR_TOKENS.

        t is the text's share of what all rounds brought beside what was expected of them; 1 before anything was seen.
        """
        text = self._ratio(self._rounds, prior=1.0) ** TEXT_SHARE
        return self._ratio([each for each in self._rounds if each[0] == is_in_context], prior=text)

    def observe(self, num_tokens: int, *, expected_tokens: float, is_in_context: bool) -> None:
        """Learn one round of either kind."""
        self._rounds.append((is_in_context, float(num_tokens), expected_tokens))

    def _ratio(self, rounds: Iterable[tuple[bool, float, float]], *, prior: float) -> float:
        seen, expected = PRIOR_TOKENS * prior, PRIOR_TOKENS
        for _, num_tokens, expected_tokens in rounds:
            seen, expected = seen + num_tokens, expected + expected_tokens
        return seen / expected


def _grid(most: int) -> NDArray[np.int64]:
    """2 .. most, by a factor."""
    count = int(np.log(max(most, 2) / 2) / np.log(GRID_FACTOR)) + 1
    points = np.unique(np.append(np.round(2 * GRID_FACTOR ** np.arange(count)).astype(np.int64), most))
    return points[(points >= 2) & (points <= most)]


def _draft_seconds(
    costs: RoundCosts,
    forecast: GrowthForecast,
    sizes: NDArray[np.int64],
    limits: NDArray[np.int64],
    *,
    run_worth: float,
) -> NDArray[np.float64]:
    """(L, S) one step for every level but the last, by how many of its nodes are run."""
    step_seconds, rows = costs.draft_step_seconds, []
    assert step_seconds is not None
    for limit in limits.tolist():
        widths = forecast.run_per_level(sizes, limit, run_worth=run_worth)  # (limit - 1, S)
        steps = step_seconds(np.maximum(widths, 1.0)) * np.minimum(widths, 1.0)  # some trees do not get so far
        rows.append(steps.sum(axis=0))
    return np.array(rows)


def _at_bins(rows: NDArray[np.float64], bins: ArrayLike) -> NDArray[np.float64]:
    """(d, ...) rows (d, M) at fractional `bins` (...), on the line between the two next; the first below all."""
    places = np.clip(np.asarray(bins, dtype=np.float64), 0.0, rows.shape[1] - 1.0)
    lower = np.minimum(places.astype(np.int64), rows.shape[1] - 2)
    share = places - lower
    return np.asarray(rows[:, lower] * (1 - share) + rows[:, lower + 1] * share, dtype=np.float64)
