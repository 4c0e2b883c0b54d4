"""How many tokens trees would really bring: every tree, every position, from one look at a text.

For greedy decoding a round that starts at some position of the target's own text follows that text: at depth j it goes
on if the text's next token is among the children that the node has, and that only depends on the token's rank in the
draft's order behind the same text. So the ranks along a text settle what any tree would emit at any position: counted,
not modelled. Knows neither models nor files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst

Ranks = NDArray[np.int64]
"""(A,) rank of each token of an answer in the draft's order behind the text before it, from 1; 0 if it has none."""


@dataclass(frozen=True, slots=True)
class TokenYield:
    """Tokens per pass, counted."""

    mean: float
    """Over all positions, the target's own token after the accepted path included."""
    standard_error: float
    """Between texts, see `error_between`."""
    num_positions: int
    """Positions that a round could start at."""


@dataclass(frozen=True, slots=True, eq=False)
class YieldBySize:
    """Tokens per pass of trees of 1 .. M nodes, counted."""

    means: NDArray[np.float64]
    """(M,) over all positions."""
    standard_errors: NDArray[np.float64]
    """(M,) between texts, see `error_between`."""


def count_yield(topology: TreeTopology, texts: Sequence[Ranks]) -> TokenYield:
    """What `topology` emits per pass over every position of the texts from which it cannot run past the end."""
    reach = topology.num_levels - 1
    emitted = [
        np.array([1 + _accepted(topology, ranks[start : start + reach]) for start in range(len(ranks) - reach)])
        for ranks in texts
        if len(ranks) > reach
    ]
    if not emitted:
        return TokenYield(float("nan"), float("inf"), 0)
    counts = np.array([len(part) for part in emitted])
    mean = float(np.concatenate(emitted).mean())
    error = error_between(np.array([[float(part.sum())] for part in emitted]), counts)
    return TokenYield(mean, float(error[0]), int(counts.sum()))


def error_between(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(M,) standard errors of means over the positions of k texts; infinite for fewer than two texts.

    With sums (k, M) over each text's positions, counts (k,) of them and the mean m over all N: texts differ more than
    their positions, and rounds that overlap are not independent, so

        error^2 = k / (k - 1) sum_i (sums_i - m counts_i)^2 / N^2.
    """
    num_texts, num_positions = len(counts), int(counts.sum())
    if num_texts < 2:
        return np.full(sums.shape[1], np.inf)
    surplus = sums - counts[:, None] * (sums.sum(axis=0) / num_positions)
    return np.asarray(np.sqrt(num_texts / (num_texts - 1) * (surplus**2).sum(axis=0)) / num_positions)


def count_yield_by_size(search: BestFirst, texts: Sequence[Ranks], *, horizon: int) -> YieldBySize:
    """Tokens per pass of the search's best trees of 1, 2, ... M nodes over all positions of the texts.

    A round may run at most `horizon` tokens along the text, the same for all sizes.
    """
    children = {
        (int(parent), int(rank)): step
        for step, (parent, rank) in enumerate(zip(search.parents, search.ranks, strict=True))
    }
    gains, counts = list[NDArray[np.float64]](), list[int]()  # by text
    for ranks in texts:
        if len(ranks) <= horizon:
            continue
        counts.append(len(ranks) - horizon)
        gains.append(np.zeros(len(search.depths)))
        for start in range(counts[-1]):
            step = 0
            for rank in ranks[start : start + horizon].tolist():
                if (child := children.get((step, rank))) is None:
                    break
                step = child
                gains[-1][step] += 1  # every tree that has this node emits one more
    if not counts:
        return YieldBySize(np.full(len(search.depths), np.nan), np.full(len(search.depths), np.inf))
    num_starts = np.array(counts)
    sums = num_starts[:, None] + np.cumsum(gains, axis=1)  # (k, M)
    return YieldBySize(sums.sum(axis=0) / num_starts.sum(), error_between(sums, num_starts))


def _accepted(topology: TreeTopology, ranks: Ranks) -> int:
    node = 0
    for depth, rank in enumerate(ranks.tolist()):
        if not 1 <= rank <= topology.num_children[node]:
            return depth
        node = topology.children(node)[rank - 1]
    return len(ranks)
