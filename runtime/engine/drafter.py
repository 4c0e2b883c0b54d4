"""Grows the tree of drafts level by level with a small resident model: its nodes that have children run, leaves never.

An accepted leaf is fed again, as part of the next round's first forward. The verification scheme says which tokens
become children. Greedy candidates are the largest logits, coupled ones the largest of logits / T + noise: a sum and a
top-k on the device, and a few numbers a row cross to the processor; on an accelerator filters are applied to the
likeliest tokens before. Whatever else shapes a distribution is evaluated row by row with the scheme's own function.
Ties may fall otherwise, and a far tail is left out: that changes proposals, never what is emitted.
"""

import math
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
from runtime.events import LevelDrafted
from runtime.model.pass_shapes import most_ranked
from runtime.model.streamed_model import PassInput, StreamedModel, chain_input
from runtime.model.upload import upload
from runtime.speculation.dynamic_tree import GrowthLimits, TreeGrowth
from runtime.speculation.sampling import NUCLEUS_TOLERANCE
from runtime.speculation.schemes import Candidates, Coupled, Greedy, Place, RankingScheme, Scheme, position_noise
from runtime.speculation.token_tree import TokenTree, TreeTopology

NUM_FILTERED = 1024
"""Tokens of a row that filters look at on an accelerator; a nucleus that is larger has hardly a chance of being met."""
_Nodes = TypeVar("_Nodes", list[int], NDArray[np.int64])
_DROPPED = -1e4
"""Below every score in logits, and from here on downwards by likelihood: tokens that a filter drops."""
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
        while len(nodes := growth.next_nodes()):
            begun = time.perf_counter()
            inputs = self._growth_input(growth, nodes) if self.step_seconds else self._text_input(text)

            def place(nodes: NDArray[np.int64], logits: torch.Tensor) -> None:
                if is_ranked_on_device(scheme, params, logits.device):
                    positions = (len(text) + growth.nodes.depths[nodes]).tolist()
                    ranked = rank_on_device(scheme, logits, positions, params=params, num_candidates=count)
                else:
                    paths = map(growth.path_token_ids, nodes.tolist())
                    places = [Place(params, len(text) + len(path), tuple(path)) for path in paths]
                    ranked = rank_row_by_row(scheme, logits, places, num_candidates=count)
                growth.place_children(ranked.token_ids, log_chances(ranked.scores, spread=spread))

            yield self._step(inputs, nodes, place, at_once=len(nodes), begun=begun)
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
        best = rank_on_device(scheme, logits, positions, params=params, num_candidates=most).token_ids
        for node, tokens in zip(nodes, best, strict=True):
            tree.set_children(node, token_ids=tokens[: num_children[node]])
        return
    for node, row in zip(nodes, logits.numpy(force=True), strict=True):
        placed = scheme.place(row, int(num_children[node]), Place.below(tree, node, params), rng)
        tree.set_children(node, token_ids=placed.token_ids, draft_probs=placed.draft_probs, drawn=placed.drawn)


def is_ranked_on_device(scheme: Scheme, params: SamplingParams, device: torch.device) -> bool:
    """Return whether no row has to leave the device; a temperature of almost 0 is left to the scheme.

    A processor ranks filtered rows faster itself: its topk of a vocabulary takes longer than a row's own way.
    """
    is_whole = params.top_k == 0 and params.top_p == 1 and params.min_p == 0
    is_coupled = isinstance(scheme, Coupled) and params.temperature > 1e-3
    return isinstance(scheme, Greedy) or (is_coupled and (is_whole or device.type != "cpu"))


def rank_on_device(
    scheme: Scheme, logits: torch.Tensor, positions: Sequence[int], *, params: SamplingParams, num_candidates: int
) -> Candidates:
    """Return the first `num_candidates` candidates (W, B), at most the vocabulary, from logits (W, V).

    `positions` (W,) are those of the tokens to be chosen. `is_ranked_on_device` must say so. Where a filter keeps more
    than NUM_FILTERED tokens, those are all that can be proposed.
    """
    scores, token_ids = logits.float(), None
    if isinstance(scheme, Coupled):
        if params.top_k or params.top_p < 1 or params.min_p > 0:
            scores, token_ids = _filtered(scores, params, num_tokens=max(num_candidates, NUM_FILTERED))
        scores = scores + _scaled_noise(scheme, positions, params.temperature, logits, token_ids)
        if token_ids is not None:  # behind what is kept the likeliest others, as `fill_up` has them
            order = torch.arange(scores.shape[-1], device=scores.device)
            scores = torch.where(scores == -torch.inf, _DROPPED - order, scores)
    best = scores.topk(min(num_candidates, logits.shape[-1]), dim=-1)  # (W, B)
    values = best.values.masked_fill(best.values <= _DROPPED, -torch.inf)
    chosen = best.indices if token_ids is None else token_ids.gather(1, best.indices)
    packed = torch.stack((values.view(torch.int32), chosen.to(torch.int32)))  # crosses in one copy
    scores_on_host, indices = packed.numpy(force=True)
    return Candidates(indices.astype(np.int64), scores_on_host.view(np.float32))


def _filtered(logits: torch.Tensor, params: SamplingParams, *, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T log Q (W, C) of the likeliest tokens, and which these are, as `logits_to_probs` would keep them.

    The largest is 0 and what a filter drops -inf. `num_tokens`: how many are looked at, of which top-p keeps the
    smallest set whose share of the whole distribution reaches it.
    """
    is_top_k = 0 < params.top_k < logits.shape[-1]
    top = logits.topk(min(num_tokens, logits.shape[-1]), dim=-1)
    kept = top.values - top.values[:, :1]
    if is_top_k:
        kept[:, params.top_k :] = -torch.inf
    if params.top_p < 1:
        rest = kept if is_top_k and params.top_k <= num_tokens else logits - top.values[:, :1]
        shares = (kept / params.temperature - (rest / params.temperature).logsumexp(-1, keepdim=True)).exp()
        before = shares.cumsum(-1) - shares
        kept = kept.masked_fill(before >= params.top_p - NUCLEUS_TOLERANCE, -torch.inf)
        kept[:, 0] = 0
    if params.min_p > 0:
        kept = kept.masked_fill(kept < params.temperature * math.log(params.min_p), -torch.inf)
    return kept, top.indices


def rank_row_by_row(
    scheme: RankingScheme, logits: torch.Tensor, places: Sequence[Place], *, num_candidates: int
) -> Candidates:
    """Return what `rank_on_device` does for any scheme that has scores, with logits (W, V) at `places` (W,)."""
    num_candidates = min(num_candidates, logits.shape[-1])
    rows = zip(logits.numpy(force=True), places, strict=True)
    ranked = [scheme.rank(row, num_candidates, place) for row, place in rows]
    return Candidates(np.stack([one.token_ids for one in ranked]), np.stack([one.scores for one in ranked]))


def _scaled_noise(
    scheme: Coupled,
    positions: Sequence[int],
    temperature: float,
    logits: torch.Tensor,
    token_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Return T * noise (W, V), or that of `token_ids` (W, C), where the logits are; nodes of one depth share theirs."""
    known = sorted(set(positions))
    noise = np.stack([position_noise(scheme.seed, position, logits.shape[-1]) for position in known])  # (positions, V)
    rows = np.array([known.index(position) for position in positions])
    shared, index = upload((noise, rows), logits.device)
    if token_ids is None:
        return shared.index_select(0, index) * temperature
    return shared[index[:, None], token_ids] * temperature
