"""A tree that takes its shape while it grows: the N nodes that are likeliest to be reached in this context.

A static tree fixes how many children the child of each rank has, from averages; here a node's worth is the product of
what the draft says, on this very path, about every token of it. Each draft step runs the worthiest nodes that are not
run yet, whatever their depth, and of all that was ever placed the N worthiest stay. Which nodes stand in the tree then
depends on the draft, so verification must not: greedy decoding, or noise that draft and target share. It is the
best-first growth of Sequoia's trees (arXiv 2402.12374, 4.1), by context.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.speculation.token_tree import TokenTree, number_breadth_first

NO_NODES = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class GrowthLimits:
    """What a tree may cost. Raises ValueError for limits that no tree keeps."""

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

    def __post_init__(self) -> None:
        is_too_small = self.num_nodes < 1 or self.num_steps < 0 or self.max_width < 1 or self.least_lead < 1
        if is_too_small or (self.max_run is not None and self.max_run < 1):
            raise ValueError(
                f"a tree has 1 node or more, steps of 1 node or more and a lead of 1 or more, found {self.num_nodes} "
                f"nodes, {self.num_steps} steps of {self.max_width} and {self.least_lead}"
            )


class TreeGrowth:
    """One tree in the making. Nodes are numbered as they are placed; the root is 0.

    Call `next_nodes`, run the draft on them and hand its candidates to `place_children`, until no node is left.
    """

    def __init__(self, limits: GrowthLimits, *, root_token_id: int, root_position: int = 0) -> None:
        """The root is the text's last token, at `root_position` from the text's first."""
        self._limits = limits
        self._root_position = root_position
        self._token_ids = np.array([root_token_id], dtype=np.int64)
        self._parents = np.array([-1], dtype=np.int64)
        self._ranks = np.zeros(1, dtype=np.int64)
        self._depths = np.zeros(1, dtype=np.int64)
        self._worths = np.zeros(1)  # logarithms
        self._run_index = np.full(1, -1, dtype=np.int64)
        self._kept = np.zeros(1, dtype=np.int64)  # the N worthiest, ascending
        self._sight = np.zeros((0, 0), dtype=np.bool_)  # (R, R) by run index: [i, j] j is i or an ancestor of it
        self._num_steps = 0
        self._waiting = NO_NODES

    def next_nodes(self) -> NDArray[np.int64]:
        """Return the nodes (W,) to run now, their ancestors all run; empty when the tree is grown.

        The worthiest that were not run, of equals the ones placed first, in the order of their placing; only those that
        are worth enough, and once there are N nodes lead by enough.
        """
        if self._num_steps >= self._limits.num_steps or self._limits.num_nodes == 1:
            return NO_NODES
        if not len(self._waiting):
            fresh = self._kept[(self._run_index[self._kept] < 0) & (self._worths[self._kept] >= self._least_worth())]
            order = np.argsort(-self._worths[fresh], kind="stable")
            limits, num_run = self._limits, len(self._sight)
            width = limits.max_width if limits.max_run is None else min(limits.max_width, limits.max_run - num_run)
            self._waiting = np.sort(fresh[order[:width]])
        return self._waiting

    def _least_worth(self) -> float:
        """The logarithm of what a node must be worth to be run."""
        limits = self._limits
        least = np.log(limits.least_worth) if limits.least_worth > 0 else -np.inf
        if len(self._kept) < limits.num_nodes:
            return float(least)
        return float(max(least, self._worths[self._kept].min() + np.log(limits.least_lead)))

    def token_ids(self, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the token at each node, (W,)."""
        return self._token_ids[nodes]

    def depths(self, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the edges from the root to each node, (W,)."""
        return self._depths[nodes]

    def path_token_ids(self, node: int) -> list[int]:
        """Return the tokens of a node's path without the root's, its own last."""
        path = []
        while node > 0:
            path.append(int(self._token_ids[node]))
            node = int(self._parents[node])
        return path[::-1]

    @property
    def run_depths(self) -> NDArray[np.int64]:
        """(R,) the depth of every node that was run, in running order: the root's first."""
        depths = np.empty(len(self._sight), dtype=np.int64)
        is_run = self._run_index >= 0
        depths[self._run_index[is_run]] = self._depths[is_run]
        return depths

    def sight(self, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (W, R + W) which of the nodes run before, in running order, and of `nodes` each one attends to.

        Itself and its ancestors; `nodes` are what `next_nodes` gave.
        """
        seen = np.zeros((len(nodes), len(self._sight) + len(nodes)), dtype=np.bool_)
        if len(self._sight):
            seen[:, : len(self._sight)] = self._sight[self._run_index[self._parents[nodes]]]
        seen[:, len(self._sight) :] = np.eye(len(nodes), dtype=np.bool_)
        return seen

    def place_children(self, token_ids: ArrayLike, log_worths: ArrayLike) -> None:
        """Place the draft's candidates, both (W, B), below the nodes that `next_nodes` gave.

        `log_worths`: the logarithm of how likely each is the token that is emitted there, in the order of the ranks. A
        later rank counts as no likelier than the one before; -inf is no candidate. Raises ValueError for other shapes.
        """
        nodes = self._waiting
        tokens, worths = np.asarray(token_ids, dtype=np.int64), np.asarray(log_worths, dtype=np.float64)
        if tokens.ndim != 2 or tokens.shape != worths.shape or len(tokens) != len(nodes) or not len(nodes):
            raise ValueError(
                f"{len(nodes)} nodes were run, each of which needs as many candidates as worths, found "
                f"{tokens.shape} tokens and {worths.shape} worths"
            )
        seen = self.sight(nodes)
        num_run = len(self._sight)
        self._sight = np.vstack([np.pad(self._sight, ((0, 0), (0, len(nodes)))), seen])
        self._run_index[nodes] = num_run + np.arange(len(nodes))
        self._num_steps += 1
        self._waiting = NO_NODES
        shares = np.minimum.accumulate(np.minimum(worths, 0.0), axis=1)
        self._keep_best(nodes, tokens, self._worths[nodes][:, None] + shares)

    def _keep_best(self, nodes: NDArray[np.int64], tokens: NDArray[np.int64], worths: NDArray[np.float64]) -> None:
        """Number those candidates (W, B) that belong to the N worthiest of all, and forget the others."""
        num_kept, num_placed = len(self._kept), len(self._worths)
        everything = np.concatenate([self._worths[self._kept], worths.ravel()])
        order = np.argsort(-everything, kind="stable")[: self._limits.num_nodes]
        order = np.sort(order[np.isfinite(everything[order])])
        new = order[order >= num_kept] - num_kept
        rows, columns = np.divmod(new, max(tokens.shape[1], 1))
        self._token_ids = np.append(self._token_ids, tokens[rows, columns])
        self._parents = np.append(self._parents, nodes[rows])
        self._ranks = np.append(self._ranks, columns + 1)
        self._depths = np.append(self._depths, self._depths[nodes[rows]] + 1)
        self._worths = np.append(self._worths, worths[rows, columns])
        self._run_index = np.append(self._run_index, np.full(len(new), -1))
        self._kept = np.concatenate([self._kept[order[order < num_kept]], num_placed + np.arange(len(new))])

    def finish(self) -> tuple[TokenTree, NDArray[np.int64]]:
        """Return the tree of the N worthiest nodes placed so far, fewer if there are not so many: M nodes.

        With it comes the order (M,) in which the draft ran each node, from 0 for the root; -1 if it did not.
        """
        nodes, topology = number_breadth_first(
            self._kept, parents=self._parents, depths=self._depths, ranks=self._ranks
        )
        tree = TokenTree(topology, self._token_ids[nodes], root_position=self._root_position)
        return tree, self._run_index[nodes]
