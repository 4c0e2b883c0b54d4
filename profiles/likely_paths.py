"""The few dozen likeliest paths of accepted drafts, and how likely verification goes along them through a text.

Acceptance by depth must be asked where trees really go: behind paths of mostly first children, not behind any accepted
child, however late it was drawn. The likeliest paths under the means by rank are a best-first tree (Sequoia, arXiv
2402.12374, with independent positions). Knows no models.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class PathLevel:
    """M paths of one more draft than those of the level above."""

    parents: NDArray[np.int64]
    """(M,) the path of the level above that each goes on from."""
    ranks: NDArray[np.int64]
    """(M,) the rank of the child that it goes on with, from 0."""


def likely_paths(by_rank: Sequence[float], num_paths: int) -> tuple[PathLevel, ...]:
    """The `num_paths` likeliest paths, the empty one of depth 0 counted; one level for each depth from 1 on.

    There are fewer where little is ever accepted.
    """
    order = np.argsort(-np.asarray(by_rank, dtype=np.float64), kind="stable")
    ranked = np.asarray(by_rank, dtype=np.float64)[order]
    levels: list[tuple[list[int], list[int]]] = []
    sizes = [1]
    # Likelihood, depth, path of the level above, place in the order. Whoever is taken, the next sibling follows and the
    # first child.
    heap = [(-float(ranked[0]), 1, 0, 0)]
    for _ in range(num_paths - 1):
        if not heap or heap[0][0] >= 0:
            break
        negative, depth, parent, place = heapq.heappop(heap)
        if depth > len(levels):
            levels.append(([], []))
            sizes.append(0)
        levels[depth - 1][0].append(parent)
        levels[depth - 1][1].append(int(order[place]))
        heapq.heappush(heap, (negative * float(ranked[0]), depth + 1, sizes[depth], 0))
        sizes[depth] += 1
        if place + 1 < len(ranked):
            heapq.heappush(heap, (negative * float(ranked[place + 1] / ranked[place]), depth, parent, place + 1))
    return tuple(PathLevel(np.array(parents), np.array(ranks)) for parents, ranks in levels)


def path_weights(followed: NDArray[np.float64], levels: Sequence[PathLevel]) -> NDArray[np.float64]:
    """(N, D + 1) W[t, j]: how likely a round that began at t - j is at t now, along one of the paths of D levels.

    `followed` (N, R) is how likely the text's token at each position came as the accepted child of each rank. 0 where
    the round would have begun before the text.
    """
    num_positions = len(followed)
    weights = np.zeros((num_positions, len(levels) + 1))
    weights[:, 0] = 1.0
    reached = np.ones((num_positions, 1))  # (S, M) by the round's first position and path
    for depth, level in enumerate(levels[: num_positions - 1]):
        num_starts = num_positions - depth - 1
        tokens = followed[depth : depth + num_starts]  # (S, R) what the text has at the path's end
        reached = reached[:num_starts, level.parents] * tokens[:, level.ranks]
        weights[depth + 1 :, depth + 1] = reached.sum(axis=1)
    return weights
