"""Fits what passes cost: a law from a few measured sizes, and how copies and computation slow each other.

The law is seconds = base + a * n + b * n * (context + n): what a pass costs whatever it computes (weights that are
widened once), its products, and attention of every token to every key, the pass's own included. Where copies and
computation share cores and memory, with T the copies of a pass alone and K its computation alone, a pass that streams
takes the longer of T + copy_slowdown * K and K + compute_slowdown * T.
"""

import math
import statistics
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from profiles.calibration_probes import CalibrationProbes
from profiles.machine_profile import TransferSample
from profiles.pair_profile import PassCost, StepCost

LINK_BOUND = 0.6
"""K of the small pass is at most this share of T: at 1 both bounds would be seen at once."""
COMPUTE_BOUND = 1.3
"""K of the large pass is at least this many times T."""
LEAST_SECONDS = 1e-9
"""Stands for no time at all, which a coarse clock may show."""


@dataclass(frozen=True, slots=True)
class CostLaw:
    """seconds = base + a * n + b * n * (context + n), no coefficient negative."""

    base_seconds: float
    token_seconds: float
    """a"""
    attention_seconds: float
    """b, of each token and key."""

    def __call__(self, num_tokens: int, context_tokens: int = 0) -> float:
        keys = context_tokens + num_tokens
        return self.base_seconds + num_tokens * (self.token_seconds + self.attention_seconds * keys)


def fit_costs(samples: Sequence[PassCost]) -> CostLaw:
    """Return the law with the least squared relative errors over the samples, at least one.

    Relative, so that the smallest pass counts as much as the largest. b is 0 unless two contexts were measured: from
    sizes alone it would take every bend of a kernel for attention. Among all sets of terms that leave no coefficient
    negative the best wins, which is what non-negative least squares finds.
    """
    sizes = np.array([sample.num_tokens for sample in samples], dtype=np.float64)
    contexts = np.array([sample.context_tokens for sample in samples], dtype=np.float64)
    seconds = np.maximum([sample.seconds for sample in samples], LEAST_SECONDS)
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


def fill_passes(samples: Sequence[PassCost], *, sizes: Iterable[int], contexts: Iterable[int]) -> list[PassCost]:
    """Return the cost of every size of the grid and every sample, by ascending context, then tokens.

    What was not measured is the law's value times measured / law at the nearest sample (nearest in log n and log
    context), so that a bend of the law's error does not become a step where the measured sizes end.
    """
    law = fit_costs(samples)
    costs = {(sample.context_tokens, sample.num_tokens): sample for sample in samples}
    for context, size in {(context, size) for context in contexts for size in sizes} - set(costs):
        seconds = law(size, context) * _correction(law, samples, size, context)
        costs[context, size] = PassCost(size, context, max(seconds, LEAST_SECONDS), is_fitted=True)
    return [cost for _, cost in sorted(costs.items())]


def fill_steps(samples: Sequence[PassCost], *, widths: Iterable[int]) -> list[StepCost]:
    """Do the same for draft steps, all measured behind one context; by ascending width."""
    context = samples[0].context_tokens
    costs = fill_passes(samples, sizes=widths, contexts=[context])
    return [StepCost(cost.num_tokens, cost.seconds, cost.is_fitted) for cost in costs]


def _correction(law: CostLaw, samples: Sequence[PassCost], size: int, context: int) -> float:
    """Return measured / law at the sample that is nearest to this size."""
    nearest = min(
        samples,
        key=lambda sample: (
            abs(math.log(sample.num_tokens / size)) + abs(math.log((sample.context_tokens + 1) / (context + 1)))
        ),
    )
    expected = law(nearest.num_tokens, nearest.context_tokens)
    return nearest.seconds / expected if expected > 0 else 1.0


