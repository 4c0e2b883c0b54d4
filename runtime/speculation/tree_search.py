"""Which tree to grow: the most expected tokens G(n, d) over trees of n nodes and at most d levels, root included.

F(tree) = sum over nodes of the product of p[rank] on the path from the root; G is its maximum, -inf where no such tree
exists. `dynamic_program` is the algorithm of Sequoia (arXiv 2402.12374, 4.1), exact for every acceptance vector;
`best_first` equals it for non-increasing ones in milliseconds.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.speculation.token_tree import TreeTopology, number_breadth_first

Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class DynamicProgram:
    """The solved table of the paper's dynamic program, for every size and level limit up to the ones asked for."""

    expected_tokens: Floats
    """(D, N) [d - 1, n - 1] = G(n, d)."""
    worths: Floats
    """(D + 1, B + 1, N + 1) T[d, b, n]: the most for n nodes, d levels and b children of the root."""
    splits: NDArray[np.int32]
    """(D + 1, B + 1, N + 1) the nodes left for the root and its first b - 1 children in that best tree."""

    def topology(self, num_nodes: int, num_levels: int) -> TreeTopology:
        """Return the tree that reaches G(num_nodes, num_levels); the first maximiser wins ties."""
        if not np.isfinite(self.expected_tokens[num_levels - 1, num_nodes - 1]):
            raise ValueError(f"no tree has {num_nodes} nodes on {num_levels} levels with so few ranks")
        parents, subtrees = [-1], [(num_nodes, num_levels)]
        for node in range(num_nodes):
            size, levels = subtrees[node]
            branches = int(self.worths[levels, :, size].argmax())
            parents += [node] * branches
            children: list[tuple[int, int]] = []
            for rank in range(branches, 0, -1):
                left = int(self.splits[levels, rank, size])
                children.append((size - left, levels - 1))
                size = left
            subtrees += reversed(children)
        return TreeTopology(np.array(parents))


def dynamic_program(acceptance: ArrayLike, num_nodes: int, num_levels: int) -> DynamicProgram:
    """Solve T[n,d,b] = max over y of T[y,d,b-1] + p[b] G(n-y,d-1) for all n, d and b, in float32 like the paper's.

    `acceptance` is a vector by rank, sorted or not. O(n^2 d B) time: half a second for 1024 nodes and 17 levels.
    """
    by_rank = _check_acceptance(acceptance).astype(np.float32)
    if by_rank.ndim != 1:
        raise ValueError("the dynamic program takes a vector by rank; give a matrix by depth to best_first")
    _check_limits(num_nodes, num_levels)
    by_rank = by_rank[: num_nodes - 1]
    num_ranks = len(by_rank)
    shape = (num_levels + 1, num_ranks + 1, num_nodes + 1)
    worths = np.full(shape, -np.inf, dtype=np.float32)
    worths[1:, 0, 1] = 1
    splits = np.zeros(shape, dtype=np.int32)
    best = np.full((num_levels + 1, num_nodes + 1), -np.inf, dtype=np.float32)
    best[1:, 1] = 1
    # p[b] G(k, d-1) by descending k: then the sum over y below adds two forward slices.
    child_worths = np.full((num_levels - 1, num_ranks, num_nodes + 1), -np.inf, dtype=np.float32)
    child_worths[:, :, num_nodes - 1] = by_rank
    scratch = np.empty((num_levels - 1) * num_ranks * max(num_nodes - 1, 0), dtype=np.float32)
    for size in range(2, num_nodes + 1):
        sums = scratch[: (num_levels - 1) * num_ranks * (size - 1)].reshape(num_levels - 1, num_ranks, size - 1)
        np.add(worths[2:, :-1, 1:size], child_worths[:, :, num_nodes - size + 1 : num_nodes], out=sums)
        chosen = sums.argmax(axis=-1)  # (D - 1, B), the first maximiser
        splits[2:, 1:, size] = chosen + 1
        worths[2:, 1:, size] = np.take_along_axis(sums, chosen[..., None], axis=-1)[..., 0]
        best[:, size] = worths[:, :, size].max(axis=1)
        is_possible = np.isfinite(best[1:-1, size])  # 0 times -inf is not a number
        child_worths[is_possible, :, num_nodes - size] = best[1:-1, size][is_possible, None] * by_rank
    return DynamicProgram(expected_tokens=best[1:, 1:], worths=worths, splits=splits)


