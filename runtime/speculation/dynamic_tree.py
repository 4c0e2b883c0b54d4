"""A tree that takes its shape while it grows: the N nodes that are likeliest to be reached in this context.

A node's worth is the product of what the draft says, on this very path, about every token of it. Each draft step runs
the worthiest nodes that are not run yet, whatever their depth; of all that was placed the N worthiest stay. Which do
depends on the draft, so verification must not: greedy, or noise that draft and target share (Sequoia, section 4.1).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.speculation.token_tree import TokenTree, number_breadth_first

NO_NODES = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class GrowthLimits:
    """What a tree may cost."""

    num_nodes: int
    """N, root included: what the target verifies."""
    num_steps: int
    """Draft forwards; the tree has one level more at most."""
    max_width: int
    """Nodes of one draft forward."""
    least_lead: float = 2.0
    """How many times as worthy as the least of N nodes one must be to be run: what the best of its children may lose.

    With 1 nothing is spared. In trees of 128 nodes 2 spares 20 % of what is run and 12 % of the steps for 0.4 % of the
    tokens (simulated from 1,040 positions of Qwen2.5-Coder 1.5B/0.5B, greedy)."""
    least_worth: float = 0.0
    """What a node must be worth to be run, also while there are fewer than N. Measured, trees bring 1.7 + 1.9 ln N
    tokens, so that the last node of a good tree is worth about 2 / N."""
    max_run: int | None = None
    """Nodes that the draft may run altogether, those that are outdone later included: the slots of its cache. None: no
    limit."""

    @property
    def num_levels(self) -> int:
        """Most levels of the tree, the root's counted."""
        return min(self.num_steps + 1, self.num_nodes)


class PlacedNodes(NamedTuple):
    """M nodes, numbered as they were placed; the root is 0."""

    token_ids: NDArray[np.int64]
    parents: NDArray[np.int64]
    ranks: NDArray[np.int64]
    depths: NDArray[np.int64]
    worths: NDArray[np.float64]
    """Logarithms."""


