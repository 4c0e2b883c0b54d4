"""The best trees of every size and level limit: what each is worth, how wide its levels are, and its shape.

Two searches give the same table: best-first, exact where acceptance does not increase with rank and milliseconds for
thousands of nodes, and the paper's dynamic program, exact for every vector. What a tree costs to grow follows from
how many nodes of each level have children: those are what a draft forward computes. Sequoia (arXiv 2402.12374, 4.1).
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.planner.costs import CostTable
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst, DynamicProgram, best_first_by_levels, dynamic_program


class SearchMethod(StrEnum):
    """How the best tree of a size and a level limit is found."""

    BEST_FIRST = "best-first"
    """The worthiest nodes one by one: for acceptance that does not increase with rank, also by depth."""
    DP = "dp"
    """The paper's dynamic program: for every vector by rank; seconds for 1,024 nodes, minutes for 4,096."""


@dataclass(frozen=True, slots=True)
class TreeCandidates:
    """One tree for each level limit 1..D and size 1..N."""

    searched: tuple[BestFirst, ...] | DynamicProgram
    """What found them, from which a shape can be had."""
    expected_tokens: NDArray[np.float64]
    """(D, N) [d - 1, n - 1] = G(n, d); -inf where no tree within the limit has so many nodes."""
    num_levels: NDArray[np.int64]
    """(D, N) levels that the tree really has, d or fewer; without meaning where there is no tree."""

    @classmethod
    def find(cls, acceptance: ArrayLike, num_nodes: int, num_levels: int, method: SearchMethod) -> "TreeCandidates":
        """All trees up to these limits. Raises ValueError for acceptance that the method cannot answer."""
        if method is SearchMethod.DP:
            solved = dynamic_program(acceptance, num_nodes, num_levels)
            levels = (_widths_of(solved) > 0).sum(axis=-1) + 1
            return cls(solved, solved.expected_tokens.astype(np.float64), levels)
        searches = best_first_by_levels(acceptance, num_nodes, num_levels)
        levels = np.ones((num_levels, num_nodes), dtype=np.int64)
        for row, search in zip(levels, searches, strict=True):
            row[: len(search.depths)] = np.maximum.accumulate(search.depths) + 1
        return cls(searches, np.stack([search.expected_tokens for search in searches]), levels)

    def draft_seconds(self, step_seconds: CostTable) -> NDArray[np.float64]:
        """(D, N) seconds of growing each tree: a step for every level that has children, by how many nodes have."""
        num_limits, num_nodes = self.expected_tokens.shape
        by_width = step_seconds(np.arange(num_nodes + 1))  # (N + 1,)
        by_width[0] = 0.0  # a level without children takes no step
        if isinstance(self.searched, DynamicProgram):
            return np.asarray(by_width[_widths_of(self.searched)].sum(axis=-1), dtype=np.float64)
        seconds, increments = np.zeros((num_limits, num_nodes)), np.diff(by_width)
        for row, search in zip(seconds, self.searched, strict=True):
            _add_steps(row, search, increments)
        return np.cumsum(seconds, axis=1)

    def topology(self, num_nodes: int, level_limit: int) -> TreeTopology:
        """The tree of this size within this limit. Raises ValueError where there is none."""
        if isinstance(self.searched, DynamicProgram):
            return self.searched.topology(num_nodes, level_limit)
        return self.searched[level_limit - 1].topology(num_nodes)


def _add_steps(row: NDArray[np.float64], search: BestFirst, increments: NDArray[np.float64]) -> None:
    """Add to each size (N,) what its newest node makes drafting dearer by.

    A parent joins its level's step with its first child, and widens it by one node: the w-th parent of a level costs
    increments[w - 1].
    """
    firsts = np.flatnonzero(search.ranks == 1)
    order = np.argsort(search.depths[firsts].astype(np.int16), kind="stable")  # by level, each level by size
    depths = search.depths[firsts][order]
    starts = np.flatnonzero(np.diff(depths, prepend=-1))
    lengths = np.diff(starts, append=len(depths))
    row[firsts[order]] += increments[np.arange(len(depths)) - np.repeat(starts, lengths)]


def _widths_of(solved: DynamicProgram) -> NDArray[np.int64]:
    """(D, N, D) [d - 1, n - 1, l] = nodes of level l that have children, in the program's tree of n nodes, d levels."""
    num_limits, num_nodes = solved.expected_tokens.shape
    widths = np.zeros((num_limits + 1, num_nodes + 1, num_limits), dtype=np.int64)
    for limit in range(2, num_limits + 1):
        num_branches = solved.worths[limit].argmax(axis=0)  # (N + 1,) of the root, the first maximiser
        widths[limit, num_branches > 0, 0] = 1
        left = np.arange(num_nodes + 1)
        for rank in range(int(num_branches.max()), 0, -1):
            sizes = np.flatnonzero(num_branches >= rank)
            rest = solved.splits[limit, rank, left[sizes]]
            widths[limit, sizes, 1:] += widths[limit - 1, left[sizes] - rest, :-1]
            left[sizes] = rest
    return widths[1:, 1:]
