"""The shape of a tree of candidate tokens, and a tree with its tokens filled in.

Nodes are numbered breadth first from the root, so a level is a slice and siblings lie side by side. Words and numbering
follow Sequoia (arXiv 2402.12374).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TreeTopology:
    """The shape of a tree of N nodes, numbered breadth first; two topologies are equal if their parents are.

    Raises ValueError if `parents` is not a breadth-first numbering. All arrays are read-only.
    """

    parents: NDArray[np.int64]
    """(N,) the parent of each node, -1 for the root; never decreasing."""
    ranks: NDArray[np.int64] = field(init=False, repr=False)
    """(N,) 1 for the first child of its parent, 2 for the second, 0 for the root."""
    depths: NDArray[np.int64] = field(init=False, repr=False)
    """(N,) edges from the root; 0 for the root."""
    num_children: NDArray[np.int64] = field(init=False, repr=False)
    level_slices: tuple[tuple[int, int], ...] = field(init=False, repr=False)
    """(start, stop) node indices of every level, the root's level first."""
    ancestor_mask: NDArray[np.bool_] = field(init=False, repr=False)
    """(N, N) [i, j] is true if node j is node i or an ancestor of it."""
    _first_children: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parents = np.array(self.parents, dtype=np.int64)
        _check_breadth_first(parents)
        num_nodes = len(parents)
        num_children = np.bincount(parents[1:], minlength=num_nodes)
        first_children = 1 + np.cumsum(num_children) - num_children
        ranks = np.arange(num_nodes) - first_children[parents] + 1
        ranks[0] = 0
        level_slices = _level_slices(parents)
        depths = np.repeat(np.arange(len(level_slices)), [stop - start for start, stop in level_slices])
        arrays = {
            "parents": parents,
            "ranks": ranks,
            "depths": depths,
            "num_children": num_children,
            "ancestor_mask": _ancestor_mask(parents, level_slices),
            "_first_children": first_children,
        }
        for name, values in arrays.items():
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        object.__setattr__(self, "level_slices", level_slices)

    @classmethod
    def chain(cls, num_nodes: int) -> Self:
        """Make a root with one line of descendants: speculation without branches."""
        if num_nodes < 1:
            raise ValueError(f"a chain has 1 node or more, found {num_nodes}")
        return cls(np.arange(-1, num_nodes - 1))

    @classmethod
    def single(cls) -> Self:
        """Make the root alone: plain decoding, one token per pass."""
        return cls.chain(1)

    @property
    def num_nodes(self) -> int:
        return len(self.parents)

    @property
    def num_levels(self) -> int:
        """Levels of nodes, the root's included: draft forwards per round."""
        return len(self.level_slices)

    def children(self, node: int) -> range:
        """Return the children of a node in drawing order: rank 1 first."""
        start = int(self._first_children[node])
        return range(start, start + int(self.num_children[node]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeTopology) and np.array_equal(self.parents, other.parents)

    def __hash__(self) -> int:
        return hash(self.parents.tobytes())


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A topology, the token at each node, and the draft's distributions that the tokens were drawn from."""

    topology: TreeTopology
    token_ids: NDArray[np.int64]
    """(N,) the token at each node; filled in place while the tree grows."""
    draft_probs: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """For each node with drawn children the row (V,) that they were drawn from."""
    drawn: dict[int, range] = field(default_factory=dict)
    """For each node with drawn children which of them are drawn, from 0; the others may be any tokens."""
    root_position: int = 0
    """Tokens of the text before the root's."""

    @classmethod
    def rooted(cls, topology: TreeTopology, *, root_token_id: int, root_position: int = 0) -> Self:
        """Make a tree of which only the root's token is known; the others read -1."""
        token_ids = np.full(topology.num_nodes, -1, dtype=np.int64)
        token_ids[0] = root_token_id
        return cls(topology, token_ids, root_position=root_position)

    def set_children(
        self,
        node: int,
        *,
        token_ids: ArrayLike,
        draft_probs: NDArray[np.float32] | None = None,
        drawn: range | None = None,
    ) -> None:
        """Put tokens, rank 1 first, at the children of `node`, with the row (V,) that the `drawn` of them came from.

        With a row and without `drawn` all of them are drawn; without a row none is.
        """
        children = self.topology.children(node)
        tokens = np.asarray(token_ids, dtype=np.int64)
        if tokens.shape != (len(children),):
            raise ValueError(f"node {node} has {len(children)} children, found {tokens.size} tokens for them")
        self.token_ids[children.start : children.stop] = tokens
        if draft_probs is not None:
            self.draft_probs[node] = draft_probs
            self.drawn[node] = range(len(tokens)) if drawn is None else drawn

    def path_token_ids(self, node: int) -> NDArray[np.int64]:
        """Return the tokens from the root to `node`, both included, shape (depth + 1,)."""
        token_ids: NDArray[np.int64] = self.token_ids[self.topology.ancestor_mask[node]]
        return token_ids


def number_breadth_first(
    nodes: NDArray[np.int64], *, parents: NDArray[np.int64], depths: NDArray[np.int64], ranks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], TreeTopology]:
    """Return the order (N,) in which a tree numbers `nodes` (N,), the root among them, and its topology.

    `parents`, `depths` and `ranks` (M,) belong to some other numbering, by which nodes and parents are named: the order
    in which a tree grew, say. Every node's parent is in the tree. Ranks, which order siblings, may have gaps.
    """
    numbers = np.zeros(len(parents), dtype=np.int64)  # other number -> breadth-first number
    order, new_parents = [nodes[depths[nodes] == 0]], [np.array([-1])]
    num_numbered = 1
    for depth in range(1, int(depths[nodes].max()) + 1):
        level = nodes[depths[nodes] == depth]
        level_parents = numbers[parents[level]]
        by_parent = np.lexsort((ranks[level], level_parents))
        numbers[level[by_parent]] = num_numbered + np.arange(len(level))
        num_numbered += len(level)
        order.append(level[by_parent])
        new_parents.append(level_parents[by_parent])
    return np.concatenate(order), TreeTopology(np.concatenate(new_parents))


def _check_breadth_first(parents: NDArray[np.int64]) -> None:
    if parents.ndim != 1 or not len(parents) or parents[0] != -1:
        raise ValueError("parents must be a vector that starts with the root's -1")
    later = parents[1:]
    if (later < 0).any() or (later > np.arange(len(later))).any():
        raise ValueError("every node but the root needs a parent that is numbered before it")
    if (np.diff(later) < 0).any():
        raise ValueError("nodes must be numbered breadth first: parents may not decrease")


def _level_slices(parents: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    slices = [(0, 1)]
    while (start := slices[-1][1]) < len(parents):
        # Parents never decrease, so the next level ends before the first node whose parent lies in it.
        slices.append((start, int(np.searchsorted(parents, start))))
    return tuple(slices)


def _ancestor_mask(parents: NDArray[np.int64], level_slices: tuple[tuple[int, int], ...]) -> NDArray[np.bool_]:
    mask = np.eye(len(parents), dtype=np.bool_)  # (N, N)
    for start, stop in level_slices[1:]:
        mask[start:stop, :start] = mask[parents[start:stop], :start]
    return mask
