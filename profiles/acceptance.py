"""Turns positions of the target's own text into acceptance by rank, by depth and by how sure the draft is.

A position is a place in a text that the target wrote, with what verification would do there on average: how likely
each child that the draft draws is the accepted one (Sequoia, arXiv 2402.12374, section 4.1; analytic, so with far less
variance than counting). By depth, acceptance is asked where trees really go: behind the likeliest paths, those of the
best-first tree under the means by rank, not behind any accepted child, however late it was drawn.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.pair_profile import LARGEST_SPREAD, AcceptanceTable

MAX_DEPTHS = 32
NUM_PATHS = 32
"""Paths that acceptance by depth is asked behind. Over 24 greedy texts of a pair of real models a chain alone overrates
trees of 512 nodes by 11 %, 256 paths underrate trees of 64 nodes by 13 %; any accepted child of 32 underrates trees of
16 to 512 nodes by 23 to 31 %, and 32 paths are off by 6 % at most."""
NUM_GROUPS = 8
"""Groups that positions are sorted into by how sure the draft is."""
GROUP_POSITIONS = 20.0
"""Positions that the draft's scores count for in a group, since far ranks are hardly ever seen."""
MIN_DEPTH_POSITIONS = 20.0
"""A depth has a row of its own if it was reached with at least this much evidence; deeper ones are pooled."""
SEPARATE_DRAFT_SPREAD = 0.8
"""Spread in logits, as of the pair above, until this one was measured."""
SUBSTITUTE_SPREAD = 0.2
"""The same where the draft is the target itself in 8 or 4 bits."""
NONE_WEIGHT = 0.01
"""Weight of "none of the candidates" where the best one weighs 1; with 32 candidates it was none in 0.6 %."""
LEAST_SPREAD = 0.01
"""Where a fit stops: a draft that is the target itself agrees always."""


@dataclass(frozen=True, slots=True, eq=False)
class ForcedPosition:
    """One position of a text, and what verification would do there."""

    temperature: float
    """Temperature of the text, and of both distributions."""
    text: int
    """Number of the text; positions of one text come in order, none left out."""
    acceptance: NDArray[np.float64]
    """(R,) probability that the child of each rank is the accepted one."""
    followed: NDArray[np.float64]
    """(R,) probability that the text's token was the accepted child of each rank, given that the text has it here.

    Or numbers, 0 or more, whose mean over the draft's draws this is; for greedy texts the same as `acceptance`.
    """
    scores: NDArray[np.float32] | None = None
    """(R,) scores of the draft's candidates, in logits, the best first, as `log_chances` takes them."""
    emitted: int = -1
    """Index of the candidate that the text has here, -1 if it has none of them."""


def acceptance_tables(positions: Iterable[ForcedPosition]) -> tuple[AcceptanceTable, ...]:
    """Return acceptance at every temperature that has a position, by ascending temperature."""
    texts: defaultdict[float, defaultdict[int, list[ForcedPosition]]] = defaultdict(lambda: defaultdict(list))
    for position in positions:
        texts[position.temperature][position.text].append(position)
    return tuple(_table(temperature, list(by_number.values())) for temperature, by_number in sorted(texts.items()))


