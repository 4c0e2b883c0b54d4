"""What a pair's profile says about rounds: their costs as tables, and the acceptance to plan a tree from.

The profile holds means as they were measured; here they become numbers to plan with: contexts are interpolated, vectors
made non-increasing, depths with few positions drawn towards all depths together, and tails that no measurement reached
given the shape of a tail that one did. Knows no file; layers' copies come from whoever knows the machine.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from profiles.pair_profile import AcceptanceTable, PairProfile, PassCost
from runtime.round_costs import CostTable, RoundCosts
from runtime.speculation.acceptance import BUILTIN_ACCEPTANCE
from runtime.speculation.tree_search import make_non_increasing

PRIOR_POSITIONS = 40.0
"""Positions that count for the mean of all depths beside a depth's own: empirical Bayes. One position of the first rank
varies by 0.1 around its mean, means of depths by some 0.05 squared around theirs: the ratio of the two."""


def costs_from_profiles(
    pair: PairProfile,
    *,
    copy_seconds: Sequence[float | None],
    num_slots: int,
    read_seconds: Sequence[float | None] = (),
    num_stages: int = 0,
    context_tokens: int,
) -> RoundCosts:
    """Rounds of this pair with `context_tokens` tokens of text, over layers whose copies and reads take so long.

    Copies (L,) hold None for residents. A pass lies on the straight line between the two nearest contexts of the
    profile; shorter and longer ones than it holds take the nearest.
    """
    steps, walks = pair.draft_steps, pair.walk_costs
    return RoundCosts(
        copy_seconds=tuple(copy_seconds),
        pass_seconds=_pass_seconds(pair.pass_costs, context_tokens),
        draft_step_seconds=CostTable(tuple(step.width for step in steps), tuple(step.seconds for step in steps)),
        walk_seconds=CostTable(tuple(walk.num_nodes for walk in walks), tuple(walk.seconds for walk in walks)),
        num_slots=num_slots,
        read_seconds=tuple(read_seconds),
        num_stages=num_stages,
        compute_slowdown=pair.compute_slowdown,
        copy_slowdown=pair.copy_slowdown,
    )


def acceptance_of(pair: PairProfile, temperature: float, *, by_depth: bool = True) -> NDArray[np.float64]:
    """Acceptance by depth of the parent and rank (D, R), or by rank (R,), of `PairProfile.acceptance_near`.

    No row increases with rank or adds up to more than 1, so that either can be searched best-first.
    """
    table = pair.acceptance_near(temperature)
    pooled = _pooled_ranks(table)
    if not by_depth:
        return pooled
    rows = [
        _shrunk_row(np.array(row), pooled, num_positions=positions, by_rank=table.num_positions)
        for row, positions in zip(table.by_depth, table.by_depth_positions, strict=True)
    ]
    return np.array(rows or [pooled])


def _pass_seconds(costs: Sequence[PassCost], context_tokens: int) -> CostTable:
    contexts = sorted({cost.context_tokens for cost in costs})
    tables = []
    for context in contexts:
        of_context = [cost for cost in costs if cost.context_tokens == context]
        tables.append(
            CostTable(tuple(cost.num_tokens for cost in of_context), tuple(cost.seconds for cost in of_context))
        )
    place = float(np.interp(context_tokens, contexts, np.arange(len(contexts))))
    lower, upper = tables[int(place)], tables[min(int(place) + 1, len(tables) - 1)]
    share = place - int(place)
    sizes = np.union1d(lower.sizes, upper.sizes)
    seconds = (1 - share) * lower(sizes) + share * upper(sizes)
    return CostTable(tuple(sizes.tolist()), tuple(seconds.tolist()))


def _pooled_ranks(table: AcceptanceTable) -> NDArray[np.float64]:
    """By rank over all depths, at least as long as the builtin vector.

    Behind the last rank that was ever accepted follows the builtin tail, scaled to meet it. Ranks that were looked at
    and never accepted speak against so much: the tail counts for PRIOR_POSITIONS positions beside theirs.
    """
    counts = np.array(table.num_positions)
    is_known = counts > 0
    values = make_non_increasing(np.array(table.by_rank)[is_known], weights=counts[is_known])
    builtin = np.asarray(BUILTIN_ACCEPTANCE)
    num_ranks, num_accepted = max(len(counts), len(builtin)), int((values > 0).sum())
    ranks = np.zeros(num_ranks)
    ranks[:num_accepted] = values[:num_accepted]
    if not 0 < num_accepted < len(builtin):
        return _cut_to_one(ranks)
    in_vain = counts[is_known][num_accepted:]
    share = PRIOR_POSITIONS / (PRIOR_POSITIONS + (int(in_vain.min()) if len(in_vain) else 0))
    tail = builtin[num_accepted:] * share * ranks[num_accepted - 1] / builtin[num_accepted - 1]
    room = max(0.0, 1 - float(ranks.sum()))
    ranks[num_accepted : len(builtin)] = tail * min(1.0, room / float(tail.sum()))
    return _cut_to_one(ranks)


def _shrunk_row(
    row: NDArray[np.float64], pooled: NDArray[np.float64], *, num_positions: int, by_rank: Sequence[int]
) -> NDArray[np.float64]:
    """(R,) one depth's means drawn towards those of all depths; of its positions as many reach a rank as elsewhere.

    Ranks that none reached share what the others leave here as they do over all depths.
    """
    weights = np.zeros(len(pooled))
    weights[: len(row)] = num_positions * np.array(by_rank) / max(by_rank[0], 1)
    means = np.zeros(len(pooled))
    means[: len(row)] = row
    shrunk = (weights * means + PRIOR_POSITIONS * pooled) / (weights + PRIOR_POSITIONS)
    is_reached = weights > 0
    left, left_pooled = 1 - float(shrunk[is_reached].sum()), 1 - float(pooled[is_reached].sum())
    if left_pooled > 0:
        shrunk[~is_reached] *= max(0.0, left) / left_pooled
    return _cut_to_one(make_non_increasing(shrunk, weights=weights + PRIOR_POSITIONS))


def _cut_to_one(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """One child at most is accepted: what is too much is cut off at the end. Rounding may not make it increase."""
    room = np.maximum(1 - np.cumsum(ranks) + ranks, 0.0)
    return np.asarray(np.minimum.accumulate(np.minimum(ranks, room)), dtype=np.float64)
