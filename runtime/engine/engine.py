"""The round loop: grow a tree of drafts, verify it in one streamed pass, keep the accepted path (Sequoia, section 3).

Continuations that the text itself holds are grafted onto the tree where that is wanted. A generator of events: the text
so far and both caches agree whenever an event is yielded; closing the generator at any event, or an error in any pass,
rolls both caches back to the last commit.
"""

import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from offload.memory import explained_shortage
from runtime.config import MAX_TREE_LEVELS, PREFILL_CHUNK_TOKENS, SCHEMES_IN_CONTEXT, SamplingParams
from runtime.engine.drafter import Drafter
from runtime.errors import OptionError
from runtime.events import Event, PrefillProgress, Round
from runtime.model.streamed_model import LazyLogits, PassInput, StreamedModel, chain_input
from runtime.planner.planner import TreePlanner
from runtime.planner.prefill import PrefillPlanner
from runtime.planner.tree_choice import TreeShape
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.logit_processors import LogitProcessor, TextRules
from runtime.speculation.lookup import GraftedTree, graft, lookup_branches
from runtime.speculation.schemes import AdjustedRows, RankingScheme, Scheme, scheme_for
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.verifier import Verdict, verify


@dataclass(frozen=True, slots=True)
class _Choosing:
    params: SamplingParams
    rng: np.random.Generator
    processor: LogitProcessor
    scheme: Scheme


