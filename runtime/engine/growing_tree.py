"""A tree that the draft model grows, level by level: which nodes it runs next, and what their logits make of them.

Two kinds: one of planned shape, and one that takes its shape from how sure the draft is (`dynamic_tree`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from profiles.acceptance import log_chances
from runtime.config import SamplingParams
from runtime.engine.row_ranking import is_ranked_on_device, rank_on_device, rank_row_by_row
from runtime.planner.tree_choice import TreeShape
from runtime.speculation.dynamic_tree import GrowthLimits, TreeGrowth
from runtime.speculation.schemes import Candidates, Place, RankingScheme, Scheme
from runtime.speculation.token_tree import TokenTree, TreeTopology

NUM_CANDIDATES = 32
"""Of each node, for trees that take their shape from context; with so many the target's token was none in 0.6 %."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WantedTree:
    """A tree to be grown on a text's last token."""

    text: Sequence[int]
    shape: TreeShape
    """A topology, or what limits a tree that takes its shape from context."""
    params: SamplingParams
    scheme: Scheme
    """Places the children; one with scores where the shape is open."""
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    spread: float = 0.0
    """How far draft and target differ, in logits, see `profiles.acceptance`; for an open shape."""
    lane: int = 0
    """Of the draft's cache."""


class Level(NamedTuple):
    """What a forward of the draft needs to know of W nodes; K nodes, these the last, are run with it, no root."""

    token_ids: NDArray[np.int64]
    """(W,)"""
    depths: NDArray[np.int64]
    """(K,)"""
    sight: NDArray[np.bool_]
    """(W, K) which of them each one attends to."""


class GrowingTree(Protocol):
    """A tree in the making; run its `nodes`, give all of their rows to `place`, and `advance`, until none is left."""

    wanted: WantedTree
    nodes: NDArray[np.int64]
    """(W,) what runs next, the root alone first; empty when the tree is grown."""

    def level(self) -> Level:
        """Return what these nodes, which are not the root, need to run."""

    def place(self, part: slice, logits: torch.Tensor) -> None:
        """Choose the children of a part of the nodes, given their logits (P, V); parts come in order."""

    def advance(self) -> None:
        """Go on to the next nodes."""

    def finish(self) -> tuple[TokenTree, NDArray[np.int64]]:
        """Return the tree, and the order (N,) in which its nodes ran, 0 for the root; -1 for those that did not."""


def begin_tree(wanted: WantedTree) -> GrowingTree:
    """Return the tree in the making."""
    return _PlannedTree(wanted, wanted.shape) if isinstance(wanted.shape, TreeTopology) else _OpenTree(wanted)


class _PlannedTree:
    def __init__(self, wanted: WantedTree, topology: TreeTopology) -> None:
        self.wanted = wanted
        text = wanted.text
        self._tree = TokenTree.rooted(topology, root_token_id=text[-1], root_position=len(text) - 1)
        levels = (np.arange(*bounds)[topology.num_children[slice(*bounds)] > 0] for bounds in topology.level_slices)
        self._levels = [level for level in levels if len(level)]
        self._num_run = 0
        self.nodes = self._next()

    def _next(self) -> NDArray[np.int64]:
        return self._levels[self._num_run] if self._num_run < len(self._levels) else np.empty(0, dtype=np.int64)

    def level(self) -> Level:
        topology = self._tree.topology
        run = np.concatenate(self._levels[1 : self._num_run + 1])
        return Level(
            self._tree.token_ids[self.nodes], topology.depths[run], topology.ancestor_mask[np.ix_(self.nodes, run)]
        )

    def place(self, part: slice, logits: torch.Tensor) -> None:
        tree, wanted, nodes = self._tree, self.wanted, self.nodes[part].tolist()
        params, scheme, num_children = wanted.params, wanted.scheme, tree.topology.num_children
        if is_ranked_on_device(scheme, params, logits.device):
            positions = (tree.root_position + 1 + tree.topology.depths[nodes]).tolist()
            most = int(num_children[nodes].max())

            def places() -> list[Place]:
                return [Place.below(tree, node, params) for node in nodes]

            ranked = rank_on_device(scheme, logits, positions, places, params=params, num_candidates=most)
            for node, tokens in zip(nodes, ranked.token_ids, strict=True):
                tree.set_children(node, token_ids=tokens[: num_children[node]])
            return
        for node, row in zip(nodes, logits.numpy(force=True), strict=True):
            placed = scheme.place(row, int(num_children[node]), Place.below(tree, node, params), wanted.rng)
            tree.set_children(node, token_ids=placed.token_ids, draft_probs=placed.draft_probs, drawn=placed.drawn)

    def advance(self) -> None:
        self._num_run += 1
        self.nodes = self._next()

    def finish(self) -> tuple[TokenTree, NDArray[np.int64]]:
        order = np.full(self._tree.topology.num_nodes, -1, dtype=np.int64)
        if self._num_run:
            run = np.concatenate(self._levels[: self._num_run])
            order[run] = np.arange(len(run))
        return self._tree, order


class _OpenTree:
    def __init__(self, wanted: WantedTree) -> None:
        assert isinstance(wanted.shape, GrowthLimits), "a shape that is not planned has limits"
        assert isinstance(wanted.scheme, RankingScheme), "the planner was told which schemes have scores"
        self.wanted = wanted
        self._scheme: RankingScheme = wanted.scheme
        text = wanted.text
        self._growth = TreeGrowth(wanted.shape, root_token_id=text[-1], root_position=len(text) - 1)
        self._count = min(NUM_CANDIDATES, max(1, wanted.shape.num_nodes - 1))
        self._ranked: list[Candidates] = []
        self.nodes = self._growth.next_nodes()

    def level(self) -> Level:
        growth = self._growth
        run = np.append(growth.run[1:], self.nodes)
        return Level(growth.nodes.token_ids[self.nodes], growth.nodes.depths[run], growth.sight(self.nodes)[:, 1:])

    def place(self, part: slice, logits: torch.Tensor) -> None:
        growth, params, num_text = self._growth, self.wanted.params, len(self.wanted.text)
        nodes = self.nodes[part]

        def places() -> list[Place]:
            paths = map(growth.path_token_ids, nodes.tolist())
            return [Place(params, num_text + len(path), tuple(path)) for path in paths]

        if is_ranked_on_device(self._scheme, params, logits.device):
            positions = (num_text + growth.nodes.depths[nodes]).tolist()
            found = rank_on_device(self._scheme, logits, positions, places, params=params, num_candidates=self._count)
        else:
            found = rank_row_by_row(self._scheme, logits, places(), num_candidates=self._count)
        self._ranked.append(found)

    def advance(self) -> None:
        token_ids = np.concatenate([one.token_ids for one in self._ranked])
        scores = np.concatenate([one.scores for one in self._ranked])
        self._ranked.clear()
        self._growth.place_children(token_ids, log_chances(scores, spread=self.wanted.spread))
        self.nodes = self._growth.next_nodes()

    def finish(self) -> tuple[TokenTree, NDArray[np.int64]]:
        return self._growth.finish()
