"""Adds branches that no draft has drawn to a tree of drafts: continuations that were looked up, for one.

Where a branch reads like the tree it shares the tree's nodes; behind that it grows nodes of its own, which are younger
siblings of the drawn ones. A drawn node keeps its rank, its elder siblings and its draft_probs. Grafted children have
no draft_probs: each is one fixed candidate, to be tried after the drawn ones against what they left of the target's
distribution P, accepted with probability P[x] and, if it is not, taken out: P[x] <- 0, renormalised. That is
verification against a draft that is sure of x, so it is exact whatever the branches are, as long as they do not depend
on what the target draws in this round. Following the target's own token needs no such care.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from runtime.speculation.token_tree import TokenTree, number_breadth_first


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens to add below a node of a drawn tree."""

    node: int
    """The node of the drawn tree that they follow."""
    token_ids: tuple[int, ...]
    """A chain, the node's child first."""


@dataclass(frozen=True, slots=True)
class GraftedTree:
    """A tree of drawn and grafted nodes, numbered breadth first like any other."""

    tree: TokenTree
    """The whole; among siblings the drawn ones come first, in drawing order."""
    drawn_nodes: NDArray[np.int64]
    """(N,) which node of the drawn tree each node was, -1 for a grafted one."""

    @classmethod
    def without_grafts(cls, tree: TokenTree) -> Self:
        """A tree as it was drawn."""
        return cls(tree, np.arange(tree.topology.num_nodes))

    @property
    def num_grafted(self) -> int:
        """Nodes that were not drawn."""
        return int(np.count_nonzero(self.drawn_nodes < 0))

    def num_drawn_children(self, node: int) -> int:
        """How many of the children of `node`, the first ones, were drawn."""
        children = self.tree.topology.children(node)
        return int(np.count_nonzero(self.drawn_nodes[children.start : children.stop] >= 0))

    def drawn_path(self, path: Sequence[int]) -> list[int]:
        """The drawn tree's own numbers of these nodes, -1 for grafted ones."""
        drawn: list[int] = self.drawn_nodes[list(path)].tolist()
        return drawn

    def drawn_ranks(self, path: Sequence[int], ranks: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """For each drawn node of an accepted path its accepted child's rank, 0 if that was not drawn or none was, and
        its number of drawn children.

        `ranks` are those of the accepted children, grafted ones included: only what the draft proposed is left in.
        """
        drawn = [node for node in path if self.drawn_nodes[node] >= 0]
        counts = tuple(map(self.num_drawn_children, drawn))
        own = zip(ranks[: len(drawn)], counts, strict=True)  # no drawn node stands below a grafted one
        return tuple(rank if rank <= count else 0 for rank, count in own), counts


def graft(tree: TokenTree, branches: Iterable[Branch], *, max_nodes: int, max_levels: int) -> GraftedTree:
    """The tree with the branches added in their order, each as far as `max_nodes` and `max_levels` let it.

    A tree that is at a limit or beyond it stays as it is. Every token of `tree` is known; it is not changed.
    """
    growth = _Growth(tree, max_nodes=max_nodes, max_levels=max_levels)
    for branch in branches:
        growth.add(branch)
    return growth.result() if growth.has_grown else GraftedTree.without_grafts(tree)


class _Growth:
    """A tree whose new nodes are numbered behind the old ones until it is finished."""

    def __init__(self, tree: TokenTree, *, max_nodes: int, max_levels: int) -> None:
        topology = tree.topology
        self._tree = tree
        self._max_nodes = max_nodes
        self._max_levels = max_levels
        self._token_ids: list[int] = tree.token_ids.tolist()
        self._parents: list[int] = topology.parents.tolist()
        self._depths: list[int] = topology.depths.tolist()
        self._ranks: list[int] = topology.ranks.tolist()
        self._children = [list(topology.children(node)) for node in range(topology.num_nodes)]

    @property
    def has_grown(self) -> bool:
        return len(self._token_ids) > self._tree.topology.num_nodes

    def add(self, branch: Branch) -> None:
        node: int | None = branch.node
        for token_id in branch.token_ids:
            assert node is not None
            node = self._child(node, token_id)
            if node is None:
                return

    def _child(self, parent: int, token_id: int) -> int | None:
        """The child of `parent` with this token, an old one or a new one; None if there is no room for it."""
        for child in self._children[parent]:
            if self._token_ids[child] == token_id:
                return child
        depth = self._depths[parent] + 1
        child = len(self._token_ids)
        if child >= self._max_nodes or depth >= self._max_levels:
            return None
        self._token_ids.append(token_id)
        self._parents.append(parent)
        self._depths.append(depth)
        self._ranks.append(len(self._children[parent]) + 1)
        self._children.append([])
        self._children[parent].append(child)
        return child

    def result(self) -> GraftedTree:
        drawn_nodes, topology = number_breadth_first(
            np.arange(len(self._token_ids)),
            parents=np.array(self._parents),
            depths=np.array(self._depths),
            ranks=np.array(self._ranks),
        )
        token_ids = np.array(self._token_ids, dtype=np.int64)[drawn_nodes]
        drawn_nodes[drawn_nodes >= self._tree.topology.num_nodes] = -1
        tree = TokenTree(topology, token_ids, root_position=self._tree.root_position)
        for node, drawn in enumerate(drawn_nodes.tolist()):
            if drawn in self._tree.draft_probs:
                tree.draft_probs[node] = self._tree.draft_probs[drawn]
                tree.drawn[node] = self._tree.drawn[drawn]  # grafted siblings stand behind, so the places are the same
        return GraftedTree(tree, drawn_nodes)
