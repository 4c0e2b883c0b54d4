"""How long a round takes, from when each layer of a streamed pass is copied and computed.

Pure arithmetic, and the planner's cost model; the tests simulate the same recurrence and hold the layer streamer to it.
With tau_i seconds to copy layer i over the link and kappa_i to compute it, for a ring of R slots, with streamed layers
counted on their own,

    copied[i]   = max(copied[i-1], computed[i-R]) + tau_i          resident layers need no copy: copied[i] = 0
    computed[i] = max(computed[i-1], copied[i]) + kappa_i

over several passes: copies pause for nothing but a free slot, also across the end of a pass, and between the last
layer of a pass and the first of the next lies the time of drafting, lm_head and verification. Where some layers come
from disk through S host stages, counted on their own again, with reads of delta_i seconds that run ahead of the ring,

    read[i]     = max(read[i-1], copied[i-S]) + delta_i        and copied[i] also waits for read[i].

A layer that passes through smaller stages in k pieces is k such reads and copies, of delta_i / k and tau_i / k: the
first copy waits for the slot, and the computation for the last.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class RoundPeriods:
    """Seconds of rounds, C candidates, as a function of the time between passes: max(fixed, through + gap).

    So what a search over drafts asks again and again, the same pass after another gap, costs one maximum.
    """

    fixed_seconds: NDArray[np.float64]
    """(C,) the largest mean of a circuit that the gap is no part of: the link alone, or the disk."""
    through_seconds: NDArray[np.float64]
    """(C,) the most that one pass takes from the end of the gap to the end of the last layer."""

    def __call__(self, between_passes_seconds: ArrayLike) -> NDArray[np.float64]:
        """Return seconds (..., C) of rounds with these gaps (..., C)."""
        gaps = np.asarray(between_passes_seconds, dtype=np.float64)
        return np.asarray(np.maximum(gaps + self.through_seconds, self.fixed_seconds), dtype=np.float64)


def round_periods(
    compute_seconds: ArrayLike,
    copy_seconds: Sequence[float | NDArray[np.float64] | None],
    *,
    num_slots: int,
    read_seconds: Sequence[float | None] = (),
    num_stages: int = 0,
    num_pieces: Sequence[int] = (),
) -> RoundPeriods:
    """Return the steady-state rounds of C candidates with the time between passes left open.

    compute_seconds (C, L) are kappa. A layer's copy_seconds tau are one number for all candidates or an array (C,),
    None for a resident layer; its read_seconds delta are None where it needs no disk, and () stands for no disk at all.
    num_pieces (L,) are k where there is a disk, () for whole layers.

    One pass only adds and takes maxima, so it is a matrix of the (max, +) algebra over the times that it starts from:
    link and disk free, the last computation done, each of the R slots freed and S stages emptied. Its eigenvalue, the
    largest mean weight of a circuit, is the period: no simulation of many passes, no transient. Circuits beside the gap
    follow from Karp's theorem, D^3 additions for D start times. Of those through it only the circuit of one pass
    counts. One of k passes goes down from the computation to the copies, and up again in a later pass: laid over one
    another, the two ways meet or pass each other, and there their ends can be exchanged for no less, which leaves one
    pass through the gap and k - 1 beside it. 4,096 candidates of 80 layers take 25 ms. Raises ValueError for lengths or
    buffers that do not fit.
    """
    kappas = np.atleast_2d(np.asarray(compute_seconds, dtype=np.float64))  # (C, L)
    if kappas.shape[1] != len(copy_seconds):
        raise ValueError(f"{len(copy_seconds)} copy times but {kappas.shape[1]} compute times")
    if all(seconds is None for seconds in copy_seconds):
        return RoundPeriods(np.full(len(kappas), -np.inf), kappas.sum(axis=1))
    reads = tuple(read_seconds) or (None,) * len(copy_seconds)
    if len(reads) != len(copy_seconds):
        raise ValueError(f"{len(reads)} read times but {len(copy_seconds)} copy times")
    pieces = tuple(num_pieces) or (1,) * len(copy_seconds)
    if len(pieces) != len(copy_seconds):
        raise ValueError(f"{len(pieces)} numbers of pieces but {len(copy_seconds)} copy times")
    if num_slots < 1:
        raise ValueError(f"a ring of {num_slots} slots cannot stream")
    if all(seconds is None for seconds in reads):
        num_stages = 0
    elif num_stages < 1:
        raise ValueError(f"layers from disk cannot pass through {num_stages} stages")
    weights = _pass_weights(kappas, copy_seconds, list(zip(reads, pieces, strict=True)), (num_slots, num_stages))
    # (D, D, C)
    beside = np.delete(np.delete(weights, 1, axis=0), 1, axis=1)  # index 1 is the end of the computation
    return RoundPeriods(_largest_mean(beside), weights[1, 1])


def _largest_mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest mean of a circuit (C,) in (D, D, C) weights, -inf if none: Karp's theorem, from any start."""
    num_times = len(weights)
    walks = [np.zeros(weights.shape[1:])]  # [k] (D, C) the heaviest walk of k steps that ends at each time
    for _ in range(num_times):
        walks.append((weights + walks[-1]).max(axis=1))
    with np.errstate(invalid="ignore"):  # -inf less -inf: no walk ends there at all
        means = [(walks[-1] - walk) / (num_times - length) for length, walk in enumerate(walks[:-1])]
    return np.asarray(np.fmin.reduce(means).max(axis=0), dtype=np.float64)


def _pass_weights(
    kappas: NDArray[np.float64],
    copy_seconds: Sequence[float | NDArray[np.float64] | None],
    reads: Sequence[tuple[float | None, int]],
    num_buffers: tuple[int, int],
) -> NDArray[np.float64]:
    """Return the longest paths through one pass, (D, D, C): [i, j, c] from start time j to end time i, -inf if none.

    D = 2 + R + S, and one more for the disk if it is used: (R, S) are the slots and stages in `num_buffers`. `reads`:
    each layer's seconds on the disk, and its pieces.
    """
    num_slots, num_stages = num_buffers
    num_times = 2 + num_slots + num_stages + (num_stages > 0)
    start = np.full((num_times, num_times, len(kappas)), -np.inf)  # (D, D, C)
    start[np.arange(num_times), np.arange(num_times)] = 0.0
    link_free, computed = start[0], start[1]  # (D, C) each
    freed = deque(start[2 : 2 + num_slots], maxlen=num_slots)
    emptied = deque(start[2 + num_slots : 2 + num_slots + num_stages], maxlen=num_stages)
    disk_free = start[-1]
    for seconds, (disk_seconds, num_pieces), kappa in zip(copy_seconds, reads, kappas.T, strict=True):
        if seconds is None:
            computed = computed + kappa
            continue
        link_free = np.maximum(link_free, freed[0])
        if disk_seconds is None:
            link_free = link_free + seconds
        else:
            read_seconds, send_seconds = disk_seconds / num_pieces, seconds / num_pieces
            for _ in range(num_pieces):
                disk_free = np.maximum(disk_free, emptied[0]) + read_seconds
                link_free = np.maximum(link_free, disk_free) + send_seconds
                emptied.append(link_free)
        computed = np.maximum(computed, link_free) + kappa
        freed.append(computed)
    return np.stack([link_free, computed, *freed, *emptied] + ([disk_free] if num_stages else []))
