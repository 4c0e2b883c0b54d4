"""Predicted tokens per pass beside counted ones: do trees bring what the acceptance promised?

Three questions of Sequoia (arXiv 2402.12374): is the G(n) that the positional model predicts what is measured, does it
grow with log n, and how far off is the positional model where trees are deep, as chains are. Tokens are counted on
greedy texts of the target: a round that starts at some position follows the text, and at depth j it goes on if the
text's next token is among the children that the node has, which only depends on the token's rank in the draft's order
behind the same text. So the ranks along a text settle what any tree would emit at any position. The acceptance must
come from other texts. Both sides rest on few texts, so both have their standard error: only a gap that is large beside
them speaks against the model. Pure NumPy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.acceptance import error_between
from runtime.bench.figures import Report
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst, best_first, expected_tokens

CHAIN_LENGTHS = (2, 4, 8, 16, 24, 32)
LOG_FIT_FROM = 8
"""Smallest tree of the fit: below, a tree is mostly the draft's first choice."""
_SHOWN_SIZES = (16, 64, 256, 512)

Ranks = NDArray[np.int64]
"""(A,) rank of each token of an answer in the draft's order behind the text before it, from 1; 0 if it has none."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The acceptance that yields are predicted from, and what it rests on."""

    by_rank: NDArray[np.float64]
    """(R,) not increasing."""
    by_depth: NDArray[np.float64]
    """(D, R) by depth of the parent; no row increases."""
    low: NDArray[np.float64] | None
    """(D, R) by depth, one standard error less; None where it is not known."""
    high: NDArray[np.float64] | None
    """(D, R) by depth, one standard error more."""
    num_positions: int
    num_texts: int


@dataclass(frozen=True, slots=True)
class YieldCheck:
    """Tokens per pass of one tree."""

    num_nodes: int
    measured: float
    standard_error: float | None
    """Of `measured`, between texts; None for a single text."""
    by_rank: float
    """As the acceptance by rank predicts it."""
    by_depth: float
    """As the acceptance by depth and rank predicts it."""
    by_depth_error: float | None
    """Standard error of `by_depth`; None where the acceptance has none."""

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"{_with_error(self.measured, self.standard_error)} tokens counted, {self.by_rank:.2f} by rank, "
            f"{_with_error(self.by_depth, self.by_depth_error)} by depth"
        )


@dataclass(frozen=True, slots=True)
class YieldReport(Report):
    """G(n) for the best trees of the positional model, and chains, where that model errs most."""

    trees: tuple[YieldCheck, ...]
    """The best trees of 1, 2, 4, .. nodes."""
    chains: tuple[YieldCheck, ...]
    num_positions: int
    """Positions that trees were counted at."""
    log_intercept: float
    """a of measured = a + b ln n, n >= LOG_FIT_FROM."""
    log_slope: float
    """b."""
    log_r_squared: float
    """Share of the variance that the fit explains."""
    worst_error_by_rank: float
    """Largest |predicted / measured - 1| over all n."""
    worst_error_by_depth: float
    """The same with depth."""
    num_predicted_positions: int
    """Positions that the predictions rest on."""
    num_predicted_texts: int
    """Texts that those are of."""

    def lines(self) -> list[str]:
        """Return the fit, what the predictions rest on, some trees and all chains."""
        return [
            f"G(n) = {self.log_intercept:.2f} + {self.log_slope:.2f} ln n explains {100 * self.log_r_squared:.1f} % of "
            f"the variance over {self.num_positions} positions; by rank it is off by up to "
            f"{100 * self.worst_error_by_rank:.0f} %, by depth by up to {100 * self.worst_error_by_depth:.0f} %",
            f"predictions rest on {self.num_predicted_positions} positions of {self.num_predicted_texts} texts; "
            "standard errors are between texts",
            *[
                f"trees of {tree.num_nodes} nodes: {tree.describe()}"
                for tree in self.trees
                if tree.num_nodes in _SHOWN_SIZES
            ],
            *[f"a chain of {chain.num_nodes}: {chain.describe()}" for chain in self.chains],
        ]


