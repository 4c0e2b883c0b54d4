"""How likely the child of each rank is the accepted one: what to plan with before rounds, and what rounds teach.

Sequoia (arXiv 2402.12374, section 4.1, positional acceptance).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.builtin_profiles import unmeasured_pair
from runtime.speculation.tree_search import make_non_increasing

KEPT_PER_ROUND = 0.98
"""Share of all counts that a round leaves: the last 50 rounds are what is believed."""
BUILTIN_EVENTS = 12.0
"""Accepted children that a builtin vector counts for: it was measured with other models, but a prompt is little too."""
MEASURED_EVENTS = 32.0
"""The same for a vector that was measured with this pair, on other text."""
DEPTH_EVENTS = 32.0
"""Accepted children that all depths together count for beside a depth's own."""
NUM_DEPTHS = 12
"""Depths that are told apart, if the prior does not tell more; deeper ones belong to the last."""


def builtin_acceptance(*, substitute_held: str | None) -> NDArray[np.float64]:
    """Return the vector to plan with before anything was measured; `substitute_held` is None for a separate draft.

    A target that is quantized in its files is its own draft but for rounding, like int8.
    """
    known = unmeasured_pair()
    if substitute_held is None:
        return np.asarray(known.separate_draft.by_rank)
    return np.asarray(known.substitutes.get(substitute_held, known.substitutes["int8"]).by_rank)


class AcceptanceLearner:
    """An acceptance matrix kept up to date from what rounds accept: a prior, moved by counts that fade.

    Children are judged one after another, so what is learned is how likely a child is accepted once those before it
    were not: that may be anything, whatever the other ranks do. Rounds are few and far ranks rare, so nothing is
    estimated freely: factors on the prior are, one for each group of ranks over all depths, and one more for each
    depth. Either is a Gamma-Poisson estimate, (a + seen) / (a + expected), which is 1 until there is evidence; a is how
    many accepted children the prior counts for. Counts fade with every round, so that the estimate follows the text,
    and returns to the prior where nothing more is seen.
    """

    def __init__(self, prior: ArrayLike, *, prior_events: float = BUILTIN_EVENTS) -> None:
        """`prior`: p[rank] or p[depth of the parent][rank], not increasing with rank; its last row serves deeper."""
        rows = np.atleast_2d(np.asarray(prior, dtype=np.float64))
        missing = max(0, NUM_DEPTHS - len(rows))
        rows = np.vstack([rows, np.repeat(rows[-1:], missing, axis=0)])  # (D, R)
        left = np.maximum(1 - np.cumsum(rows, axis=1) + rows, 0.0)  # not accepted before this rank
        self._prior = np.divide(rows, left, out=np.zeros_like(rows), where=left > 1e-9).clip(max=1.0)
        self._prior_events = prior_events
        self._seen = np.zeros_like(rows)
        self._tried = np.zeros_like(rows)
        ranks = np.arange(rows.shape[1])
        self._groups = np.ceil(np.log2(ranks + 1)).astype(np.int64)  # ranks 1, 2, 3-4, 5-8, 9-16, ...

    def observe(self, accepted_ranks: Sequence[int], num_children: Sequence[int]) -> None:
        """Learn one round's path: for each accepted node its children, and which of them was accepted (0: none)."""
        self._seen *= KEPT_PER_ROUND
        self._tried *= KEPT_PER_ROUND
        num_depths, num_ranks = self._prior.shape
        for depth, (rank, count) in enumerate(zip(accepted_ranks, num_children, strict=True)):
            row = min(depth, num_depths - 1)
            self._tried[row, : rank or count] += 1
            if 0 < rank <= num_ranks:
                self._seen[row, rank - 1] += 1

    def estimate(self) -> NDArray[np.float64]:
        """Return (D, R) by depth of the parent and rank; no row increases with rank or adds up to more than 1."""
        expected = self._tried * self._prior
        overall = _factors(self._seen.sum(axis=0), expected.sum(axis=0), self._groups, self._prior_events)
        moved = np.minimum(self._prior * overall, 1.0)
        by_depth = _factors(self._seen, self._tried * moved, self._groups, DEPTH_EVENTS)
        accepted = np.minimum(moved * by_depth, 1.0)  # (D, R) of those that are judged
        is_judged = np.cumprod(1 - accepted, axis=1)
        return make_non_increasing(np.hstack([accepted[:, :1], accepted[:, 1:] * is_judged[:, :-1]]))


def _factors(
    seen: NDArray[np.float64], expected: NDArray[np.float64], groups: NDArray[np.int64], prior_events: float
) -> NDArray[np.float64]:
    """Return (..., R) each rank's group as it was accepted over as expected, both with the prior's events added."""
    is_of_group = (groups[:, None] == np.arange(groups[-1] + 1)).astype(np.float64)  # (R, G)
    factors = (seen @ is_of_group + prior_events) / (expected @ is_of_group + prior_events)  # (..., G)
    return np.asarray(factors[..., groups], dtype=np.float64)
