"""What trees that are shaped by context bring on average, for every size and level limit, from positions seen.

A node of a dynamic tree has children whose chances are those of some position. Take each node's as drawn from the
positions that a calibration saw, independent of its parent's: then the logarithms of worths spread from level to level
by one convolution, and a tree takes all nodes whose worth is above a threshold that depends on its size. This is what
positional acceptance is for static trees (arXiv 2402.12374, 4.1), with the same flaw: easy stretches are longer than
chance would have them. Knows neither models nor seconds; pure NumPy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_LOG_WORTH = -14.0
"""Nodes less likely than one in a million are of no use, nor is what stands below them."""
NUM_BINS = 700


@dataclass(frozen=True, slots=True, eq=False)
class GrowthForecast:
    """Expected nodes and tokens by level and worth; D level limits."""

    nodes: NDArray[np.float64]
    """(D, M) expected nodes of each level in each bin of worth, the largest worth first; the root's level first."""
    tokens: NDArray[np.float64]
    """(D, M) the sum of their worths."""

    def expected_tokens(self, max_nodes: int) -> NDArray[np.float64]:
        """(D, N) [d - 1, n - 1] tokens per pass of n nodes on at most d levels; -inf where there are not so many."""
        counts = np.cumsum(np.cumsum(self.nodes, axis=0), axis=1)  # (D, M) nodes within the limit and above the bin
        worths = np.cumsum(np.cumsum(self.tokens, axis=0), axis=1)
        sizes = np.arange(1, max_nodes + 1)
        rows = [np.interp(sizes, count, worth) for count, worth in zip(counts, worths, strict=True)]
        is_possible = sizes <= counts[:, -1:] + 1e-9
        return np.where(is_possible, np.array(rows), -np.inf)

    def run_per_level(self, num_nodes: ArrayLike, level_limit: int, *, least_lead: float) -> NDArray[np.float64]:
        """(d - 1, ...) nodes of each level that the draft runs, for `num_nodes` (...) and a `level_limit` of d levels.

        Those that are `least_lead` times as worthy as the tree's least, or more.
        At least one where the next level has one, however little it leads. Those of the last level have no children.
        """
        within = np.cumsum(self.nodes[:level_limit], axis=1)  # (d, M)
        last_bins = np.interp(np.asarray(num_nodes, dtype=np.float64), within.sum(axis=0), np.arange(NUM_BINS))
        led = _at_bins(within[:-1], last_bins - np.log(least_lead) / (-LEAST_LOG_WORTH / NUM_BINS))
        return np.asarray(np.maximum(led, np.minimum(_at_bins(within[1:], last_bins), 1.0)), dtype=np.float64)


def _at_bins(rows: NDArray[np.float64], bins: ArrayLike) -> NDArray[np.float64]:
    """(d, ...) rows (d, M) at fractional `bins` (...), on the line between the two next; the first below all."""
    places = np.clip(np.asarray(bins, dtype=np.float64), 0.0, rows.shape[1] - 1.0)
    lower = np.minimum(places.astype(np.int64), rows.shape[1] - 2)
    share = places - lower
    return np.asarray(rows[:, lower] * (1 - share) + rows[:, lower + 1] * share, dtype=np.float64)


def forecast_growth(log_chances: ArrayLike, max_levels: int) -> GrowthForecast:
    """The forecast from positions (P, B): the logarithm of each candidate's chance there, -inf for no candidate.

    Each chance is shared out between the two bins beside it such that both the number and the sum of worths stay true.
    Raises ValueError without a position or a level.
    """
    chances = np.atleast_2d(np.asarray(log_chances, dtype=np.float64))
    if not chances.size or max_levels < 1:
        raise ValueError(f"a forecast needs 1 position and 1 level or more, found {chances.shape} and {max_levels}")
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
