"""Predicted tokens per pass beside counted ones: do trees bring what the acceptance promised? Pure NumPy.

Three questions of Sequoia (arXiv 2402.12374): is the G(n) that the positional model predicts what is measured, does it
grow with log n, and how far off is the model where trees are deep, as chains are. On a greedy text of the target, the
rank of each token in the draft's order behind the text before it settles what any tree would emit at any position. Both
sides rest on few texts: only a gap that is large beside their standard errors speaks against the model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.acceptance import error_between
from profiles.pair_profile import PairProfile
from runtime.planner.profile_costs import acceptance_of, acceptance_range
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst, best_first

CHAIN_LENGTHS = (2, 4, 8, 16, 24, 32)
LOG_FIT_FROM = 8
"""Smallest tree of the fit: below, a tree is mostly the draft's first choice."""

Ranks = NDArray[np.int64]
"""(A,) rank of each token of an answer in the draft's order behind the text before it, from 1; 0 if it has none."""


def check_yields(
    texts: Sequence[Ranks], pair: PairProfile, *, max_nodes: int = 512, max_levels: int = 33
) -> dict[str, Any]:
    """Hold G(n), n = 1 .. max_nodes, and chains, where the model errs most, against what is counted on `texts`.

    The pair's acceptance must come from other texts. Raises ValueError if no text is as long as the deepest tree.
    """
    search = best_first(acceptance_of(pair, 0.0, by_depth=False), max_nodes, max_levels)
    horizon = int(search.depths.max())
    num_positions = sum(max(0, len(ranks) - horizon) for ranks in texts)
    if num_positions < 2:
        raise ValueError(f"no answer is longer than the {horizon} tokens that the deepest tree reaches")
    found = _compare(search, texts, pair)
    measured, table = found["measured"], pair.acceptance_near(0.0)
    sizes = [1 << power for power in range(len(measured).bit_length())]
    intercept, slope, r_squared = _fit_log(sizes, measured)
    longest = max(map(len, texts))
    chains = {length: best_first([1.0], length, length) for length in CHAIN_LENGTHS if length <= longest}
    return {
        "trees": [_of_size(size, found) for size in sizes],
        "chains": [_of_size(length, _compare(chain, texts, pair)) for length, chain in chains.items()],
        "num_positions": num_positions,  # that trees were counted at
        "log_intercept": intercept,  # a of measured = a + b ln n, n >= LOG_FIT_FROM
        "log_slope": slope,  # b
        "log_r_squared": r_squared,  # share of the variance that the fit explains
        # Largest |predicted / measured - 1| over all n.
        "worst_error_by_rank": float(np.abs(found["by_rank"] / measured - 1).max()),
        "worst_error_by_depth": float(np.abs(found["by_depth"] / measured - 1).max()),
        "num_predicted_positions": table.num_positions[0],
        "num_predicted_texts": table.num_texts,
    }


def count_yields(
    tree: BestFirst | TreeTopology, texts: Sequence[Ranks]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the tokens per pass of the tree's first 1, 2, ... M nodes (M,), and their standard errors (M,).

    A round starts at every position from which the tree cannot run past the text's end, the same for all sizes. Without
    such a position means are nan and errors infinite. See `error_between`.
    """
    horizon = int(tree.depths.max())
    children = {
        (int(parent), int(rank)): node for node, (parent, rank) in enumerate(zip(tree.parents, tree.ranks, strict=True))
    }
    long_enough = [ranks for ranks in texts if len(ranks) > horizon]
    visits = np.zeros((len(long_enough), len(tree.parents)))  # (k, M) rounds of a text that come through each node
    counts = np.array([len(ranks) - horizon for ranks in long_enough], dtype=np.int64)  # (k,) rounds of each text
    visits[:, 0] = counts  # the root
    for row, ranks in zip(visits, long_enough, strict=True):
        for start in range(len(ranks) - horizon):
            node = 0
            for rank in ranks[start : start + horizon].tolist():
                if (child := children.get((node, rank))) is None:
                    break
                node = child
                row[node] += 1
    sums = np.cumsum(visits, axis=1)  # (k, M): every tree that has a node emits one more where a round comes through it
    means = sums.sum(axis=0) / counts.sum() if len(counts) else np.full(sums.shape[1], np.nan)
    return means, error_between(sums, counts)


def expected_by_size(search: BestFirst, acceptance: ArrayLike) -> NDArray[np.float64]:
    """Return F of the search's trees of 1 .. M nodes, (M,), under another acceptance, by rank or by depth and rank."""
    matrix = np.atleast_2d(np.asarray(acceptance, dtype=np.float64))
    matrix = np.pad(matrix, ((0, 0), (0, max(0, int(search.ranks.max()) - matrix.shape[1]))))
    worths = np.ones(len(search.depths))
    for step in range(1, len(worths)):
        row = matrix[min(int(search.depths[step]), len(matrix)) - 1]
        worths[step] = worths[search.parents[step]] * row[search.ranks[step] - 1]
    return np.cumsum(worths)


def _compare(search: BestFirst, texts: Sequence[Ranks], pair: PairProfile) -> dict[str, NDArray[np.float64]]:
    """Return the tokens per pass of the search's trees of 1 .. M nodes, (M,) each; nan where an error is not known."""
    measured, errors = count_yields(search, texts)
    by_depth = expected_by_size(search, acceptance_of(pair, 0.0))
    by_depth_error = np.full(len(by_depth), np.nan)
    if (around := acceptance_range(pair, 0.0)) is not None:
        low, high = (expected_by_size(search, acceptance) for acceptance in around)
        by_depth_error = (high - low) / 2
    return {
        "measured": measured,
        "standard_error": errors,  # of `measured`, between texts; infinite for a single text
        "by_rank": expected_by_size(search, acceptance_of(pair, 0.0, by_depth=False)),
        "by_depth": by_depth,
        "by_depth_error": by_depth_error,
    }


def _of_size(num_nodes: int, found: Mapping[str, NDArray[np.float64]]) -> dict[str, float | None]:
    """Return what was found for one size; None for an error that is not known."""
    values = {name: float(by_size[num_nodes - 1]) for name, by_size in found.items()}
    return {"num_nodes": num_nodes, **{name: value if math.isfinite(value) else None for name, value in values.items()}}


def _fit_log(sizes: Sequence[int], measured: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return (a, b, R^2) of measured = a + b ln n by least squares, every doubling with the same weight."""
    kept = [size for size in sizes if size >= min(LOG_FIT_FROM, len(measured) // 2)]
    logs, values = np.log(kept), measured[np.array(kept) - 1]
    slope, intercept = np.polyfit(logs, values, 1)
    rest, total = np.var(values - intercept - slope * logs), np.var(values)
    return float(intercept), float(slope), float(1 - rest / total) if total > 0 else 1.0
