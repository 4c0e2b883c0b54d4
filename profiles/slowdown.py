"""How much copies and computation slow each other where they share cores and memory, as on a processor with its disk.

With T the copies of a pass alone and K its computation alone, a pass that streams takes the longer of
T + copy_slowdown * K and K + compute_slowdown * T. The first is seen on a small pass, which waits for bytes; the second
on a large one, which waits for products. T, K and the pass stand side by side in time: a disk is never twice the same.
Knows no clock of its own.
"""

import statistics
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from profiles.cost_fit import CostLaw

LINK_BOUND = 0.6
"""K of the small pass is at most this share of T: at 1 both bounds would be seen at once."""
COMPUTE_BOUND = 1.3
"""K of the large pass is at least this many times T."""


class OverlapProbes(Protocol):
    """The part of the calibration's probes that is needed here."""

    def time_copies(self) -> float:
        """See CalibrationProbes."""

    def time_pass(self, num_tokens: int, context_tokens: int) -> float:
        """See CalibrationProbes."""

    def time_streamed_pass(self, num_tokens: int, context_tokens: int) -> tuple[float, float]:
        """See CalibrationProbes."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """What was found; None where no pass of the session is of the kind that shows it, or no time was left."""

    copy_seconds: float
    """T: all copies of a pass alone, median."""
    copy_slowdown: float | None
    """Seconds of copying that each second of computing costs."""
    compute_slowdown: float | None
    """Seconds of computation that each second of copying costs."""
    link_bound_tokens: int | None
    """Tokens of the small pass."""
    compute_bound_tokens: int | None
    """Tokens of the large one."""


@dataclass(frozen=True, slots=True)
class OverlapLimits:
    """What passes there may be, and how long it may take."""

    max_tokens: int
    """Of the largest pass."""
    context_tokens: int
    """Behind which all passes are."""
    num_looks: int
    """How often everything is measured, at most."""
    has_time: Callable[[float], bool]
    """Whether so many seconds are left."""


def measure_overlap(probes: OverlapProbes, law: CostLaw, limits: OverlapLimits) -> Generator[str, None, Overlap]:
    """Say what is measured next, and return what was found; `law` says how long passes compute.

    A look is T, then K and the pass for the small size, then for the large one; T is the mean of the one before and the
    one after, unless there is one look only. The slowdowns are medians over the looks, never negative:

        copy_slowdown = (seconds until the ring is full again - T) / K      of the small pass,
        compute_slowdown = (seconds until it is computed - K) / T           of the large one.

    A size that would not end in time is left out, and so is what it shows.
    """
    yield "copies alone"
    copies = [probes.time_copies()]
    sizes = _sizes(law, copies[0], limits)
    looks: list[dict[int, tuple[float, float, float]]] = []  # by size: K, computed, full again
    for _ in range(limits.num_looks):
        look: dict[int, tuple[float, float, float]] = {}
        for size in sizes:
            if size is not None and limits.has_time(law(size, limits.context_tokens) * 2 + copies[-1]):
                yield f"a streamed pass of {size} tokens"
                alone = probes.time_pass(size, limits.context_tokens)
                look[size] = (alone, *probes.time_streamed_pass(size, limits.context_tokens))
        if not look:
            break
        looks.append(look)
        if limits.num_looks > 1 and limits.has_time(copies[-1]):
            yield "copies alone"
            copies.append(probes.time_copies())
    small, large = sizes
    around = [statistics.mean(copies[i : i + 2]) for i in range(len(looks))]
    found = [[(look[size], T) for look, T in zip(looks, around, strict=True) if size in look] for size in sizes]
    return Overlap(
        copy_seconds=statistics.median(copies),
        copy_slowdown=_slowdown([(full - T) / alone for (alone, _, full), T in found[0]]),
        compute_slowdown=_slowdown([(computed - alone) / T for (alone, computed, _), T in found[1]]),
        link_bound_tokens=small if found[0] else None,
        compute_bound_tokens=large if found[1] else None,
    )


def _sizes(law: CostLaw, copy_seconds: float, limits: OverlapLimits) -> tuple[int | None, int | None]:
    """The largest size that waits for bytes and the smallest that waits for products; None if there is none."""
    seconds = {size: law(size, limits.context_tokens) for size in range(1, limits.max_tokens + 1)}
    small = [size for size, taken in seconds.items() if taken <= LINK_BOUND * copy_seconds]
    large = [size for size, taken in seconds.items() if taken >= COMPUTE_BOUND * copy_seconds]
    return max(small, default=None), min(large, default=None)


def _slowdown(values: list[float]) -> float | None:
    return max(0.0, statistics.median(values)) if values else None