@dataclass(frozen=True, slots=True)
class BestFirst:
    """The best trees of 1, 2, ... N nodes within a level limit d, the root's level included; each contains the last."""

    expected_tokens: NDArray[np.float64]
    """(N,) [n - 1] = G(n, d); -inf from the first size on that no tree within the limit has."""
    depths: NDArray[np.int64]
    """(M,) the depth of the node that each step adds, M <= N; the tree of n nodes consists of the first n."""
    parents: NDArray[np.int64]
    """(M,) the step that added its parent; -1 for the root."""
    ranks: NDArray[np.int64]
    """(M,) its rank among its siblings, from 1; 0 for the root."""

    def topology(self, num_nodes: int) -> TreeTopology:
        """Return the tree that reaches G(num_nodes, d). Raises ValueError if no tree within the limit is so large."""
        if not 1 <= num_nodes <= len(self.depths):
            raise ValueError(f"this search holds trees of 1 to {len(self.depths)} nodes, found {num_nodes} asked for")
        steps = np.arange(num_nodes)
        _, topology = number_breadth_first(steps, parents=self.parents, depths=self.depths, ranks=self.ranks)
        return topology


def best_first(acceptance: ArrayLike, num_nodes: int, num_levels: int) -> BestFirst:
    """Find G(n, num_levels) and its trees for all n up to `num_nodes`.

    With p non-increasing in rank no node is worth more than its parent or its elder sibling, so the n nodes of
    largest path product are a tree, and the best one. `acceptance` is p[rank] or a matrix p[depth of the
    parent][rank], whose last row also serves deeper levels. Raises ValueError if it increases with rank.
    """
    return best_first_by_levels(acceptance, num_nodes, num_levels)[-1]


def best_first_by_levels(acceptance: ArrayLike, num_nodes: int, num_levels: int) -> tuple[BestFirst, ...]:
    """Run `best_first` for every level limit 1 .. num_levels in one sweep; index d - 1. See there.

    A level's nodes are the largest products of the level above with p; they merge into the order of the levels
    before. What falls behind the `num_nodes`-th place never comes back, nor do its descendants: the sweep is short.
    """
    by_depth = np.atleast_2d(_check_acceptance(acceptance).astype(np.float64))
    if (np.diff(by_depth, axis=1) > 0).any():
        raise ValueError("acceptance must not increase with rank; pass it through make_non_increasing first")
    _check_limits(num_nodes, num_levels)
    zero = np.zeros(1, dtype=np.int64)
    # The newest level, and the worthiest of all so far.
    level = chosen = _Ranked(np.ones(1), zero, zero - 1, zero, zero)
    searches = [_search_of(chosen, num_nodes)]
    for depth in range(1, num_levels):
        least_worth = float(chosen.worths[-1]) if len(chosen.worths) == num_nodes else -1.0
        by_rank = by_depth[min(depth, len(by_depth)) - 1]
        level = _next_level(level, by_rank, num_nodes=num_nodes, least_worth=least_worth)
        if len(level.worths) == 0:  # nor will any deeper level have a node
            searches += [searches[-1]] * (num_levels - depth)
            break
        both: list[NDArray[Any]] = [np.append(old, new) for old, new in zip(chosen, level, strict=True)]
        order = np.argsort(-both[0], kind="stable")[:num_nodes]  # of equals the shallower: parents precede children
        chosen = _Ranked(*(column[order] for column in both))
        searches.append(_search_of(chosen, num_nodes))
    return tuple(searches)


