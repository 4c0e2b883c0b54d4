"""Pearson's goodness-of-fit test, so that statistical tests can state a p-value without another dependency."""

import math

import numpy as np
from numpy.typing import ArrayLike


def chi_square_p_value(observed: ArrayLike, expected: ArrayLike) -> float:
    """The probability of counts at least this far from `expected` ones; cells expecting under 5 are pooled."""
    seen, due = np.asarray(observed, dtype=float), np.asarray(expected, dtype=float)
    assert not seen[due == 0].any(), "something impossible was observed"
    rare = due < 5
    if due[rare].sum() > 0:
        seen = np.append(seen[~rare], seen[rare].sum())
        due = np.append(due[~rare], due[rare].sum())
    else:
        seen, due = seen[~rare], due[~rare]
    statistic = float(((seen - due) ** 2 / due).sum())
    return upper_gamma((len(due) - 1) / 2, statistic / 2)


def upper_gamma(shape: float, x: float) -> float:
    """Regularised upper incomplete gamma function for whole and half shapes, by its recurrence in the shape."""
    if shape == 0 or x == 0:
        return 1.0
    value, current = (math.exp(-x), 1.0) if shape == int(shape) else (math.erfc(math.sqrt(x)), 0.5)
    while current < shape:
        value += math.exp(current * math.log(x) - x - math.lgamma(current + 1))
        current += 1
    return min(value, 1.0)
