"""Chooses the tree with the fewest predicted seconds per token, over all sizes, all level limits, chains and no tree.

For every size the pass is known and only the draft differs between level limits, so the exact recurrence over layers
runs once per size and a few maxima give every round (`RoundPeriods`). Nothing is sampled or bounded: the result is
that of brute force with `RoundCosts.round_seconds`. Sequoia (arXiv 2402.12374, section 4.3) with measured parts;
its own cost model is here beside it. Knows numbers only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.tree_candidates import SearchMethod, TreeCandidates
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.token_tree import TreeTopology

Bound = Literal["link", "disk", "compute", "draft"]
TreeShape = TreeTopology | GrowthLimits
"""What a tree looks like: known beforehand, or what limits it while it grows."""

SAME_KIND = 0.25
"""Two trees are of one kind if size or levels of the one lie within this share of the other's."""


class CostModel(StrEnum):
    """What a round is predicted to cost."""

    PIPELINE = "pipeline"
    """The recurrence over layers, with a draft step's cost by its width."""
    PAPER = "paper"
    """t(n) + d c: the pass alone, and d draft steps that all cost what one of width 1 does; nothing overlaps."""


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

    @property
    def name(self) -> str:
        """As `--tree` takes it."""
        return f"{'dynamic:' if self.is_dynamic else ''}{self.num_nodes}x{self.num_levels}"


@dataclass(frozen=True, slots=True)
class TreeRanking:
    """What a search over all trees found. D level limits, N sizes."""

    best: TreeChoice
    """The fewest seconds per token; of equals the one with fewer levels, then nodes."""
    second: TreeChoice | None
    """The best of another kind: size and levels both differ by more than a quarter; None if all are alike."""
    plain: TreeChoice
    """No tree: one token per pass, and no draft."""
    best_chain: TreeChoice | None
    """The best of one node per level and at least two; None where no tree may have two nodes."""
    seconds_per_token: NDArray[np.float64]
    """(D, N) [d - 1, n - 1] of the best tree of n nodes within d levels; infinite where there is none."""
    _table: "_Table" = field(repr=False)

    @property
    def speedup(self) -> float:
        """Seconds per token of plain decoding over those of the best."""
        return self.plain.seconds_per_token / self.best.seconds_per_token

    @property
    def expected_tokens(self) -> NDArray[np.float64]:
        """(D, N) tokens per round of these trees; -inf where there is none."""
        return self._table.trees.expected_tokens

    def curve(self, level_limit: int) -> NDArray[np.float64]:
        """(N,) seconds per token by size, of trees with at most so many levels; infinite where there is none."""
        return np.asarray(self.seconds_per_token[level_limit - 1], dtype=np.float64)

    def of_shape(self, num_nodes: int, level_limit: int) -> TreeChoice | None:
        """The best tree of exactly so many nodes within so many levels; None if there is none among those searched."""
        num_limits, num_sizes = self.seconds_per_token.shape
        row, column = level_limit - 1, num_nodes - 1
        is_searched = 0 <= row < num_limits and 0 <= column < num_sizes
        return self._table.choice(row, column) if is_searched and np.isfinite(self.curve(level_limit)[column]) else None


@dataclass(frozen=True, slots=True)
class _Table:
    """All candidates: D rows of trees and a last one of chains, N columns of sizes."""

    costs: RoundCosts
    trees: TreeCandidates
    sizes: NDArray[np.int64]  # (N,)
    num_levels: NDArray[np.int64]  # (D + 1, N)
    expected_tokens: NDArray[np.float64]  # (D + 1, N)
    draft_seconds: NDArray[np.float64]  # (D + 1, N)
    round_seconds: NDArray[np.float64]  # (D + 1, N)

    @property
    def seconds_per_token(self) -> NDArray[np.float64]:
        """(D + 1, N), infinite where there is no tree."""
        seconds = np.full(self.expected_tokens.shape, np.inf)
        np.divide(self.round_seconds, self.expected_tokens, out=seconds, where=self.expected_tokens > 0)
        return seconds

    def best_where(self, is_allowed: NDArray[np.bool_]) -> TreeChoice | None:
        """The best of the candidates (D + 1, N) that are allowed; None if no tree is."""
        seconds = np.where(is_allowed, self.seconds_per_token, np.inf)
        row, column = map(int, np.unravel_index(np.argmin(seconds), seconds.shape))
        return self.choice(row, column) if np.isfinite(seconds[row, column]) else None

    def choice(self, row: int, column: int) -> TreeChoice:
        """The candidate at this place."""
        size = column + 1
        is_chain = row == len(self.num_levels) - 1
        draft_seconds = float(self.draft_seconds[row, column])
        return TreeChoice(
            num_nodes=size,
            num_levels=int(self.num_levels[row, column]),
            expected_tokens=float(self.expected_tokens[row, column]),
            round_seconds=float(self.round_seconds[row, column]),
            draft_seconds=draft_seconds,
            bound=bound_of(self.costs, size, draft_seconds),
            shape=(lambda: TreeTopology.chain(size)) if is_chain else (lambda: self.trees.topology(size, row + 1)),
        )


