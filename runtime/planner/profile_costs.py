"""What a pair's profile says about rounds: their costs as tables, and the acceptance to plan a tree from.

The profile holds means as they were measured; here they become numbers to plan with: contexts are interpolated, vectors
made non-increasing, depths with few positions drawn towards the depth above, and tails that no measurement reached
given the shape of a tail that one did.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from profiles.pair_profile import AcceptanceTable, PairProfile, PassCost
from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.growth import ContextChances
from runtime.speculation.acceptance import builtin_acceptance
from runtime.speculation.tree_search import make_non_increasing

TAIL_POSITIONS = 40.0
"""Positions that the builtin tail counts for beside those in which far ranks were never accepted."""
DEPTH_POSITIONS = 20.0
"""Positions that the depth above counts for beside a depth's own: empirical Bayes along the depths, which differ by
little from one to the next. From 10 to 40 hardly a prediction changes; drawn towards all depths, deep ones stay low."""


def costs_from_profiles(
    pair: PairProfile,
    *,
    copy_seconds: Sequence[float | None],
    num_slots: int,
    read_seconds: Sequence[float | None] = (),
    num_stages: int = 0,
    context_tokens: int,
) -> RoundCosts:
    """Return the costs of this pair's rounds at `context_tokens` tokens of text, with these copies and reads.

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


def chances_of(pair: PairProfile, temperature: float) -> ContextChances | None:
    """Return what is known of single positions near a temperature; None where that was not measured."""
    tables = [table for table in pair.believed_acceptance if table.by_confidence and table.spread]
    if not tables:
        return None
    table = min(tables, key=lambda table: (abs(table.temperature - temperature), table.temperature))
    assert table.spread is not None
    return ContextChances(np.array(table.by_confidence), table.spread)


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


def _with_misses(rows: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """(D, R) rows whose first rank misses `factor` times as often, 1 in all at most."""
    factors = np.minimum(factor, 1 / np.maximum(1 - rows[:, :1], 1e-9))
    changed = rows * factors
    changed[:, :1] = 1 - (1 - rows[:, :1]) * factors
    return np.array([_cut_to_one(make_non_increasing(row)) for row in changed])


def _pass_seconds(costs: Sequence[PassCost], context_tokens: int) -> CostTable:
    by_context: dict[int, dict[float, float]] = {}
    for cost in costs:
        by_context.setdefault(cost.context_tokens, {})[cost.num_tokens] = cost.seconds
    contexts = sorted(by_context)
    tables = [CostTable(tuple(by_context[context]), tuple(by_context[context].values())) for context in contexts]
    place = float(np.interp(context_tokens, contexts, np.arange(len(contexts))))
    lower, upper = tables[int(place)], tables[min(int(place) + 1, len(tables) - 1)]
    share = place - int(place)
    sizes = np.union1d(lower.sizes, upper.sizes)
    seconds = (1 - share) * lower(sizes) + share * upper(sizes)
    return CostTable(tuple(sizes.tolist()), tuple(seconds.tolist()))


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
