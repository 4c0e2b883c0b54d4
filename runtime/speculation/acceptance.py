"""How likely the child of each rank is the accepted one: what to plan with before rounds, and what rounds teach.

A profile holds means as they were measured. To plan with, they are made non-increasing, depths with few positions are
drawn towards the depth above, and tails that no measurement reached get the shape of one that was. Sequoia (arXiv
2402.12374, section 4.1, positional acceptance).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.builtin_profiles import unmeasured_pair
from profiles.pair_profile import AcceptanceTable, PairProfile
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
TAIL_POSITIONS = 40.0
"""Positions that the builtin tail counts for beside those in which far ranks were never accepted."""
DEPTH_POSITIONS = 20.0
"""Positions that the depth above counts for beside a depth's own: empirical Bayes along the depths, which differ by
little from one to the next. From 10 to 40 hardly a prediction changes; drawn towards all depths, deep ones stay low."""


def builtin_acceptance(*, substitute_held: str | None) -> NDArray[np.float64]:
    """Return the vector to plan with before anything was measured; `substitute_held` is None for a separate draft.

    A target that is quantized in its files is its own draft but for rounding, like int8.
    """
    known = unmeasured_pair()
    if substitute_held is None:
        return np.asarray(known.separate_draft.by_rank)
    return np.asarray(known.substitutes.get(substitute_held, known.substitutes["int8"]).by_rank)


def acceptance_of(pair: PairProfile, temperature: float, *, by_depth: bool = True) -> NDArray[np.float64]:
    """Return acceptance by depth of the parent and rank (D, R), or by rank (R,), near a temperature.

    No row increases with rank or adds up to more than 1, so that either can be searched best-first.
    """
    table = pair.acceptance_near(temperature)
    pooled = _pooled_ranks(table)
    if not by_depth:
        return pooled
    rows, above = list[NDArray[np.float64]](), pooled
    for row, positions in zip(table.by_depth, table.by_depth_positions, strict=True):
        above = _shrunk_row(np.array(row), above, num_positions=positions, by_rank=table.num_positions)
        rows.append(above)
    return np.array(rows or [pooled])


def acceptance_range(pair: PairProfile, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return `acceptance_of` (D, R) at one standard error less and one more; None where there is no error.

    Texts differ in how often the draft is right, at all depths together: the first rank moves by its standard error s
    over all depths, and in every row what the first rank misses grows or shrinks by the same factor, (1 - p +- s) /
    (1 - p), with the later ranks' shares of it as they are. Drawing texts of 32 tokens with replacement from 24 of a
    pair of real models, trees of 16 to 512 nodes were mispredicted by 12 to 15 % with 24 texts and 8 to 11 % with 48
    (root mean square), where this says 10 to 12 and 7 to 8 %; shorter texts add a bias that no text shows.
    """
    table = pair.acceptance_near(temperature)
    error, missed = table.by_rank_errors[0], 1 - table.by_rank[0]
    if error is None or missed <= 0:
        return None
    rows = acceptance_of(pair, temperature)
    low, high = (_with_misses(rows, max(0.0, missed + sign * error) / missed) for sign in (1, -1))
    return low, high


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


def _with_misses(rows: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """(D, R) rows whose first rank misses `factor` times as often, 1 in all at most."""
    factors = np.minimum(factor, 1 / np.maximum(1 - rows[:, :1], 1e-9))
    changed = rows * factors
    changed[:, :1] = 1 - (1 - rows[:, :1]) * factors
    return np.array([_cut_to_one(make_non_increasing(row)) for row in changed])


def _pooled_ranks(table: AcceptanceTable) -> NDArray[np.float64]:
    """By rank over all depths, at least as long as the builtin vector.

    Behind the last rank that was ever accepted follows the builtin tail, scaled to meet it. Ranks that were looked at
    and never accepted speak against so much: the tail counts for TAIL_POSITIONS positions beside theirs.
    """
    counts = np.array(table.num_positions)
    is_known = counts > 0
    values = make_non_increasing(np.array(table.by_rank)[is_known], weights=counts[is_known])
    builtin = builtin_acceptance(substitute_held=None)
    num_ranks, num_accepted = max(len(counts), len(builtin)), int((values > 0).sum())
    ranks = np.zeros(num_ranks)
    ranks[:num_accepted] = values[:num_accepted]
    if not 0 < num_accepted < len(builtin):
        return _cut_to_one(ranks)
    in_vain = counts[is_known][num_accepted:]
    share = TAIL_POSITIONS / (TAIL_POSITIONS + (int(in_vain.min()) if len(in_vain) else 0))
    tail = builtin[num_accepted:] * share * ranks[num_accepted - 1] / builtin[num_accepted - 1]
    room = max(0.0, 1 - float(ranks.sum()))
    ranks[num_accepted : len(builtin)] = tail * min(1.0, room / float(tail.sum()))
    return _cut_to_one(ranks)


def _shrunk_row(
    row: NDArray[np.float64], above: NDArray[np.float64], *, num_positions: int, by_rank: Sequence[int]
) -> NDArray[np.float64]:
    """(R,) one depth's means drawn towards the depth above; of its positions as many reach a rank as elsewhere.

    Ranks that none reached share what the others leave here as they do above.
    """
    weights = np.zeros(len(above))
    weights[: len(row)] = num_positions * np.array(by_rank) / max(by_rank[0], 1)
    means = np.zeros(len(above))
    means[: len(row)] = row
    shrunk = (weights * means + DEPTH_POSITIONS * above) / (weights + DEPTH_POSITIONS)
    is_reached = weights > 0
    left, left_above = 1 - float(shrunk[is_reached].sum()), 1 - float(above[is_reached].sum())
    if left_above > 0:
        shrunk[~is_reached] *= max(0.0, left) / left_above
    return _cut_to_one(make_non_increasing(shrunk, weights=weights + DEPTH_POSITIONS))


def _cut_to_one(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """One child at most is accepted: what is too much is cut off at the end. Rounding may not make it increase."""
    room = np.maximum(1 - np.cumsum(ranks) + ranks, 0.0)
    return np.asarray(np.minimum.accumulate(np.minimum(ranks, room)), dtype=np.float64)