def rate_and_latency(samples: Sequence[TransferSample]) -> tuple[float, float] | tuple[None, None]:
    """Return (bytes per second, latency in seconds) of transfers, or Nones where there is none.

    The two largest give the rate by their difference, where both grew; the latency is what the smallest takes beyond
    its bytes, never negative. Small transfers would say little about the rate: caches and single threads serve them.
    """
    if not samples:
        return None, None
    ordered = sorted(samples, key=lambda sample: sample.num_bytes)
    smallest, largest = ordered[0], ordered[-1]
    rate = largest.num_bytes / max(largest.seconds, LEAST_SECONDS)
    if len(ordered) > 1:
        num_bytes, seconds = largest.num_bytes - ordered[-2].num_bytes, largest.seconds - ordered[-2].seconds
        if min(num_bytes, seconds) > 0:
            # No faster than twice the plain ratio: two samples taken at different moments may differ by chance.
            rate = min(num_bytes / seconds, 2 * rate)
    return rate, max(0.0, smallest.seconds - smallest.num_bytes / rate)


_Look = tuple[int, float, float, float]
"""Its number, and the seconds of a pass: K, until it is computed, and until the ring is full again."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How passes that stream and compute at once slow each other.

    None where no pass of the session is of the kind that shows it, or no time was left.
    """

    copy_seconds: float | None = None
    """T: all copies of a pass alone, median; None where nothing streams."""
    copy_slowdown: float | None = None
    compute_slowdown: float | None = None


def measure_overlap(
    probes: CalibrationProbes,
    law: CostLaw,
    *,
    max_tokens: int,
    context_tokens: int,
    num_looks: int,
    has_time: Callable[[float], bool],
) -> Generator[str, None, Overlap]:
    """Say what is measured next, and return what was found with passes of up to `max_tokens` behind a context.

    `law` says how long passes compute, and `has_time` whether so many seconds are left.

    A look is T, then K and the pass for the small size, which waits for bytes, then for the large one, which waits for
    products: side by side in time, since a disk is never twice the same. T is the mean of the one before and the one
    after, unless there is one look only. The slowdowns are medians over the looks, never negative:

        copy_slowdown = (seconds until the ring is full again - T) / K      of the small pass,
        compute_slowdown = (seconds until it is computed - K) / T           of the large one.

    A size that would not end in time is left out, and so is what it shows.
    """
    yield "copies alone"
    copies = [probes.time_copies()]
    sizes = _bound_sizes(law, copies[0], max_tokens, context_tokens)
    small, large = list[_Look](), list[_Look]()
    for look in range(num_looks):
        for size, passes in zip(sizes, (small, large), strict=True):
            if size is not None and has_time(law(size, context_tokens) * 2 + copies[-1]):
                yield f"a streamed pass of {size} tokens"
                alone = probes.time_pass(size, context_tokens)
                passes.append((look, alone, *probes.time_streamed_pass(size, context_tokens)))
        if not small and not large:
            break
        if num_looks > 1 and has_time(copies[-1]):
            yield "copies alone"
            copies.append(probes.time_copies())
    around = [statistics.mean(copies[look : look + 2] or copies[-1:]) for look in range(num_looks)]  # T of each look
    return Overlap(
        copy_seconds=statistics.median(copies),
        copy_slowdown=_slowdown([(full - around[look]) / alone for look, alone, _, full in small]),
        compute_slowdown=_slowdown([(computed - alone) / around[look] for look, alone, computed, _ in large]),
    )


def _bound_sizes(
    law: CostLaw, copy_seconds: float, max_tokens: int, context_tokens: int
) -> tuple[int | None, int | None]:
    """Return the largest size that waits for bytes and the smallest that waits for products, None if there is none."""
    sizes = range(1, max_tokens + 1)
    small = [size for size in sizes if law(size, context_tokens) <= LINK_BOUND * copy_seconds]
    large = [size for size in sizes if law(size, context_tokens) >= COMPUTE_BOUND * copy_seconds]
    return max(small, default=None), min(large, default=None)


def _slowdown(values: list[float]) -> float | None:
    return max(0.0, statistics.median(values)) if values else None
