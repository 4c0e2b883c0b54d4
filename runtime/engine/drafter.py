"""Grows the tree of drafts level by level with a small resident model: its nodes that have children run, leaves never.

An accepted leaf is fed again, as part of the next round's first forward. The verification scheme says which tokens
become children, on the device where it can (`row_ranking`).
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from profiles.acceptance import log_chances
from runtime.config import SamplingParams
from runtime.engine.row_ranking import is_ranked_on_device, rank_on_device, rank_row_by_row
from runtime.events import LevelDrafted
from runtime.model.pass_shapes import most_ranked
from runtime.model.streamed_model import PassInput, StreamedModel, chain_input
from runtime.speculation.dynamic_tree import GrowthLimits, TreeGrowth
from runtime.speculation.schemes import Candidates, Place, RankingScheme, Scheme
from runtime.speculation.token_tree import TokenTree, TreeTopology

_Nodes = TypeVar("_Nodes", list[int], NDArray[np.int64])
NUM_CANDIDATES = 32
"""Of each node, for trees that take their shape from context; with so many the target's token was none in 0.6 %."""


class Drafter:
    """A draft model and how far its cache has followed the text."""

    def __init__(self, model: StreamedModel, *, target_vocab_size: int) -> None:
        """`target_vocab_size` V: the target's logits; either model may have padding rows that the other lacks."""
        self.model = model
        """The draft model; after running it elsewhere, leave its cache as it was or roll the drafter back."""
        self.num_committed = 0
        """Tokens of the text whose keys and values the draft holds for good."""
        self._target_vocab_size = target_vocab_size
        self._slots: dict[int, int] = {}
        self.step_seconds: list[tuple[int, float]] = []
        """(width, seconds) of every draft forward of the last tree."""
        self.placing_seconds = 0.0
        """Of the last tree, choosing children from logits; on an accelerator the forward is waited for here."""

    def grow(
        self,
        text: Sequence[int],
        topology: TreeTopology,
        *,
        params: SamplingParams,
        rng: np.random.Generator,
        scheme: Scheme,
    ) -> Generator[LevelDrafted, None, TokenTree]:
        """Yield an event per level and return the tree, its children placed by `scheme`, on the text's last token."""
        self._begin_tree()
        tree = TokenTree.rooted(topology, root_token_id=text[-1], root_position=len(text) - 1)
        for start, stop in topology.level_slices:
            nodes = [node for node in range(start, stop) if topology.num_children[node]]
            if nodes:
                begun = time.perf_counter()
                inputs = self._level_input(tree, nodes) if self.step_seconds else self._text_input(text)
                place = partial(_place_level, tree, scheme=scheme, params=params, rng=rng)
                yield self._step(inputs, nodes, place, at_once=most_ranked(topology.num_nodes), begun=begun)
        return tree

    def grow_in_context(
        self,
        text: Sequence[int],
        limits: GrowthLimits,
        *,
        params: SamplingParams,
        scheme: RankingScheme,
        spread: float,
    ) -> Generator[LevelDrafted, None, TokenTree]:
        """Yield an event per step and last a tree of the likeliest nodes that these limits allow, see `dynamic_tree`.

        `spread`: how far draft and target differ, in logits, see `profiles.acceptance`.
        """
        self._begin_tree()
        growth = TreeGrowth(limits, root_token_id=text[-1], root_position=len(text) - 1)
        count = min(NUM_CANDIDATES, max(1, limits.num_nodes - 1))
        ranked: list[Candidates] = []

        def place(part: NDArray[np.int64], logits: torch.Tensor) -> None:
            def places() -> list[Place]:
                paths = map(growth.path_token_ids, part.tolist())
                return [Place(params, len(text) + len(path), tuple(path)) for path in paths]

            if is_ranked_on_device(scheme, params, logits.device):
                positions = (len(text) + growth.nodes.depths[part]).tolist()
                found = rank_on_device(scheme, logits, positions, places, params=params, num_candidates=count)
            else:
                found = rank_row_by_row(scheme, logits, places(), num_candidates=count)
            ranked.append(found)
            if part[-1] == growth.next_nodes()[-1]:  # the last part
                token_ids = np.concatenate([one.token_ids for one in ranked])
                scores = np.concatenate([one.scores for one in ranked])
                ranked.clear()
                growth.place_children(token_ids, log_chances(scores, spread=spread))

        while len(nodes := growth.next_nodes()):
            begun = time.perf_counter()
            inputs = self._growth_input(growth, nodes) if self.step_seconds else self._text_input(text)
            yield self._step(inputs, nodes, place, at_once=most_ranked(limits.num_nodes), begun=begun)
        tree, run_index = growth.finish()
        first_slot = self.num_committed - 1  # the root's
        self._slots = {node: first_slot + index for node, index in enumerate(run_index.tolist()) if index >= 0}
        return tree

    def _begin_tree(self) -> None:
        self.step_seconds, self.placing_seconds = [], 0.0
        self._slots = {}

    def _step(
        self,
        inputs: PassInput,
        nodes: _Nodes,
        place: Callable[[_Nodes, torch.Tensor], None],
        *,
        at_once: int,
        begun: float,
    ) -> LevelDrafted:
        """Run a pass whose last tokens are these nodes of a level, and place their children, so many `at_once`."""
        hidden = self._run(inputs)[-len(nodes) :]
        if not self.step_seconds:
            self.num_committed = self.model.cache.num_cached  # the text; the first pass ends with the root
        for start in range(0, len(nodes), at_once):
            part = slice(start, start + at_once)
            logits = self.fit_vocabulary(self.model.logits(hidden[part]))  # (W, target's V)
            run = time.perf_counter()
            place(nodes[part], logits)
            self.placing_seconds += time.perf_counter() - run
            del logits  # before the next part's are computed
        self.step_seconds.append((len(inputs.token_ids), time.perf_counter() - begun))
        return LevelDrafted(level=len(self.step_seconds) - 1, width=len(nodes))

    def follow(self, text: Sequence[int], *, chunk_tokens: int) -> None:
        """Run the text in chunks until fewer than `chunk_tokens` tokens are left for the next tree's first forward."""
        self.roll_back()
        while len(text) - self.num_committed > chunk_tokens:
            stop = self.num_committed + chunk_tokens
            inputs = chain_input(text[self.num_committed : stop], num_cached=self.num_committed)
            self._run(inputs, is_prefill=True)
            self.num_committed = stop

    def _run(self, inputs: PassInput, *, is_prefill: bool = False) -> torch.Tensor:
        known = replace(inputs, token_ids=np.minimum(inputs.token_ids, self.model.vocab_size - 1))
        return self.model.run_pass(known, is_prefill=is_prefill)

    def fit_vocabulary(self, logits: torch.Tensor) -> torch.Tensor:
        """Bring logits (W, draft's V) to (W, target's V): tokens that only one of the two knows are never proposed."""
        num_missing = self._target_vocab_size - logits.shape[-1]
        return F.pad(logits, (0, num_missing), value=-torch.inf) if num_missing else logits

    def _text_input(self, text: Sequence[int]) -> PassInput:
        self.roll_back()
        num_cached = self.num_committed
        self._slots[0] = len(text) - 1
        return chain_input(text[num_cached:], num_cached=num_cached)

    def _level_input(self, tree: TokenTree, nodes: Sequence[int]) -> PassInput:
        topology = tree.topology
        num_cached = self.model.cache.num_cached
        self._slots.update({node: num_cached + i for i, node in enumerate(nodes)})
        drafted = [node for node in self._slots if node != 0]  # in slot order
        sight = topology.ancestor_mask[np.ix_(nodes, drafted)]
        return self._tree_input(tree.token_ids[nodes], topology.depths[drafted], sight)

    def _growth_input(self, growth: TreeGrowth, nodes: NDArray[np.int64]) -> PassInput:
        drafted = np.append(growth.run[1:], nodes)  # the root is part of the text
        return self._tree_input(growth.nodes.token_ids[nodes], growth.nodes.depths[drafted], growth.sight(nodes)[:, 1:])

    def _tree_input(
        self, token_ids: NDArray[np.int64], depths: NDArray[np.int64], sight: NDArray[np.bool_]
    ) -> PassInput:
        """Return the pass over the last W of the K nodes at `depths`; `sight` (W, K): which of them each one sees."""
        positions = np.append(np.arange(self.num_committed), self.num_committed - 1 + depths).astype(np.int64)
        return PassInput(token_ids, positions[-len(token_ids) :], positions, sight)

    def commit(self, path: Sequence[int]) -> None:
        """Keep the accepted path (nodes from the root) as far as the draft has run it, and forget the rest.

        Nodes that do not belong to the grown tree are -1.
        """
        slots = [self._slots[node] for node in path[1:] if node in self._slots]
        self.model.cache.compact(self.num_committed, slots)
        self.num_committed += len(slots)
        self._slots = {}

    def roll_back(self, num_tokens: int | None = None) -> None:
        """Forget everything uncommitted, and everything behind `num_tokens` if given."""
        if num_tokens is not None:
            self.num_committed = min(self.num_committed, num_tokens)
        self.model.cache.truncate(self.num_committed)
        self._slots = {}


def _place_level(
    tree: TokenTree,
    nodes: Sequence[int],
    logits: torch.Tensor,
    *,
    scheme: Scheme,
    params: SamplingParams,
    rng: np.random.Generator,
) -> None:
    """Give the nodes of a level their children: row i of the logits (W, V) belongs to nodes[i]."""
    num_children = tree.topology.num_children
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
        placed = scheme.place(row, int(num_children[node]), Place.below(tree, node, params), rng)
        tree.set_children(node, token_ids=placed.token_ids, draft_probs=placed.draft_probs, drawn=placed.drawn)