def expected_tokens(topology: TreeTopology, acceptance: ArrayLike) -> float:
    """Return F(tree), see `node_worths`."""
    return float(node_worths(topology, acceptance).sum())


def node_worths(tree: TreeTopology | BestFirst, acceptance: ArrayLike) -> NDArray[np.float64]:
    """Return each node's product of p[rank] or p[depth of the parent][rank] on its path, (N,); 0 for ranks beyond p."""
    by_depth = np.atleast_2d(_check_acceptance(acceptance))
    by_depth = np.pad(by_depth, ((0, 0), (0, max(0, int(tree.ranks.max()) - by_depth.shape[1]))))
    worths = np.ones(len(tree.depths))
    for node in range(1, len(worths)):
        by_rank = by_depth[min(int(tree.depths[node]), len(by_depth)) - 1]
        worths[node] = worths[tree.parents[node]] * by_rank[tree.ranks[node] - 1]
    return worths


def make_non_increasing(values: ArrayLike, *, weights: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return the nearest vector that never increases (weighted least squares); a matrix is treated row by row.

    Isotonic regression by pooling adjacent violators. `weights`, of the same shape, are the observations behind
    each value; without them all count the same.
    """
    given = np.asarray(values, dtype=np.float64)
    heavy = np.ones_like(given) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.ndim > 1:
        return np.array(
            [make_non_increasing(row, weights=row_weights) for row, row_weights in zip(given, heavy, strict=True)]
        )
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(given.tolist(), heavy.tolist(), strict=True):
        mean, total, length = value, weight, 1
        while pools and pools[-1][0] < mean:
            other_mean, other_total, other_length = pools.pop()
            share = other_total / (total + other_total) if total + other_total > 0 else 0.5
            mean, total, length = mean + share * (other_mean - mean), total + other_total, length + other_length
        pools.append((mean, total, length))
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])


class _Ranked(NamedTuple):
    """M nodes by descending worth. Numbers are those of the sweep: level by level, each level by worth."""

    worths: NDArray[np.float64]
    numbers: NDArray[np.int64]
    parents: NDArray[np.int64]
    ranks: NDArray[np.int64]
    depths: NDArray[np.int64]


def _next_level(level: _Ranked, by_rank: NDArray[np.float64], *, num_nodes: int, least_worth: float) -> _Ranked:
    """The worthiest `num_nodes` children of a level that are worth more than `least_worth`."""
    worths = by_rank[:, None] * level.worths  # (B, L)
    ranks, parents = np.nonzero(worths > least_worth)
    worths = worths[ranks, parents]
    order = np.argsort(-worths, kind="stable")[:num_nodes]
    return _Ranked(
        worths[order],
        level.numbers[-1] + 1 + np.arange(len(order)),
        level.numbers[parents[order]],
        ranks[order] + 1,
        np.full(len(order), level.depths[0] + 1),
    )


def _search_of(chosen: _Ranked, num_nodes: int) -> BestFirst:
    num_chosen = len(chosen.worths)
    steps = np.empty(int(chosen.numbers.max()) + 2, dtype=np.int64)
    steps[chosen.numbers] = np.arange(num_chosen)
    steps[-1] = -1  # the root's parent
    tokens = np.full(num_nodes, -np.inf)
    tokens[:num_chosen] = np.cumsum(chosen.worths)
    return BestFirst(tokens, chosen.depths, steps[chosen.parents], chosen.ranks)


def _check_acceptance(acceptance: ArrayLike) -> NDArray[np.float64]:
    probabilities = np.asarray(acceptance, dtype=np.float64)
    if not probabilities.size or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("acceptance must be one or more probabilities between 0 and 1")
    return probabilities


def _check_limits(num_nodes: int, num_levels: int) -> None:
    if num_nodes < 1 or num_levels < 1:
        raise ValueError(f"a tree has 1 node and 1 level or more, found {num_nodes} nodes and {num_levels} levels")
