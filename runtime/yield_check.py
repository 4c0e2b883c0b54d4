"""Whether trees bring what the acceptance promised: predicted tokens per pass beside counted ones.

Three questions of Sequoia (arXiv 2402.12374): is the G(n) that the positional model predicts what is measured, does it
grow with log n, and how far off is the positional model where trees are deep, as chains are. Counts on greedy texts of
the target (`tree_yield`); the acceptance must come from other texts. Pure NumPy.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst, best_first, expected_tokens
from runtime.speculation.tree_yield import Ranks, count_yield, count_yield_by_size

CHAIN_LENGTHS = (2, 4, 8, 16, 24, 32)
LOG_FIT_FROM = 8
"""Smallest tree of the fit: below, a tree is mostly the draft's first choice."""


@dataclass(frozen=True, slots=True)
class YieldCurve:
    """G(n), n = 1 .. N, for the best trees of the positional model."""

    measured: tuple[float, ...]
    """(N,) tokens per pass, counted."""
    by_rank: tuple[float, ...]
    """(N,) as the acceptance by rank predicts it."""
    by_depth: tuple[float, ...]
    """(N,) the same trees as the acceptance by depth and rank predicts them."""
    num_positions: int
    """Positions counted."""
    log_intercept: float
    """a of measured = a + b ln n, n >= LOG_FIT_FROM."""
    log_slope: float
    """b."""
    log_r_squared: float
    """Share of the variance that the fit explains."""
    worst_error_by_rank: float
    """Largest |predicted / measured - 1| over n."""
    worst_error_by_depth: float
    """The same with depth."""


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """A chain, where the positional model errs most."""

    num_nodes: int
    """Nodes, root included."""
    measured: float
    """Tokens per pass, counted."""
    standard_error: float
    """Of the count."""
    by_rank: float
    """As the acceptance by rank predicts it."""
    by_depth: float
    """As the acceptance by depth and rank predicts it."""


@dataclass(frozen=True, slots=True)
class YieldReport:
    """The curve and the chains."""

    curve: YieldCurve
    """G(n)."""
    chains: tuple[ChainCheck, ...]
    """By length."""

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object; of the curve only the sizes that are powers of two."""
        record = asdict(self)
        sizes = [1 << power for power in range(len(self.curve.measured).bit_length())]
        for name in ("measured", "by_rank", "by_depth"):
            curve = getattr(self.curve, name)
            record["curve"][name] = {size: curve[size - 1] for size in sizes if size <= len(curve)}
        return record


def check_yields(
    texts: Sequence[Ranks],
    *,
    by_rank: ArrayLike,
    by_depth: ArrayLike,
    max_nodes: int = 512,
    max_levels: int = 33,
) -> YieldReport:
    """Hold G(n), n = 1 .. max_nodes, and chains against what is counted on `texts` (`tree_yield.Ranks`).

    `by_rank` (R,) and `by_depth` (D, R) are non-increasing in rank. Raises ValueError if no text is as long as the
    deepest tree.
    """
    search = best_first(by_rank, max_nodes, max_levels)
    horizon = int(search.depths.max())
    num_positions = sum(max(0, len(ranks) - horizon) for ranks in texts)
    if num_positions < 2:
        raise ValueError(f"no answer is longer than the {horizon} tokens that the deepest tree reaches")
    measured = count_yield_by_size(search, texts, horizon=horizon)
    predicted, deeper = search.expected_tokens[: len(measured)], expected_by_size(search, by_depth)
    intercept, slope, r_squared = _fit_log(measured)
    curve = YieldCurve(
        measured=tuple(measured.tolist()),
        by_rank=tuple(predicted.tolist()),
        by_depth=tuple(deeper.tolist()),
        num_positions=num_positions,
        log_intercept=intercept,
        log_slope=slope,
        log_r_squared=r_squared,
        worst_error_by_rank=float(np.abs(predicted / measured - 1).max()),
        worst_error_by_depth=float(np.abs(deeper / measured - 1).max()),
    )
    longest = max(map(len, texts))
    chains = [_check_chain(length, texts, by_rank, by_depth) for length in CHAIN_LENGTHS if length <= longest]
    return YieldReport(curve, tuple(chains))


def expected_by_size(search: BestFirst, acceptance: ArrayLike) -> NDArray[np.float64]:
    """(M,) F of the search's trees of 1 .. M nodes under another acceptance, by rank or by depth and rank."""
    matrix = np.atleast_2d(np.asarray(acceptance, dtype=np.float64))
    matrix = np.pad(matrix, ((0, 0), (0, max(0, int(search.ranks.max()) - matrix.shape[1]))))
    worths = np.ones(len(search.depths))
    for step in range(1, len(worths)):
        row = matrix[min(int(search.depths[step]), len(matrix)) - 1]
        worths[step] = worths[search.parents[step]] * row[search.ranks[step] - 1]
    return np.cumsum(worths)


def _check_chain(num_nodes: int, texts: Sequence[Ranks], by_rank: ArrayLike, by_depth: ArrayLike) -> ChainCheck:
    chain = TreeTopology.chain(num_nodes)
    counted = count_yield(chain, texts)
    return ChainCheck(
        num_nodes,
        counted.mean,
        counted.standard_error,
        by_rank=expected_tokens(chain, by_rank),
        by_depth=expected_tokens(chain, by_depth),
    )


def _fit_log(measured: NDArray[np.float64]) -> tuple[float, float, float]:
    """(a, b, R^2) of measured = a + b ln n by least squares, every doubling with the same weight."""
    sizes = np.arange(1, len(measured) + 1)
    is_kept = sizes >= min(LOG_FIT_FROM, len(measured) // 2)
    logs, values, weights = np.log(sizes[is_kept]), measured[is_kept], 1 / np.sqrt(sizes[is_kept])
    slope, intercept = np.polyfit(logs, values, 1, w=weights)
    rest = (weights**2 * (values - intercept - slope * logs) ** 2).sum()
    mean = np.average(values, weights=weights**2)
    total = (weights**2 * (values - mean) ** 2).sum()
    return float(intercept), float(slope), float(1 - rest / total) if total > 0 else 1.0
