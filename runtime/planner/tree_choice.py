"""Chooses the tree with the fewest predicted seconds per token, over all sizes, all level limits, chains and no tree.

For every size the pass is known and only the draft differs between level limits, so the exact recurrence over layers
runs once per size and a few maxima give every round (`RoundPeriods`): the result is that of brute force. Sequoia
(arXiv 2402.12374, section 4.3) with measured parts; its own search and cost model are here beside ours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.config import CostModel, TreeSearch
from runtime.planner.costs import CostTable, RoundCosts
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst, DynamicProgram, best_first_by_levels, dynamic_program

Bound = Literal["link", "disk", "compute", "draft"]
TreeShape = TreeTopology | GrowthLimits
"""What a tree looks like: known beforehand, or what limits it while it grows."""

SAME_KIND = 0.25
"""Two trees are of one kind if size or levels of the one lie within this share of the other's."""


@dataclass(frozen=True, slots=True)
class TreeChoice:
    """A tree and what it is predicted to bring."""

    num_nodes: int
    """n, root included; 1 is plain decoding."""
    num_levels: int
    """Levels of the tree, root included."""
    expected_tokens: float
    """Tokens per round."""
    round_seconds: float
    """Seconds per round, drafting included."""
    draft_seconds: float
    """Of growing the tree alone."""
    bound: Bound
    """What limits the round, from its four parts each on its own: all copies (link), all reads (disk), all layers'
    computation (compute), and growing the tree with head and walk (draft), slowdowns included. Compute and draft follow
    one another: if together they take longer than the copies and than the reads, the larger of the two, else the larger
    of link and disk."""
    shape: Callable[[], TreeShape] = field(repr=False, compare=False)
    """Makes the tree's topology, or the limits of one that takes its shape from context."""
    is_dynamic: bool = False
    """Whether it takes its shape from context; nodes and levels are then the most it may have."""

    @property
    def seconds_per_token(self) -> float:
        """What the choice minimises."""
        return self.round_seconds / self.expected_tokens


@dataclass(frozen=True, slots=True)
class TreeCandidates:
    """The best tree of each level limit 1..D and size 1..N: what it is worth, how wide its levels are, its shape.

    Two searches give the same table: best-first, exact where acceptance does not increase with rank, and the paper's
    dynamic program, exact for every vector. What a tree costs to grow follows from how many nodes of each level have
    children: those are what a draft forward computes.
    """

    searched: tuple[BestFirst, ...] | DynamicProgram
    """What found them, from which a shape can be had."""
    expected_tokens: NDArray[np.float64]
    """(D, N) [d - 1, n - 1] = G(n, d); -inf where no tree within the limit has so many nodes."""
    num_levels: NDArray[np.int64]
    """(D, N) levels that the tree really has, d or fewer; without meaning where there is no tree."""

    @classmethod
    def find(cls, acceptance: ArrayLike, num_nodes: int, num_levels: int, method: TreeSearch) -> "TreeCandidates":
        """Search all trees up to these limits. Raises ValueError for acceptance that the method cannot answer."""
        if method == "dp":
            solved = dynamic_program(acceptance, num_nodes, num_levels)
            levels = (_widths_of(solved) > 0).sum(axis=-1) + 1
            return cls(solved, solved.expected_tokens.astype(np.float64), levels)
        searches = best_first_by_levels(acceptance, num_nodes, num_levels)
        levels = np.ones((num_levels, num_nodes), dtype=np.int64)
        for row, search in zip(levels, searches, strict=True):
            row[: len(search.depths)] = np.maximum.accumulate(search.depths) + 1
        return cls(searches, np.stack([search.expected_tokens for search in searches]), levels)

    def draft_seconds(self, step_seconds: CostTable) -> NDArray[np.float64]:
        """Return (D, N) seconds of growing each tree: a step per level with children, by how many nodes have any."""
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
        """Return the tree of this size within this limit. Raises ValueError where there is none."""
        if isinstance(self.searched, DynamicProgram):
            return self.searched.topology(num_nodes, level_limit)
        return self.searched[level_limit - 1].topology(num_nodes)


