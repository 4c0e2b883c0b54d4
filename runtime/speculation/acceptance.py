"""How likely the child of each rank is the accepted one: what to plan with before rounds, and what rounds teach.

Sequoia (arXiv 2402.12374, section 4.1, positional acceptance).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

# fmt: off
BUILTIN_ACCEPTANCE: tuple[float, ...] = (
    0.818, 0.095, 0.029, 0.017, 0.007, 0.004412, 0.003466, 0.002348, 0.001927, 0.001444, 0.00137, 0.001149, 0.000859,
    0.000764, 0.000539, 0.000539, 0.000539, 0.000389, 0.000389, 0.000347, 0.000347, 0.000315, 0.000253, 0.000253,
    0.000253, 0.000253, 0.0002, 0.000172, 0.000156, 0.000156, 0.000059, 0.000059,
)
# fmt: on
"""The vector to plan with before anything was measured: a separate draft of about a third of the target's size.

Ranks 1-5 are Qwen2.5-Coder-1.5B/0.5B, greedy, on chat and code prompts. Too few positions reach further ranks, so the
tail has the shape of Llama-3-70B/8B on CNN Daily Mail (Sequoia), scaled to meet at rank 5, its last value repeated
once, and made non-increasing by isotonic regression.
"""

# fmt: off
BUILTIN_CONFIDENCE: tuple[tuple[float, ...], ...] = (
    (0.3921, 0.2474, 0.1105, 0.0863, 0.0287, 0.0261, 0.0037, 0.0135, 0.0129, 0.0338, 0.0015, 0.0013),
    (0.6317, 0.2094, 0.0437, 0.0276, 0.0458, 0.0126, 0.012, 0.001, 0.0007, 0.0005, 0.0004, 0.0003),
    (0.7883, 0.1441, 0.0166, 0.0131, 0.0012, 0.0114, 0.0005, 0.011, 0.0003, 0.0002, 0.0002, 0.0001),
    (0.9417, 0.0529, 0.0017, 0.0007, 0.0003, 0.0002, 0.0001, 0.0001, 0.0001, 0, 0, 0),
    (0.984, 0.0129, 0.0004, 0.0002, 0.0001, 0.0001, 0, 0, 0, 0, 0, 0),
    (0.9972, 0.0005, 0.0001, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (0.9978, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (0.9979, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
)
# fmt: on
"""How likely the candidate of each rank is the emitted token, by how sure the draft is, before that was measured.

Of Qwen2.5-Coder-1.5B/0.5B, greedy: 588 positions of 24 texts in eight groups of as many, from those where the draft is
least sure to those where it is surest (`overstory calibrate`).
"""

SUBSTITUTE_ACCEPTANCE: Mapping[str, tuple[float, ...]] = {
    "int8": (0.992, 0.005, 0.002, 0.001),
    "nf4": (0.878, 0.063, 0.021, 0.01, 0.005, 0.003),
}
"""The same for a substitute draft, the target's own layers, by the format they are held in.

Ranks 1-3 are the means over SmolLM2-135M (int8 .990 .010 .000, nf4 .797 .099 .026) and Qwen2.5-Coder-1.5B (int8 .995
.000 .005, nf4 .958 .026 .016), 192 positions each, greedy, on the demo prompts, smoothed to be
non-increasing (`overstory calibrate` measures them anew); later ranks are a guess that gives the tail some nodes. A
target that is quantized in its files is its own draft but for rounding, like int8.
"""


def builtin_acceptance(*, substitute_held: str | None) -> NDArray[np.float64]:
    """Return the vector to plan with before anything was measured; `substitute_held` is None for a separate draft."""
    if substitute_held is None:
        return np.asarray(BUILTIN_ACCEPTANCE)
    return np.asarray(SUBSTITUTE_ACCEPTANCE.get(substitute_held, SUBSTITUTE_ACCEPTANCE["int8"]))


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