def choose_tree(
    costs: RoundCosts,
    acceptance: ArrayLike,
    *,
    max_nodes: int,
    max_levels: int,
    search: SearchMethod = SearchMethod.BEST_FIRST,
    cost: CostModel = CostModel.PIPELINE,
) -> TreeRanking:
    """Minimise round_seconds(n, d) / G(n, d) over all trees of up to `max_nodes` nodes on up to `max_levels` levels.

    `acceptance` is p[rank] or p[depth of the parent][rank], not increasing with rank for best-first; the dynamic
    program takes any vector. Costs without a draft leave plain decoding alone. 4,096 x 64 of 80 layers take 60 ms.
    Raises ValueError for limits or an acceptance that the search cannot answer.
    """
    step_seconds = costs.draft_step_seconds
    if step_seconds is None:
        max_nodes = max_levels = 1
        step_seconds = CostTable((1,), (0.0,))
    trees = TreeCandidates.find(acceptance, max_nodes, max_levels, search)
    sizes = np.arange(1, max_nodes + 1)
    chain_tokens = np.where(sizes <= max_levels, np.cumsum(_chain_worths(acceptance, max_nodes)), -np.inf)
    num_levels = np.vstack([trees.num_levels, sizes])
    if cost is CostModel.PAPER:
        draft_seconds = float(step_seconds([1.0])[0]) * np.where(sizes > 1, num_levels, 0)
        round_seconds = costs.round_seconds(sizes, np.zeros(max_nodes)) + draft_seconds
    else:
        chain_seconds = float(step_seconds([1.0])[0]) * (sizes - 1)
        draft_seconds = np.vstack([trees.draft_seconds(step_seconds), chain_seconds])
        round_seconds = costs.round_periods(sizes)(draft_seconds + costs.walk_seconds(sizes))
    tokens = np.vstack([trees.expected_tokens, chain_tokens])
    return _rank(_Table(costs, trees, sizes, num_levels, tokens, draft_seconds, round_seconds))


def choose_tree_as_published(
    acceptance: ArrayLike,
    verify_seconds_by_size: Mapping[int, float],
    *,
    draft_step_seconds: float,
    size_limit: int,
    level_limit: int,
    search: SearchMethod = SearchMethod.DP,
) -> TreeRanking:
    """Maximise Speedup(n, d) = G(n, d) / (t(n) + d c) of the paper (section 4.3) over all n and d within the limits.

    t(n) lies on straight lines between the sizes given, which must include 1; c is a draft step that costs the same at
    every width. Plain decoding, n = 1, takes no draft step. Raises ValueError if size 1 is missing.
    """
    if 1 not in verify_seconds_by_size:
        raise ValueError("verify_seconds_by_size needs the seconds of size 1, plain decoding")
    sizes = sorted(verify_seconds_by_size)
    costs = RoundCosts(
        copy_seconds=(None,),
        pass_seconds=CostTable(tuple(map(float, sizes)), tuple(verify_seconds_by_size[size] for size in sizes)),
        draft_step_seconds=CostTable((1,), (draft_step_seconds,)),
        walk_seconds=CostTable((1,), (0.0,)),
        num_slots=1,
    )
    return choose_tree(
        costs, acceptance, max_nodes=size_limit, max_levels=level_limit, search=search, cost=CostModel.PAPER
    )


def _rank(table: _Table) -> TreeRanking:
    num_limits = len(table.num_levels) - 1
    seconds = table.seconds_per_token
    is_chain = np.zeros(seconds.shape, dtype=np.bool_)
    is_chain[-1, 1:] = True
    row, column = map(int, np.unravel_index(np.argmin(seconds), seconds.shape))
    best = table.choice(row, column)
    is_alike = (np.abs(table.sizes - best.num_nodes) <= SAME_KIND * best.num_nodes) | (
        np.abs(table.num_levels - best.num_levels) <= SAME_KIND * best.num_levels
    )
    return TreeRanking(
        best=best,
        second=table.best_where(~is_alike),
        plain=table.choice(0, 0),
        best_chain=table.best_where(is_chain),
        seconds_per_token=seconds[:num_limits],
        _table=table,
    )


def _chain_worths(acceptance: ArrayLike, num_nodes: int) -> NDArray[np.float64]:
    """(N,) path products of a chain, the root's 1 first."""
    firsts = np.atleast_2d(np.asarray(acceptance, dtype=np.float64))[:, 0]
    depths = np.minimum(np.arange(num_nodes - 1), len(firsts) - 1)
    return np.cumprod(np.concatenate((np.ones(1), firsts[depths])), dtype=np.float64)


def bound_of(costs: RoundCosts, num_nodes: int, draft_seconds: float) -> Bound:
    """What limits a round, see `TreeChoice.bound`."""
    compute_seconds, copy_seconds = costs.layer_seconds(num_nodes)
    compute = float(compute_seconds.sum())
    between = draft_seconds + float(costs.walk_seconds([num_nodes])[0])
    link = sum(float(seconds[0]) for seconds in copy_seconds if seconds is not None)
    disk = sum(seconds for seconds in costs.read_seconds if seconds is not None)
    if compute + between > max(link, disk):
        return "compute" if compute >= between else "draft"
    return "link" if link >= disk else "disk"
