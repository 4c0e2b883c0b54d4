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
    """Between blocks of neighbouring positions, since rounds that overlap are not independent."""
    num_positions: int
    """Positions that a round could start at."""


def count_yield(topology: TreeTopology, texts: Sequence[Ranks], *, block: int = 32) -> TokenYield:
    """What `topology` emits per pass over every position of the texts from which it cannot run past the end."""
    reach = topology.num_levels - 1
    emitted = [
        np.array([1 + _accepted(topology, ranks[start : start + reach]) for start in range(len(ranks) - reach)])
        for ranks in texts
        if len(ranks) > reach
    ]
    return _mean_of(emitted, block)


def count_yield_by_size(search: BestFirst, texts: Sequence[Ranks], *, horizon: int) -> NDArray[np.float64]:
    """(M,) tokens per pass of the search's best trees of 1, 2, ... M nodes, means over all positions.

    A round may run at most `horizon` tokens along the text, the same for all sizes.
    """
    children = {
        (int(parent), int(rank)): step
        for step, (parent, rank) in enumerate(zip(search.parents, search.ranks, strict=True))
    }
    gains = np.zeros(len(search.depths))
    num_positions = 0
    for ranks in texts:
        for start in range(len(ranks) - horizon):
            num_positions += 1
            step = 0
            for rank in ranks[start : start + horizon].tolist():
                if (child := children.get((step, rank))) is None:
                    break
                step = child
                gains[step] += 1  # every tree that has this node emits one more
    return np.asarray(1 + np.cumsum(gains) / max(num_positions, 1), dtype=np.float64)


def _accepted(topology: TreeTopology, ranks: Ranks) -> int:
    node = 0
    for depth, rank in enumerate(ranks.tolist()):
        if not 1 <= rank <= topology.num_children[node]:
            return depth
        node = topology.children(node)[rank - 1]
    return len(ranks)


def _mean_of(emitted: Sequence[NDArray[np.int64]], block: int) -> TokenYield:
    counted = np.concatenate([np.zeros(0, dtype=np.int64), *emitted])
    if not len(counted):
        return TokenYield(float("nan"), float("inf"), 0)
    blocks = np.array([part[start : start + block].mean() for part in emitted for start in range(0, len(part), block)])
    error = float(blocks.std(ddof=1) / np.sqrt(len(blocks))) if len(blocks) > 1 else float("inf")
    return TokenYield(float(counted.mean()), error, len(counted))