def _table(temperature: float, texts: list[list[ForcedPosition]]) -> AcceptanceTable:
    """Return acceptance by rank and by depth at a temperature.

    By rank: means over all N positions. Their standard errors are those between texts, see `error_between`; a single
    text has only its positions, as if they were independent.

    By depth: a round may start anywhere, so each position of a text is the root (depth 0) of a path that starts there.
    Position t has depth j on the path that started at t - j, and counts there with the weight W[t, j] of
    `path_weights`: how likely verification went from t - j to t along one of the NUM_PATHS likeliest paths. Row j is
    sum_t W[t, j] acceptance[t] / sum_t W[t, j]: what follows an accepted path of j drafts. If easy stretches stay easy,
    deeper rows are higher. Its number of positions is Kish's effective one, (sum W)^2 / sum W^2. Of greedy texts this
    counts accepted paths.

    A depth has its own row while its number reaches MIN_DEPTH_POSITIONS, at most MAX_DEPTHS - 1 rows; the last row
    pools all deeper ones (each position weighted by the sum of its W there).
    """
    by_text = [np.stack([position.acceptance for position in text]) for text in texts]
    acceptance = np.concatenate(by_text)  # (N, R)
    means = acceptance.mean(axis=0)  # (R,)
    levels = likely_paths(means.tolist(), NUM_PATHS)
    followed = (np.stack([position.followed for position in text]) for text in texts)
    weights = np.concatenate([path_weights(text, levels) for text in followed])  # (N, D + 1) W[t, j]
    spread, by_confidence = _of_scores([position for text in texts for position in text])
    rows = _columns_by_depth(weights)
    return AcceptanceTable(
        temperature=temperature,
        by_rank=_probabilities(means),
        by_rank_errors=tuple(_errors_of(by_text)),
        num_positions=(len(acceptance),) * len(means),
        by_depth=tuple(_probabilities(column @ acceptance / column.sum()) for column in rows),
        by_depth_positions=tuple(max(1, round(_evidence(column))) for column in rows),
        num_texts=len(texts),
        spread=spread,
        by_confidence=by_confidence,
    )