@dataclass(slots=True)
class Engine:
    """A target, an optional drafter, and the text that both caches follow."""

    target: StreamedModel
    """The model whose distribution the text has."""
    drafter: Drafter | None
    """Proposes trees; None is plain decoding."""
    planner: TreePlanner
    """Chooses each round's topology and learns what rounds cost."""
    prefill: PrefillPlanner
    """Chooses how much of a prompt each pass computes."""
    context_tokens: int
    """The text may not grow beyond this many tokens."""
    text: list[int] = field(default_factory=list)
    """Prompt and accepted tokens; its last token is the next root."""
    num_graft_nodes: int = 0
    """Nodes that looked-up branches may add to a tree of drafts; 0 looks nothing up."""
    num_committed: int = 0
    """Tokens of the text whose keys and values the target holds."""
    bytes_streamed: int = 0
    """Bytes that have crossed the link in all passes so far, in both directions."""

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        rng: np.random.Generator,
        *,
        rules: TextRules | None = None,
    ) -> Generator[Event, None, None]:
        """Decode behind `prompt` for as long as the consumer asks and the context lasts; `prompt` is not empty.

        Penalties count what is emitted from here on as the answer. Raises OptionError if a banned or forced token is
        none of the target's.
        """
        processor = LogitProcessor(params, prompt=prompt, vocab_size=self.target.vocab_size, rules=rules)
        self.set_text(prompt)
        self._begin_planning(params)
        scheme = scheme_for(params)
        if not processor.is_idle:
            scheme = AdjustedRows(scheme, processor)
        choosing = _Choosing(params, rng, processor, scheme)
        try:
            with explained_shortage("a pass over the model"):
                yield from self._prefill()
                while (room := self.context_tokens - len(self.text)) > 0:
                    yield from self._round(choosing, max_levels=room)
        finally:
            self.roll_back()

    def _begin_planning(self, params: SamplingParams) -> None:
        can_grow_in_context = params.scheme_name in SCHEMES_IN_CONTEXT
        if self.planner.kind == "dynamic" and not can_grow_in_context:
            raise OptionError(
                f"verification is {params.scheme_name} and the tree dynamic, whose shape depends on what is drawn; "
                f"such trees need {' or '.join(SCHEMES_IN_CONTEXT)}: give --verification coupled, or another --tree"
            )
        self.planner.use_temperature(
            params.temperature, can_grow_in_context=can_grow_in_context, num_text_tokens=len(self.text)
        )

    def _round(self, choosing: _Choosing, *, max_levels: int) -> Iterator[Event]:
        """Run one round of Sequoia: grow a tree, verify it in one streamed pass, keep the accepted path."""
        shape = self.planner.shape(max_levels=max_levels, loading_seconds=self.target.loading_seconds)
        laps = [time.perf_counter()]
        drawn = yield from self._draft(shape, choosing)  # level by level, the draft alone
        grafted = self._graft(drawn, max_levels=max_levels)  # plus continuations that the text itself holds
        tree = grafted.tree
        laps.append(time.perf_counter())
        inputs = verify_input(self.text, tree, num_cached=self.num_committed)
        # Every streamed layer crosses the link once: (N, E).
        hidden = self._run_target(inputs, num_wanted=tree.topology.num_nodes)
        if len(self.text) - self.num_committed > 1:  # the end of a prompt
            self.prefill.observe(len(inputs.token_ids), self.target.last_pass)
        logits = LazyLogits(self.target, hidden, tree.topology)
        laps.append(time.perf_counter())
        verdict = verify(tree, logits.row, choosing.params, choosing.rng, scheme=choosing.scheme)  # from the root down
        laps.append(time.perf_counter())
        emitted = self._commit(grafted, verdict)  # both caches keep the path, in place
        choosing.processor.accept(emitted)
        laps.append(time.perf_counter())
        done = self._record(grafted, verdict, laps, num_pass_tokens=len(inputs.token_ids), shape=shape)
        self.planner.observe(done)
        yield done

    def _prefill(self) -> Iterator[Event]:
        """Run all of the prompt but what its last pass computes, which is the first round's; the draft reads along."""
        while (chunk := self._next_chunk()) < len(self.text) - self.num_committed:
            stop = self.num_committed + chunk
            inputs = chain_input(self.text[self.num_committed : stop], num_cached=self.num_committed)
            self._run_target(inputs, num_wanted=1)
            self.prefill.observe(chunk, self.target.last_pass)
            self.num_committed = stop
            self._let_draft_follow(stop)
            yield self.prefill_progress(self.num_committed, len(self.text))
        self._let_draft_follow(len(self.text))

    def _next_chunk(self) -> int:
        """Return how many tokens of the prompt the next pass computes; all that are left share it with a tree."""
        return self.prefill.next_tokens(len(self.text) - self.num_committed, self.planner.costs)

    def prefill_progress(self, num_done: int, num_prompt: int) -> PrefillProgress:
        """Return how far the prompt is, how much the next pass computes, and how long the rest is believed to take."""
        costs, num_left = self.planner.costs, num_prompt - num_done
        tree = self.planner.choice
        tree_seconds = 0.0 if tree is None else tree.draft_seconds
        return PrefillProgress(
            num_done_tokens=num_done,
            num_prompt_tokens=num_prompt,
            num_pass_tokens=self.prefill.next_tokens(num_left, costs),
            expected_seconds=self.prefill.expected_seconds(num_left, costs, draft_seconds=tree_seconds),
        )

    def _let_draft_follow(self, num_tokens: int) -> None:
        if self.drafter is not None:
            begun, num_before = time.perf_counter(), self.drafter.num_committed
            self.drafter.follow(self.text[:num_tokens], chunk_tokens=PREFILL_CHUNK_TOKENS)
            self.prefill.observe_reading(self.drafter.num_committed - num_before, time.perf_counter() - begun)

    def _draft(self, shape: TreeShape, choosing: _Choosing) -> Generator[Event, None, TokenTree]:
        text, params, scheme = self.text, choosing.params, choosing.scheme
        if self.drafter is None:
            return TokenTree.rooted(TreeTopology.single(), root_token_id=text[-1], root_position=len(text) - 1)
        if isinstance(shape, TreeTopology):
            return (yield from self.drafter.grow(text, shape, params=params, rng=choosing.rng, scheme=scheme))
        assert isinstance(scheme, RankingScheme), "the planner was told which schemes have scores"
        spread = self.planner.spread
        return (yield from self.drafter.grow_in_context(text, shape, params=params, scheme=scheme, spread=spread))

    def _graft(self, tree: TokenTree, *, max_levels: int) -> GraftedTree:
        """Add the branches that were found to the tree, as far as caches, logits and context have room for them.

        A root alone stays so: it was chosen because every node costs more than it brings.
        """
        can_graft = self.num_graft_nodes > 0 and tree.topology.num_nodes > 1
        return graft(
            tree,
            lookup_branches(self.text, tree) if can_graft else [],
            max_nodes=tree.topology.num_nodes + self.num_graft_nodes,
            max_levels=min(max_levels, MAX_TREE_LEVELS),
        )

    def _run_target(self, inputs: PassInput, *, num_wanted: int) -> torch.Tensor:
        hidden = self.target.run_pass(inputs, num_wanted=num_wanted)
        self.bytes_streamed += self.target.last_pass.link_bytes
        return hidden

    def _commit(self, grafted: GraftedTree, verdict: Verdict) -> list[int]:
        """Keep the accepted path in both caches, and return what the round emitted, which is part of the text now."""
        root_slot = len(self.text) - 1
        self.target.cache.compact(root_slot, [root_slot + node for node in verdict.path])
        self.num_committed = root_slot + len(verdict.path)
        if self.drafter is not None:
            self.drafter.commit(grafted.drawn_nodes[list(verdict.path)].tolist())
        emitted = verdict.emitted_token_ids(grafted.tree)
        self.text += emitted
        return emitted

    def _record(
        self, grafted: GraftedTree, verdict: Verdict, laps: Sequence[float], *, num_pass_tokens: int, shape: TreeShape
    ) -> Round:
        """Return the round just committed; `laps`: its start, and the ends of draft, pass, walk and commit."""
        begun, drafted, passed, walked, committed = laps
        accepted_ranks, num_children = grafted.drawn_ranks(verdict.path, verdict.accepted_ranks)
        return Round(
            parents=tuple(grafted.tree.topology.parents.tolist()),
            path=verdict.path,
            draft_seconds=drafted - begun,
            verify_seconds=committed - drafted,
            pass_statistics=self.target.last_pass,
            num_pass_tokens=num_pass_tokens,
            draft_steps=() if self.drafter is None else tuple(self.drafter.step_seconds),
            placing_seconds=0.0 if self.drafter is None else self.drafter.placing_seconds,
            walk_seconds=walked - passed,
            accepted_ranks=accepted_ranks,
            num_children=num_children,
            num_grafted=grafted.num_grafted,
            is_in_context=isinstance(shape, GrowthLimits),
            token_ids=tuple(self.text[-len(verdict.path) :]),
        )

    def num_shared(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of `prompt` the text begins with, its last one apart."""
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self.text, prompt[:-1], strict=False))
        return sum(1 for _ in same)

    def set_text(self, prompt: Sequence[int]) -> None:
        """Make `prompt` the text; what both caches hold of a common prefix is kept."""
        self.truncate(self.num_shared(prompt))
        self.text = list(prompt)

    def truncate(self, num_tokens: int) -> None:
        """Shorten the text, and both caches with it."""
        del self.text[num_tokens:]
        self.num_committed = min(self.num_committed, num_tokens)
        self.roll_back()

    def roll_back(self) -> None:
        """Forget what either cache holds beyond the committed text."""
        self.target.cache.truncate(self.num_committed)
        if self.drafter is not None:
            self.drafter.roll_back(len(self.text))


def verify_input(text: Sequence[int], tree: TokenTree, *, num_cached: int) -> PassInput:
    """Return the pass over text[num_cached:] and the tree on its last token: T = len(text) - num_cached + N - 1."""
    topology = tree.topology
    num_text = len(text)
    num_pending = num_text - num_cached
    num_tokens = num_pending + topology.num_nodes - 1
    token_ids = np.concatenate([np.asarray(text[num_cached:], dtype=np.int64), tree.token_ids[1:]])
    key_positions = np.concatenate([np.arange(num_text), num_text - 1 + topology.depths[1:]]).astype(np.int64)
    sight = np.zeros((num_tokens, topology.num_nodes - 1), dtype=np.bool_)
    sight[num_pending:] = topology.ancestor_mask[1:, 1:]
    return PassInput(token_ids, key_positions[num_cached:], key_positions, sight)
