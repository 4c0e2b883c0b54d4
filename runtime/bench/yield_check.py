"""Whether trees bring what the acceptance promised: predicted tokens per pass beside counted ones.

Three questions of Sequoia (arXiv 2402.12374): is the G(n) that the positional model predicts what is measured, does it
grow with log n, and how far off is the positional model where trees are deep, as chains are. Counts on greedy texts of
the target (`tree_yield`); the acceptance must come from other texts. Both sides rest on few texts, so both have their
standard error: only a gap that is large beside them speaks against the model. Pure NumPy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.bench.tree_yield import Ranks, count_yield, count_yield_by_size
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst, best_first, expected_tokens

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
    measured_errors: tuple[float | None, ...]
    """(N,) standard errors of the counts, between texts; None for a single text."""
    by_depth_errors: tuple[float | None, ...]
    """(N,) standard errors of the predictions by depth; None where the acceptance has none."""
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
    standard_error: float | None
    """Of the count, between texts; None for a single text."""
    by_rank: float
    """As the acceptance by rank predicts it."""
    by_depth: float
    """As the acceptance by depth and rank predicts it."""
    by_depth_error: float | None
    """Standard error of that."""


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
    """Positions that it was measured at."""
    num_texts: int
    """Texts that they are of."""


@dataclass(frozen=True, slots=True)
class YieldReport:
    """The curve and the chains."""

    curve: YieldCurve
    """G(n)."""
    chains: tuple[ChainCheck, ...]
    """By length."""
    num_predicted_positions: int
    """Positions that the predictions rest on."""
    num_predicted_texts: int
    """Texts that those are of."""

    @property
    def shown_sizes(self) -> tuple[int, ...]:
        """The sizes of the curve that are powers of two."""
        return tuple(1 << power for power in range(len(self.curve.measured).bit_length()))

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object; of the curve only the sizes that are powers of two."""
        record = asdict(self)
        for name in ("measured", "measured_errors", "by_rank", "by_depth", "by_depth_errors"):
            curve = getattr(self.curve, name)
            record["curve"][name] = {size: curve[size - 1] for size in self.shown_sizes}
        return record


def check_yields(
    texts: Sequence[Ranks], prediction: Prediction, *, max_nodes: int = 512, max_levels: int = 33
) -> YieldReport:
    """Hold G(n), n = 1 .. max_nodes, and chains against what is counted on `texts` (`tree_yield.Ranks`).

    Raises ValueError if no text is as long as the deepest tree.
    """
    search = best_first(prediction.by_rank, max_nodes, max_levels)
    horizon = int(search.depths.max())
    num_positions = sum(max(0, len(ranks) - horizon) for ranks in texts)
    if num_positions < 2:
        raise ValueError(f"no answer is longer than the {horizon} tokens that the deepest tree reaches")
    counted = count_yield_by_size(search, texts, horizon=horizon)
    measured = counted.means
    predicted, deeper = search.expected_tokens[: len(measured)], expected_by_size(search, prediction.by_depth)
    intercept, slope, r_squared = _fit_log(measured)
    curve = YieldCurve(
        measured=tuple(measured.tolist()),
        by_rank=tuple(predicted.tolist()),
        by_depth=tuple(deeper.tolist()),
        measured_errors=tuple(map(_finite, counted.standard_errors.tolist())),
        by_depth_errors=_half_range(prediction, lambda acceptance: expected_by_size(search, acceptance)),
        num_positions=num_positions,
        log_intercept=intercept,
        log_slope=slope,
        log_r_squared=r_squared,
        worst_error_by_rank=float(np.abs(predicted / measured - 1).max()),
        worst_error_by_depth=float(np.abs(deeper / measured - 1).max()),
    )
    longest = max(map(len, texts))
    chains = [_check_chain(length, texts, prediction) for length in CHAIN_LENGTHS if length <= longest]
    return YieldReport(curve, tuple(chains), prediction.num_positions, prediction.num_texts)


def expected_by_size(search: BestFirst, acceptance: ArrayLike) -> NDArray[np.float64]:
    """(M,) F of the search's trees of 1 .. M nodes under another acceptance, by rank or by depth and rank."""
    matrix = np.atleast_2d(np.asarray(acceptance, dtype=np.float64))
    matrix = np.pad(matrix, ((0, 0), (0, max(0, int(search.ranks.max()) - matrix.shape[1]))))
    worths = np.ones(len(search.depths))
    for step in range(1, len(worths)):
        row = matrix[min(int(search.depths[step]), len(matrix)) - 1]
        worths[step] = worths[search.parents[step]] * row[search.ranks[step] - 1]
    return np.cumsum(worths)


def _check_chain(num_nodes: int, texts: Sequence[Ranks], prediction: Prediction) -> ChainCheck:
    chain = TreeTopology.chain(num_nodes)
    counted = count_yield(chain, texts)
    (error,) = _half_range(prediction, lambda acceptance: np.array([expected_tokens(chain, acceptance)]))
    return ChainCheck(
        num_nodes,
        counted.mean,
        _finite(counted.standard_error),
        by_rank=expected_tokens(chain, prediction.by_rank),
        by_depth=expected_tokens(chain, prediction.by_depth),
        by_depth_error=error,
    )


def _half_range(
    prediction: Prediction, tokens_of: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[float | None, ...]:
    """(M,) half of what the (M,) yields move between one standard error less and one more."""
    if prediction.low is None or prediction.high is None:
        return (None,) * len(tokens_of(prediction.by_depth))
    return tuple(((tokens_of(prediction.high) - tokens_of(prediction.low)) / 2).tolist())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