def _columns_by_depth(weights: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the weights (N,) of each position at each depth that has a row; the last pools what is deeper, if any."""
    num_rows = 1
    while num_rows < min(MAX_DEPTHS - 1, weights.shape[1]) and _evidence(weights[:, num_rows]) >= MIN_DEPTH_POSITIONS:
        num_rows += 1
    deeper = weights[:, num_rows:].sum(axis=1)
    return [*weights[:, :num_rows].T, *([deeper] if deeper.any() else [])]


def _evidence(weights: NDArray[np.float64]) -> float:
    """Return Kish's effective number of positions, 0 if no weight is left."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _of_scores(positions: list[ForcedPosition]) -> tuple[float | None, tuple[tuple[float, ...], ...]]:
    """Return the spread and acceptance by confidence, of the positions whose candidates have scores.

    Positions in order of the first candidate's chance, in NUM_GROUPS groups; in each the share of positions at which a
    rank was emitted, drawn towards the mean of what the scores say by GROUP_POSITIONS of it.
    """
    ranked = [(position.scores, position.emitted) for position in positions if position.scores is not None]
    emitted = np.array([index for _, index in ranked], dtype=np.int64)
    if len(ranked) < NUM_GROUPS or not (emitted >= 0).any():
        return None, ()
    scores = np.stack([row for row, _ in ranked])  # (P, R)
    spread = fit_spread(scores, emitted)
    chances = np.exp(log_chances(scores, spread=spread))
    seen = emitted[:, None] == np.arange(scores.shape[1])
    rows = []
    for group in np.array_split(np.argsort(chances[:, 0], kind="stable"), NUM_GROUPS):
        likely = GROUP_POSITIONS * chances[group].mean(axis=0)
        rows.append(_probabilities((seen[group].sum(axis=0) + likely) / (len(group) + GROUP_POSITIONS)))
    return round(spread, 4), tuple(rows)


def _errors_of(by_text: list[NDArray[np.float64]]) -> list[float | None]:
    """Return (R,) standard errors of the means over all texts' positions (N_i, R); None for a single position."""
    groups = by_text if len(by_text) > 1 else by_text[0][:, None]
    errors = error_between(np.array([group.sum(axis=0) for group in groups]), np.array(list(map(len, groups))))
    return [round(error, 7) if math.isfinite(error) else None for error in errors.tolist()]


def error_between(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the standard errors (M,) of means over the positions of k texts; infinite for fewer than two texts.

    With sums (k, M) over each text's positions, counts (k,) of them and the mean m over all N: texts differ more than
    their positions, and rounds that overlap are not independent, so

        error^2 = k / (k - 1) sum_i (sums_i - m counts_i)^2 / N^2.
    """
    num_texts, num_positions = len(counts), int(counts.sum())
    if num_texts < 2:
        return np.full(sums.shape[1], np.inf)
    surplus = sums - counts[:, None] * (sums.sum(axis=0) / num_positions)
    return np.asarray(np.sqrt(num_texts / (num_texts - 1) * (surplus**2).sum(axis=0)) / num_positions)


def _probabilities(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Round to what a profile needs; sums of rounding errors must not exceed 1."""
    return tuple(round(float(value), 7) for value in np.clip(values, 0.0, 1.0))


PathLevel = tuple[NDArray[np.int64], NDArray[np.int64]]
"""M paths, one draft longer than those of the level above: which of those each one extends (M,), and the rank of the
child that it is extended with, from 0 (M,)."""


def likely_paths(by_rank: Sequence[float], num_paths: int) -> tuple[PathLevel, ...]:
    """Return the `num_paths` likeliest paths, one level for each depth from 1 on; the empty path counts as one.

    There are fewer where little is ever accepted.
    """
    order = np.argsort(-np.asarray(by_rank, dtype=np.float64), kind="stable")
    ranked = np.asarray(by_rank, dtype=np.float64)[order]
    levels: list[tuple[list[int], list[int]]] = []
    # Likelihood, depth, path of the level above, place in the order. Taking one adds its next sibling and first child.
    heap = [(-float(ranked[0]), 1, 0, 0)]
    for _ in range(num_paths - 1):
        if not heap or heap[0][0] >= 0:
            break
        negative, depth, parent, place = heapq.heappop(heap)
        if depth > len(levels):
            levels.append(([], []))
        parents, ranks = levels[depth - 1]
        heapq.heappush(heap, (negative * float(ranked[0]), depth + 1, len(parents), 0))
        parents.append(parent)
        ranks.append(int(order[place]))
        if place + 1 < len(ranked):
            heapq.heappush(heap, (negative * float(ranked[place + 1] / ranked[place]), depth, parent, place + 1))
    return tuple((np.array(level[0]), np.array(level[1])) for level in levels)


def path_weights(followed: NDArray[np.float64], levels: Sequence[PathLevel]) -> NDArray[np.float64]:
    """Return (N, D + 1) W[t, j], the probability that a round which began at t - j reaches t along one of the paths.

    `followed` (N, R) is how likely the text's token at each position came as the accepted child of each rank. 0 where
    the round would have begun before the text.
    """
    num_positions = len(followed)
    weights = np.zeros((num_positions, len(levels) + 1))
    weights[:, 0] = 1.0
    reached = np.ones((num_positions, 1))  # (S, M) by the round's first position and path
    for depth, (parents, ranks) in enumerate(levels[: num_positions - 1]):
        num_starts = num_positions - depth - 1
        tokens = followed[depth : depth + num_starts]  # (S, R) what the text has at the path's end
        reached = reached[:num_starts, parents] * tokens[:, ranks]
        weights[depth + 1 :, depth + 1] = reached.sum(axis=1)
    return weights


def log_chances(scores: ArrayLike, *, spread: float) -> NDArray[np.float64]:
    """Return (..., B) the logarithm of each candidate's chance, from scores (..., B) in logits, the best one first.

    The emitted token is the largest of the target's scores: its logits, or with noise shared by draft and target
    (coupled verification) logits + temperature * noise. The draft knows the same sum but for its own logits. Take the
    difference of the two models' logits as noise of one scale, the spread: then candidate k is the target's with
    probability

        exp(-gap[k] / spread) / (sum over j of exp(-gap[j] / spread) + NONE_WEIGHT),    gap[k] = score[1] - score[k]

    at every temperature. Qwen2.5-Coder 1.5B/0.5B, 3,002 positions of 48 texts: the likeliest spread is 0.8 at
    temperatures 0, 0.6 and 1.0 alike, and from 0.001 to 0.99 what was predicted so often is what was seen.

    -inf is no candidate. Raises ValueError if the spread is not positive.
    """
    if not spread > 0:
        raise ValueError(f"the spread must be more than 0 logits, found {spread}")
    given = np.asarray(scores, dtype=np.float64)
    utilities = (given - given[..., :1]) / spread
    return np.asarray(utilities - np.log(np.exp(utilities).sum(axis=-1, keepdims=True) + NONE_WEIGHT))


def fit_spread(scores: ArrayLike, chosen: ArrayLike) -> float:
    """Return the spread that makes what was seen likeliest.

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