class TreeGrowth:
    """One tree in the making. Nodes are numbered as they are placed; the root is 0.

    Call `next_nodes`, run the draft on them and hand its candidates to `place_children`, until no node is left.
    """

    def __init__(self, limits: GrowthLimits, *, root_token_id: int, root_position: int = 0) -> None:
        """The root is the text's last token, at `root_position` from the text's first."""
        self._limits = limits
        self._root_position = root_position
        zero = np.zeros(1, dtype=np.int64)
        self.nodes = PlacedNodes(np.array([root_token_id]), zero - 1, zero, zero, np.zeros(1))
        self._kept = zero  # the N worthiest, ascending
        self.run = NO_NODES
        """(R,) nodes that the draft has run, in running order: the root first."""
        self._sight = np.zeros((0, 0), dtype=np.bool_)  # (R, R) in running order: [i, j] j is i or an ancestor of it
        self._num_steps = 0
        self._waiting = NO_NODES

    def next_nodes(self) -> NDArray[np.int64]:
        """Return the nodes (W,) to run now, their ancestors all run; empty when the tree is grown.

        The worthiest that were not run, of equals the ones placed first, in the order of their placing; only those that
        are worth enough, and once there are N nodes lead by enough.
        """
        limits, worths = self._limits, self.nodes.worths
        if self._num_steps >= limits.num_steps or limits.num_nodes == 1:
            return NO_NODES
        if not len(self._waiting):
            fresh = np.setdiff1d(self._kept, self.run)
            fresh = fresh[worths[fresh] >= self._least_worth()]
            order = np.argsort(-worths[fresh], kind="stable")
            width = limits.max_width
            if limits.max_run is not None:
                width = min(width, limits.max_run - len(self.run))
            self._waiting = np.sort(fresh[order[:width]])
        return self._waiting

    def _least_worth(self) -> float:
        """The logarithm of what a node must be worth to be run."""
        limits = self._limits
        least = np.log(limits.least_worth) if limits.least_worth > 0 else -np.inf
        if len(self._kept) < limits.num_nodes:
            return float(least)
        return float(max(least, self.nodes.worths[self._kept].min() + np.log(limits.least_lead)))

    def path_token_ids(self, node: int) -> list[int]:
        """Return the tokens of a node's path without the root's, its own last."""
        path = []
        while node > 0:
            path.append(int(self.nodes.token_ids[node]))
            node = int(self.nodes.parents[node])
        return path[::-1]

    def sight(self, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (W, R + W) which of the nodes run before, in running order, and of `nodes` each one attends to.

        Itself and its ancestors; `nodes` are what `next_nodes` gave.
        """
        num_run = len(self.run)
        seen = np.eye(len(nodes), num_run + len(nodes), k=num_run, dtype=np.bool_)
        if num_run:
            seen[:, :num_run] = self._sight[self._index_of_run[self.nodes.parents[nodes]]]
        return seen

    @property
    def _index_of_run(self) -> NDArray[np.int64]:
        """(M,) the place of each node in the running order, from 0 for the root; -1 if it was not run."""
        index = np.full(len(self.nodes.parents), -1, dtype=np.int64)
        index[self.run] = np.arange(len(self.run))
        return index

    def place_children(self, token_ids: ArrayLike, log_worths: ArrayLike) -> None:
        """Place the draft's candidates, both (W, B), below the nodes that `next_nodes` gave.

        `log_worths`: the logarithm of how likely each is the token that is emitted there, in the order of the ranks. A
        later rank counts as no likelier than the one before; -inf is no candidate.
        """
        nodes = self._waiting
        tokens, worths = np.asarray(token_ids, dtype=np.int64), np.asarray(log_worths, dtype=np.float64)
        assert tokens.shape == worths.shape == (len(nodes), tokens.shape[-1]), "as many candidates and worths for each"
        self._sight = np.vstack([np.pad(self._sight, ((0, 0), (0, len(nodes)))), self.sight(nodes)])
        self.run = np.append(self.run, nodes)
        self._num_steps += 1
        self._waiting = NO_NODES
        shares = np.minimum.accumulate(np.minimum(worths, 0.0), axis=1)
        self._keep_best(nodes, tokens, self.nodes.worths[nodes][:, None] + shares)

    def _keep_best(self, nodes: NDArray[np.int64], tokens: NDArray[np.int64], worths: NDArray[np.float64]) -> None:
        """Number those candidates (W, B) that belong to the N worthiest of all, and forget the others."""
        placed, num_kept = self.nodes, len(self._kept)
        everything = np.append(placed.worths[self._kept], worths)
        order = np.argsort(-everything, kind="stable")[: self._limits.num_nodes]
        order = np.sort(order[np.isfinite(everything[order])])
        rows, ranks = np.divmod(order[order >= num_kept] - num_kept, max(tokens.shape[1], 1))
        parents = nodes[rows]
        new = PlacedNodes(tokens[rows, ranks], parents, ranks + 1, placed.depths[parents] + 1, worths[rows, ranks])
        columns: list[NDArray[Any]] = [np.append(old, more) for old, more in zip(placed, new, strict=True)]
        self.nodes = PlacedNodes(*columns)
        numbers = len(placed.worths) + np.arange(len(rows))
        self._kept = np.append(self._kept[order[order < num_kept]], numbers)

    def finish(self) -> tuple[TokenTree, NDArray[np.int64]]:
        """Return the tree of the N worthiest nodes placed so far, fewer if there are not so many: M nodes.

        With it comes the order (M,) in which the draft ran each node, from 0 for the root; -1 if it did not.
        """
        placed = self.nodes
        order, topology = number_breadth_first(
            self._kept, parents=placed.parents, depths=placed.depths, ranks=placed.ranks
        )
        tree = TokenTree(topology, placed.token_ids[order], root_position=self._root_position)
        return tree, self._index_of_run[order]
