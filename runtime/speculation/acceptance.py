"""How likely the child of each rank is the accepted one: the acceptance vector, estimated by rank and by depth.

Positions come in as verdicts (what a round accepted) or as pairs of distributions (what it would accept on average,
with far less variance). Knows neither models nor files; what to plan from it is decided elsewhere. Sequoia
(arXiv 2402.12374, section 4.1, positional acceptance).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.speculation.rejection import accept_probability, residual_step
from runtime.speculation.sampling import Probs
from runtime.speculation.verifier import Verdict

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
    """The vector to plan with before anything was measured; `substitute_held` is None for a separate draft."""
    if substitute_held is None:
        return np.asarray(BUILTIN_ACCEPTANCE)
    return np.asarray(SUBSTITUTE_ACCEPTANCE.get(substitute_held, SUBSTITUTE_ACCEPTANCE["int8"]))


@dataclass(frozen=True, slots=True)
class AcceptanceEstimate:
    """Means with standard errors; where nothing was observed the mean is 0 and its error infinite."""

    means: NDArray[np.float64]
    """(R,) by rank, or (D, R) by depth of the parent and rank."""
    standard_errors: NDArray[np.float64]
    """Of the same shape: the standard error of each mean."""
    num_positions: NDArray[np.int64]
    """Of the same shape: the accepted nodes that had a child of this rank."""


class AcceptanceEstimator:
    """Sums over positions; a position is an accepted node with children."""

    def __init__(self, *, num_ranks: int = 32, num_depths: int = 32) -> None:
        self._sums = np.zeros((num_depths, num_ranks))
        self._squares = np.zeros((num_depths, num_ranks))
        self._counts = np.zeros((num_depths, num_ranks), dtype=np.int64)

    def add(self, acceptance: ArrayLike, *, depth: int) -> None:
        """Add one position: the probability, or the fact, that each child of a node at `depth` is the accepted one.

        `acceptance` (b,) is in drawing order; ranks beyond num_ranks are left out, depths beyond num_depths pooled into
        the last. For greedy decoding pass `child_token_ids == target_token_id`.
        """
        by_rank = np.asarray(acceptance, dtype=np.float64)[: self._sums.shape[1]]
        row = min(depth, self._sums.shape[0] - 1)
        self._sums[row, : len(by_rank)] += by_rank
        self._squares[row, : len(by_rank)] += by_rank**2
        self._counts[row, : len(by_rank)] += 1

    def add_verdict(self, verdict: Verdict) -> None:
        """Add every node of a round's path that had children."""
        for depth, (rank, num_children) in enumerate(zip(verdict.accepted_ranks, verdict.num_children, strict=True)):
            if num_children:
                self.add(np.arange(1, num_children + 1) == rank, depth=depth)

    def by_rank(self) -> AcceptanceEstimate:
        """The estimate by rank, (R,), over all depths."""
        return _estimate(self._sums.sum(axis=0), self._squares.sum(axis=0), self._counts.sum(axis=0))

    def by_depth(self) -> AcceptanceEstimate:
        """The estimate by depth of the parent and rank, (D, R)."""
        return _estimate(self._sums, self._squares, self._counts)


def analytic_acceptance(target_probs: Probs, draft_probs: Probs, token_ids: Sequence[int]) -> NDArray[np.float64]:
    """The probability (b,) that each of these children, in drawing order, is the one that `verify` accepts.

    a_1 = min(1, P[x_1] / Q[x_1]), and so on down the residuals, each times the probability that all before were
    rejected. Both distributions (V,) come from `logits_to_probs`.
    """
    acceptance = np.zeros(len(token_ids))
    all_rejected = 1.0
    for index, token in enumerate(token_ids):
        accepted = accept_probability(target_probs, draft_probs, token)
        acceptance[index] = all_rejected * accepted
        all_rejected *= 1 - accepted
        target_probs, draft_probs = residual_step(target_probs, draft_probs, token_ids[: index + 1])
    return acceptance


def _estimate(sums: NDArray[np.float64], squares: NDArray[np.float64], counts: NDArray[np.int64]) -> AcceptanceEstimate:
    means = sums / np.maximum(counts, 1)
    variances = np.maximum(squares / np.maximum(counts, 1) - means**2, 0)
    errors = np.where(counts > 1, np.sqrt(variances / np.maximum(counts - 1, 1)), np.inf)
    return AcceptanceEstimate(means=means, standard_errors=errors, num_positions=counts.copy())
