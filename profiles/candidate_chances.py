"""How likely each candidate is the token that the target emits, from the scores by which the draft ranks them.

The token is the largest of the target's scores: its logits, or with noise shared by draft and target (coupled
verification) logits + temperature * noise. The draft knows the same sum but for its own logits. Take the difference of
the two models' logits as noise of one scale, the spread: then candidate k is the target's with probability

    exp(-gap[k] / spread) / (sum over j of exp(-gap[j] / spread) + NONE_WEIGHT),    gap[k] = score[1] - score[k]

at every temperature. Qwen2.5-Coder 1.5B/0.5B, 3,002 positions of 48 texts: the likeliest spread is 0.8 at temperatures
0, 0.6 and 1.0 alike, and from 0.001 to 0.99 what was predicted so often is what was seen. Pure NumPy.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

SEPARATE_DRAFT_SPREAD = 0.8
"""Logits; of the pair above, before anything was measured with this one."""
SUBSTITUTE_SPREAD = 0.2
"""The same for the target's own layers in 8 or 4 bits."""
NONE_WEIGHT = 0.01
"""How likely none of the candidates is the token, beside the best one; with 32 of them it was none in 0.6 %."""
LEAST_SPREAD, LARGEST_SPREAD = 0.01, 10.0
"""Where a fit stops: a draft that is the target itself agrees always, and an unrelated one never."""


def log_chances(scores: ArrayLike, *, spread: float) -> NDArray[np.float64]:
    """(..., B) the logarithm of each candidate's chance, from scores (..., B) in logits, the best one first.

    -inf is no candidate. Raises ValueError if the spread is not positive.
    """
    if not spread > 0:
        raise ValueError(f"the spread must be more than 0 logits, found {spread}")
    given = np.asarray(scores, dtype=np.float64)
    utilities = (given - given[..., :1]) / spread
    return np.asarray(utilities - np.log(np.exp(utilities).sum(axis=-1, keepdims=True) + NONE_WEIGHT))


def fit_spread(scores: ArrayLike, chosen: ArrayLike) -> float:
    """The spread that makes what was seen likeliest.

    `scores` (P, B) as for `log_chances`, `chosen` (P,) the index of the candidate that the target emitted; positions
    where it was none, marked by -1, tell nothing. In 1 / spread the log-likelihood is concave, so its slope has one
    zero: bisection. Raises ValueError without a position that tells something.
    """
    index = np.asarray(chosen, dtype=np.int64)
    given = np.asarray(scores, dtype=np.float64)[index >= 0]
    if not len(given):
        raise ValueError("a spread cannot be fitted without a position at which a candidate was emitted")
    gaps = given[:, :1] - given  # (P, B)
    is_finite = np.isfinite(gaps)
    gaps = np.where(is_finite, gaps, 0.0)
    seen = gaps[np.arange(len(gaps)), index[index >= 0]].mean()
    low, high = 1 / LARGEST_SPREAD, 1 / LEAST_SPREAD
    for _ in range(50):
        middle = (low + high) / 2
        weights = np.exp(-gaps * middle) * is_finite
        expected = (weights * gaps).sum(axis=1) / (weights.sum(axis=1) + NONE_WEIGHT)
        low, high = (middle, high) if expected.mean() > seen else (low, middle)
    return float(2 / (low + high))