def check_yields(
    texts: Sequence[Ranks], prediction: Prediction, *, max_nodes: int = 512, max_levels: int = 33
) -> YieldReport:
    """Hold G(n), n = 1 .. max_nodes, and chains against what is counted on `texts`.

    Raises ValueError if no text is as long as the deepest tree.
    """
    search = best_first(prediction.by_rank, max_nodes, max_levels)
    horizon = int(search.depths.max())
    num_positions = sum(max(0, len(ranks) - horizon) for ranks in texts)
    if num_positions < 2:
        raise ValueError(f"no answer is longer than the {horizon} tokens that the deepest tree reaches")
    measured, errors = count_yields(search, texts)  # (M,) each
    by_rank, by_depth = search.expected_tokens[: len(measured)], expected_by_size(search, prediction.by_depth)
    by_depth_errors = _half_range(prediction, lambda acceptance: expected_by_size(search, acceptance))
    trees = [
        YieldCheck(
            num_nodes,
            measured=float(measured[num_nodes - 1]),
            standard_error=_finite(errors[num_nodes - 1]),
            by_rank=float(by_rank[num_nodes - 1]),
            by_depth=float(by_depth[num_nodes - 1]),
            by_depth_error=by_depth_errors[num_nodes - 1],
        )
        for num_nodes in (1 << power for power in range(len(measured).bit_length()))
    ]
    longest = max(map(len, texts))
    chains = [_check_chain(length, texts, prediction) for length in CHAIN_LENGTHS if length <= longest]
    intercept, slope, r_squared = _fit_log(measured)
    return YieldReport(
        trees=tuple(trees),
        chains=tuple(chains),
        num_positions=num_positions,
        log_intercept=intercept,
        log_slope=slope,
        log_r_squared=r_squared,
        worst_error_by_rank=float(np.abs(by_rank / measured - 1).max()),
        worst_error_by_depth=float(np.abs(by_depth / measured - 1).max()),
        num_predicted_positions=prediction.num_positions,
        num_predicted_texts=prediction.num_texts,
    )


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


def _check_chain(num_nodes: int, texts: Sequence[Ranks], prediction: Prediction) -> YieldCheck:
    chain = TreeTopology.chain(num_nodes)
    means, errors = count_yields(chain, texts)
    (error,) = _half_range(prediction, lambda acceptance: np.array([expected_tokens(chain, acceptance)]))
    by_rank, by_depth = (expected_tokens(chain, known) for known in (prediction.by_rank, prediction.by_depth))
    return YieldCheck(num_nodes, float(means[-1]), _finite(errors[-1]), by_rank, by_depth, error)


def _half_range(
    prediction: Prediction, tokens_of: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[float | None, ...]:
    """Return half of what the yields (M,) move between one standard error less and one more, (M,)."""
    if prediction.low is None or prediction.high is None:
        return (None,) * len(tokens_of(prediction.by_depth))
    return tuple(((tokens_of(prediction.high) - tokens_of(prediction.low)) / 2).tolist())


def _fit_log(measured: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return (a, b, R^2) of measured = a + b ln n by least squares, every doubling with the same weight."""
    sizes = np.arange(1, len(measured) + 1)
    is_kept = sizes >= min(LOG_FIT_FROM, len(measured) // 2)
    logs, values, weights = np.log(sizes[is_kept]), measured[is_kept], 1 / np.sqrt(sizes[is_kept])
    slope, intercept = np.polyfit(logs, values, 1, w=weights)
    rest = (weights**2 * (values - intercept - slope * logs) ** 2).sum()
    mean = np.average(values, weights=weights**2)
    total = (weights**2 * (values - mean) ** 2).sum()
    return float(intercept), float(slope), float(1 - rest / total) if total > 0 else 1.0


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.2f}" if error is None else f"{value:.2f} (±{error:.2f})"