class TreeRanking:
    """What a search over all trees found: D level limits and, behind them, a row of chains; N sizes."""

    best: TreeChoice
    """The fewest seconds per token; of equals the one with fewer levels, then nodes."""

    def __init__(
        self, costs: RoundCosts, trees: TreeCandidates, chain_tokens: NDArray[np.float64], cost: CostModel
    ) -> None:
        """`chain_tokens` (N,) are those of chains by size, -inf for chains of too many levels."""
        step_seconds = costs.draft_step_seconds or CostTable((1,), (0.0,))
        self._costs, self._trees = costs, trees
        self._sizes = sizes = np.arange(1, len(chain_tokens) + 1)
        self._num_levels = np.vstack([trees.num_levels, sizes])  # (D + 1, N), as all below
        self._tokens = np.vstack([trees.expected_tokens, chain_tokens])
        step = float(step_seconds([1.0])[0])
        if cost == "paper":
            self._draft_seconds = step * np.where(sizes > 1, self._num_levels, 0)
            self._round_seconds = costs.round_seconds(sizes, np.zeros(len(sizes))) + self._draft_seconds
        else:
            self._draft_seconds = np.vstack([trees.draft_seconds(step_seconds), step * (sizes - 1)])
            self._round_seconds = costs.round_seconds(sizes, self._draft_seconds)
        self._seconds = np.full(self._tokens.shape, np.inf)
        np.divide(self._round_seconds, self._tokens, out=self._seconds, where=self._tokens > 0)
        self.best = self._choice(*_place_of_least(self._seconds))
        self.seconds_per_token = self._seconds[:-1]
        """(D, N) [d - 1, n - 1] of the best tree of n nodes within d levels; infinite where there is none."""
        self.expected_tokens = trees.expected_tokens
        """(D, N) tokens per round of these trees; -inf where there is none."""

    @property
    def second(self) -> TreeChoice | None:
        """The best of another kind: size and levels both differ by more than a quarter; None if all are alike."""
        best = self.best
        is_alike = (np.abs(self._sizes - best.num_nodes) <= SAME_KIND * best.num_nodes) | (
            np.abs(self._num_levels - best.num_levels) <= SAME_KIND * best.num_levels
        )
        seconds = np.where(is_alike, np.inf, self._seconds)
        place = _place_of_least(seconds)
        return self._choice(*place) if np.isfinite(seconds[place]) else None

    def of_shape(self, num_nodes: int, level_limit: int) -> TreeChoice | None:
        """Return the best tree of exactly so many nodes within so many levels; None if none was searched."""
        num_limits, num_sizes = self.seconds_per_token.shape
        row, column = level_limit - 1, num_nodes - 1
        is_searched = 0 <= row < num_limits and 0 <= column < num_sizes and np.isfinite(self._seconds[row, column])
        return self._choice(row, column) if is_searched else None

    def _choice(self, row: int, column: int) -> TreeChoice:
        """The candidate at this place; the last row holds chains."""
        size, trees = column + 1, self._trees
        is_chain = row == len(self._seconds) - 1
        draft_seconds = float(self._draft_seconds[row, column])
        return TreeChoice(
            num_nodes=size,
            num_levels=int(self._num_levels[row, column]),
            expected_tokens=float(self._tokens[row, column]),
            round_seconds=float(self._round_seconds[row, column]),
            draft_seconds=draft_seconds,
            bound=bound_of(self._costs, size, draft_seconds),
            shape=(lambda: TreeTopology.chain(size)) if is_chain else (lambda: trees.topology(size, row + 1)),
        )


def choose_tree(
    costs: RoundCosts,
    acceptance: ArrayLike,
    *,
    max_nodes: int,
    max_levels: int,
    search: TreeSearch = "best-first",
    cost: CostModel = "pipeline",
) -> TreeRanking:
    """Minimise round_seconds(n, d) / G(n, d) over all trees of up to `max_nodes` nodes on up to `max_levels` levels.

    `acceptance` is p[rank] or p[depth of the parent][rank], not increasing with rank for best-first; the dynamic
    program takes any vector. Costs without a draft leave plain decoding alone. 4,096 x 64 of 80 layers take 60 ms.
    Raises ValueError for limits or an acceptance that the search cannot answer.
    """
    if costs.draft_step_seconds is None:
        max_nodes = max_levels = 1
    trees = TreeCandidates.find(acceptance, max_nodes, max_levels, search)
    firsts = np.atleast_2d(np.asarray(acceptance, dtype=np.float64))[:, 0]
    depths = np.minimum(np.arange(max_nodes - 1), len(firsts) - 1)
    worths = np.cumprod(np.concatenate((np.ones(1), firsts[depths])), dtype=np.float64)  # (N,) along a chain
    chain_tokens = np.where(np.arange(max_nodes) < max_levels, np.cumsum(worths), -np.inf)
    return TreeRanking(costs, trees, chain_tokens, cost)


def bound_of(costs: RoundCosts, num_nodes: int, draft_seconds: float) -> Bound:
    """Return what limits a round, see `TreeChoice.bound`."""
    parts = costs.part_seconds(num_nodes, draft_seconds)
    link, disk, compute = parts["link"], parts["disk"], parts["compute"]
    between = draft_seconds + parts["head_and_walk"]
    if compute + between > max(link, disk):
        return "compute" if compute >= between else "draft"
    return "link" if link >= disk else "disk"


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


def _place_of_least(seconds: NDArray[np.float64]) -> tuple[int, int]:
    row, column = np.unravel_index(np.argmin(seconds), seconds.shape)
    return int(row), int(column)
