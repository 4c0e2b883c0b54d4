"""From a few measured costs to a whole grid: a law fitted to what was measured, for everything that was not.

seconds = base + a * n + b * n * (context + n): what a pass costs whatever it computes (weights that are widened once),
its products, and attention of every token to every key, the pass's own included. Pure arithmetic; knows no clock.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from profiles.pair_profile import PassCost, StepCost

_LEAST_SECONDS = 1e-9


@dataclass(frozen=True, slots=True)
class CostSample:
    """One measured size."""

    num_tokens: int
    """n: tokens of the pass, or width of the draft step."""
    context_tokens: int
    """Tokens that they attend to, before them."""
    seconds: float
    """Median of its runs."""


@dataclass(frozen=True, slots=True)
class CostLaw:
    """seconds = base + a * n + b * n * (context + n), none of the three negative."""

    base_seconds: float
    """Of any pass."""
    token_seconds: float
    """a, of each token."""
    attention_seconds: float
    """b, of each token and key."""

    def __call__(self, num_tokens: int, context_tokens: int = 0) -> float:
        """Seconds of a pass of n tokens behind a context."""
        keys = context_tokens + num_tokens
        return self.base_seconds + num_tokens * (self.token_seconds + self.attention_seconds * keys)


def fit_costs(samples: Sequence[CostSample]) -> CostLaw:
    """The law with the least squared relative errors over the samples, at least one.

    Relative, so that the smallest pass counts as much as the largest. b is 0 unless two contexts were measured: from
    sizes alone it would take every bend of a kernel for attention. Among all sets of terms that leave no coefficient
    negative the best wins, which is what non-negative least squares finds.
    """
    sizes = np.array([sample.num_tokens for sample in samples], dtype=np.float64)
    contexts = np.array([sample.context_tokens for sample in samples], dtype=np.float64)
    seconds = np.maximum([sample.seconds for sample in samples], _LEAST_SECONDS)
    columns = [np.ones_like(sizes), sizes, sizes * (contexts + sizes)]
    terms = columns[: 3 if len(set(contexts)) > 1 else 2] if len(set(sizes)) > 1 else columns[:1]
    design = np.stack(terms, axis=1) / seconds[:, None]  # (S, terms)
    best, least = np.zeros(3), math.inf
    for num_terms in range(1, len(terms) + 1):
        for chosen in combinations(range(len(terms)), num_terms):
            values = np.zeros(3)
            values[list(chosen)] = np.linalg.lstsq(design[:, chosen], np.ones(len(sizes)), rcond=None)[0]
            error = float(((design @ values[: len(terms)] - 1) ** 2).sum())
            if (values >= 0).all() and error < least:
                best, least = values, error
    return CostLaw(*(float(value) for value in best))


def fill_passes(samples: Sequence[CostSample], *, sizes: Iterable[int], contexts: Iterable[int]) -> list[PassCost]:
    """Every size of the grid and every sample, by ascending context, then tokens.

    What was not measured is the law's value times measured / law at the nearest sample (nearest in log n and log
    context), so that a bend of the law's error does not become a step where the measured sizes end.
    """
    law = fit_costs(samples)
    measured = {(sample.context_tokens, sample.num_tokens): sample.seconds for sample in samples}
    wanted = {(context, size) for context in contexts for size in sizes} | set(measured)
    costs = []
    for context, size in sorted(wanted):
        is_fitted = (context, size) not in measured
        seconds = law(size, context) * _correction(law, samples, size, context)
        if not is_fitted:
            seconds = measured[context, size]
        costs.append(PassCost(size, context, max(seconds, _LEAST_SECONDS), is_fitted))
    return costs


def fill_steps(samples: Sequence[CostSample], *, widths: Iterable[int]) -> list[StepCost]:
    """The same for draft steps, all measured behind one context; by ascending width."""
    context = samples[0].context_tokens
    costs = fill_passes(samples, sizes=widths, contexts=[context])
    return [StepCost(cost.num_tokens, cost.seconds, cost.is_fitted) for cost in costs]


def _correction(law: CostLaw, samples: Sequence[CostSample], size: int, context: int) -> float:
    """Measured over law at the sample that is nearest to this size."""

    def distance(sample: CostSample) -> float:
        of_size = abs(math.log(sample.num_tokens / size))
        return of_size + abs(math.log((sample.context_tokens + 1) / (context + 1)))

    nearest = min(samples, key=distance)
    expected = law(nearest.num_tokens, nearest.context_tokens)
    return nearest.seconds / expected if expected > 0 else 1.0


def rate_and_latency(samples: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(bytes per second, latency in seconds) of transfers (bytes, seconds), at least one.

    The two largest give the rate by their difference, where both grew; the latency is what the smallest takes beyond
    its bytes, never negative. Small transfers would say little about the rate: caches and single threads serve them.
    """
    ordered = sorted(samples)
    num_bytes, seconds = ordered[-1]
    rate = num_bytes / max(seconds, _LEAST_SECONDS)
    if len(ordered) > 1:
        fewer_bytes, shorter = ordered[-2]
        if seconds > shorter and fewer_bytes < num_bytes:
            # No faster than twice the plain ratio: two samples taken at different moments may differ by chance.
            rate = min((num_bytes - fewer_bytes) / (seconds - shorter), 2 * rate)
    latency = max(0.0, ordered[0][1] - ordered[0][0] / rate)
    return rate, latency
