"""Grows trees of drafts level by level with a small resident model: nodes that have children run, leaves never.

An accepted leaf is fed again, as part of the next round's first forward. Trees of several texts grow side by side: one
level of all of them is one forward.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F

from runtime.engine.growing_tree import GrowingTree, WantedTree, begin_tree
from runtime.events import LevelDrafted
from runtime.model.pass_shapes import most_ranked
from runtime.model.streamed_model import PassInput, StreamedModel, chain_input
from runtime.speculation.token_tree import TokenTree


@dataclass(slots=True)
class _Lane:
    """How far a lane of the draft's cache has followed its text, and where the nodes of its last tree are."""

    num_committed: int = 0
    slots: dict[int, int] = field(default_factory=dict)
    border: int | None = None
    """See `PassInput`."""

    def hold(self, num_tokens: int) -> None:
        """Note that its text has been run so far, and nothing behind."""
        self.num_committed, self.slots = num_tokens, {}


class Drafter:
    """A draft model and how far its cache has followed the texts, each in a lane of its own."""

    def __init__(self, model: StreamedModel, *, target_vocab_size: int) -> None:
        """`target_vocab_size` V: the target's logits; either model may have padding rows that the other lacks."""
        self.model = model
        """The draft model; after running it elsewhere, leave its cache as it was or roll the drafter back."""
        self._target_vocab_size = target_vocab_size
        self._lanes = [_Lane() for _ in range(model.cache.num_lanes)]
        self.step_seconds: list[tuple[int, float]] = []
        """(width, seconds) of every draft forward of the last trees."""
        self.placing_seconds = 0.0
        """Of the last trees, choosing children from logits; on an accelerator the forward is waited for here."""

    @property
    def num_committed(self) -> int:
        """Tokens of the first lane's text whose keys and values the draft holds for good."""
        return self.num_committed_in(0)

    def num_committed_in(self, lane: int) -> int:
        """Return how many tokens of a lane's text the draft holds for good."""
        return self._lanes[lane].num_committed

    def grow(self, wanted: Sequence[WantedTree]) -> Generator[LevelDrafted, None, list[TokenTree]]:
        """Yield an event per level of all trees together, and return the trees, each on its text's last token."""
        self.step_seconds, self.placing_seconds = [], 0.0
        trees = [begin_tree(each) for each in wanted]
        begun_lanes: set[int] = set()
        at_once = most_ranked(sum(each.shape.num_nodes for each in wanted))
        while growing := [tree for tree in trees if len(tree.nodes)]:
            begun = time.perf_counter()
            inputs = [self._input(tree, is_first=tree.wanted.lane not in begun_lanes) for tree in growing]
            counts = [len(tree.nodes) for tree in growing]
            hidden = self._run(inputs, counts)
            for tree in growing:
                if tree.wanted.lane not in begun_lanes:  # the first pass ends with the root, the last token of the text
                    self._lanes[tree.wanted.lane].num_committed = len(tree.wanted.text)
                    begun_lanes.add(tree.wanted.lane)
            self._place(growing, torch.cat(hidden), at_once=at_once)
            for tree in growing:
                tree.advance()
            self.step_seconds.append((sum(part.num_tokens for part in inputs), time.perf_counter() - begun))
            yield LevelDrafted(level=len(self.step_seconds) - 1, width=sum(counts))
        return [self._finish(tree) for tree in trees]

    def _place(self, growing: Sequence[GrowingTree], hidden: torch.Tensor, *, at_once: int) -> None:
        """Choose children from the hidden states (W, E) of all nodes that were run, so many nodes `at_once`."""
        ends = list(accumulate(len(tree.nodes) for tree in growing))
        for start in range(0, len(hidden), at_once):
            logits = self.fit_vocabulary(self.model.logits(hidden[start : start + at_once]))  # (P, target's V)
            run = time.perf_counter()
            for tree, end in zip(growing, ends, strict=True):
                first = end - len(tree.nodes)
                part = slice(max(start, first) - first, min(start + at_once, end) - first)
                if part.start < part.stop:
                    tree.place(part, logits[first + part.start - start : first + part.stop - start])
            self.placing_seconds += time.perf_counter() - run
            del logits  # before the next part's are computed

    def _finish(self, tree: GrowingTree) -> TokenTree:
        grown, run_order = tree.finish()
        root_slot = len(tree.wanted.text) - 1
        slots = {node: root_slot + place for node, place in enumerate(run_order.tolist()) if place >= 0}
        self._lanes[tree.wanted.lane].slots = slots
        return grown

    def expect(self, border: int, *, lane: int = 0) -> None:
        """Note how many tokens of a lane's next prompt later ones may begin with."""
        self._lanes[lane].border = border

    def follow(self, text: Sequence[int], *, chunk_tokens: int, num_left: int | None = None, lane: int = 0) -> None:
        """Run the text in chunks until at most `num_left` tokens, 1 or more, are left for the next tree's forward.

        None: so many as a chunk has.
        """
        self.roll_back(lane=lane)
        state, most = self._lanes[lane], chunk_tokens if num_left is None else num_left
        while (num_pending := len(text) - state.num_committed) > most:
            stop = state.num_committed + min(chunk_tokens, num_pending - min(most, 1))
            inputs = chain_input(text[state.num_committed : stop], num_cached=state.num_committed, lane=lane)
            self._run([inputs], [inputs.num_tokens], is_prefill=True)
            state.num_committed = stop

    def share(self, num_tokens: int, *, source: int, lane: int) -> None:
        """Let a lane begin with what another one holds of its first `num_tokens` tokens, if that is more."""
        held = min(num_tokens, self._lanes[source].num_committed)
        if (held := self.model.cache.reachable(held, lane=source)) > self._lanes[lane].num_committed:
            self._lanes[lane].hold(held)
            self.model.cache.copy(held, source=source, lane=lane)

    def restore(self, start: int, num_tokens: int, content: torch.Tensor, *, lane: int = 0) -> None:
        """Let a lane hold tokens that were run before, behind its first `start`; see `StreamedModel.restore`."""
        self.roll_back(start, lane=lane)
        self.model.restore(start, num_tokens, content, lane=lane)
        self._lanes[lane].num_committed = start + num_tokens

    def count_restored(self, num_tokens: int, *, lane: int = 0) -> None:
        """Note that a lane of the model holds so many tokens, which were run before."""
        self._lanes[lane].hold(num_tokens)

    def _run(
        self, inputs: Sequence[PassInput], num_wanted: Sequence[int], *, is_prefill: bool = False
    ) -> list[torch.Tensor]:
        last = self.model.vocab_size - 1
        known = [
            replace(part, token_ids=np.minimum(part.token_ids, last), border=self._lanes[part.lane].border)
            for part in inputs
        ]
        return self.model.run_batch(known, num_wanted=num_wanted, is_prefill=is_prefill)

    def fit_vocabulary(self, logits: torch.Tensor) -> torch.Tensor:
        """Bring logits (W, draft's V) to (W, target's V): tokens that only one of the two knows are never proposed."""
        num_missing = self._target_vocab_size - logits.shape[-1]
        return F.pad(logits, (0, num_missing), value=-torch.inf) if num_missing else logits

    def _input(self, tree: GrowingTree, *, is_first: bool) -> PassInput:
        wanted, lane = tree.wanted, self._lanes[tree.wanted.lane]
        if is_first:
            self.roll_back(len(wanted.text) - 1, lane=wanted.lane)  # its root is run again where the last pass failed
            start = lane.num_committed
            return chain_input(wanted.text[start:], num_cached=start, lane=wanted.lane)
        level, num_text = tree.level(), lane.num_committed
        positions = np.append(np.arange(num_text), num_text - 1 + level.depths).astype(np.int64)
        return PassInput(level.token_ids, positions[-len(level.token_ids) :], positions, level.sight, wanted.lane)

    def commit(self, path: Sequence[int], *, lane: int = 0) -> None:
        """Keep the accepted path (nodes from the root) as far as the draft has run it, and forget the rest.

        Nodes that do not belong to the grown tree are -1.
        """
        state = self._lanes[lane]
        slots = [state.slots[node] for node in path[1:] if node in state.slots]
        self.model.cache.compact(state.num_committed, slots, lane=lane)
        state.num_committed += len(slots)
        state.slots = {}

    def roll_back(self, num_tokens: int | None = None, *, lane: int = 0) -> None:
        """Forget everything uncommitted of a lane, and everything behind `num_tokens` if given."""
        state = self._lanes[lane]
        if num_tokens is not None:
            state.num_committed = min(state.num_committed, num_tokens)
        state.num_committed = self.model.cache.truncate(state.num_committed, lane=lane)
        state.slots = {}
