"""The round loop: grow trees of drafts, verify them in one streamed pass, keep the accepted paths (Sequoia, section 3).

One pass verifies the tree of every text that is being decoded, and reads on in the prompts of those that have just
begun; a single conversation is the case of one text. Continuations that a text itself holds are grafted onto its tree
where that is wanted. A generator of events: texts and caches agree whenever an event is yielded; closing the generator
at any event, or an error in any pass, rolls both caches back to the last commit.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from offload.memory import explained_shortage
from runtime.config import MAX_TREE_LEVELS, PREFILL_CHUNK_TOKENS, SCHEMES_IN_CONTEXT, SamplingParams
from runtime.engine.drafter import Drafter
from runtime.engine.growing_tree import WantedTree
from runtime.engine.kept_prefixes import KeptPrefixes, Outlook
from runtime.engine.token_sequence import LEAST_SHARED, Choosing, TokenSequence
from runtime.errors import OptionError
from runtime.events import Event, PrefillProgress, Round
from runtime.model.streamed_model import LazyLogits, PassInput, StreamedModel, chain_input
from runtime.planner.planner import TreePlanner
from runtime.planner.prefill import PrefillPlanner
from runtime.planner.tree_choice import TreeShape
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.grammar import AnswerGrammar
from runtime.speculation.logit_bias import BiasedRows
from runtime.speculation.logit_processors import LogitProcessor, TextRules
from runtime.speculation.lookup import GraftedTree, forced_branches, graft, lookup_branches
from runtime.speculation.schemes import AdjustedRows, scheme_for
from runtime.speculation.thinking import ThinkingRules
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.verifier import Verdict, verify

StepEvent = tuple[TokenSequence, Event]


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A text's part in a pass."""

    sequence: TokenSequence
    start: int
    """Tokens that are cached when it is computed."""
    num_read: int
    """Tokens of the text, behind these, that it computes: of a text that is decoded its last one."""
    is_ready: bool
    """Whether they end the text, so that a tree stands on them."""
    shared: tuple[int, int] | None
    """See `PassInput`."""

    @property
    def lane(self) -> int:
        return self.sequence.lane

    @property
    def choosing(self) -> Choosing:
        assert self.sequence.choosing is not None, "only what is being decoded has a place in a pass"
        return self.sequence.choosing

    def inputs(self, tree: TokenTree | None) -> PassInput:
        """Return what the pass computes: with the text's tree, if it is ready."""
        text = self.sequence.text
        if tree is not None:
            inputs = verify_input(text, tree, num_cached=self.start)
        else:
            inputs = chain_input(text[self.start : self.start + self.num_read], num_cached=self.start)
        return replace(inputs, lane=self.lane, shared=self.shared, border=self.sequence.border)


@dataclass(frozen=True, slots=True, eq=False)
class _Growing:
    """A text whose tree is verified in a pass."""

    place: _Place
    shape: TreeShape
    grafted: GraftedTree

    @property
    def tree(self) -> TokenTree:
        return self.grafted.tree

    def walk(self, logits: LazyLogits) -> Verdict:
        """Walk from the root down as far as the target's logits accept, and choose the token after it."""
        choosing = self.place.choosing
        return verify(
            self.tree,
            logits.row,
            choosing.params,
            choosing.rng,
            scheme=choosing.scheme,
            top_logprobs=choosing.top_logprobs,
        )


@dataclass(slots=True)
class Engine:
    """A target, an optional drafter, and the texts that both caches follow."""

    target: StreamedModel
    """The model whose distribution the texts have."""
    drafter: Drafter | None
    """Proposes trees; None is plain decoding."""
    planner: TreePlanner
    """Chooses the trees' topology and learns what rounds cost."""
    prefill: PrefillPlanner
    """Chooses how much of prompts each pass computes."""
    context_tokens: int
    """No text may grow beyond this many tokens."""
    num_graft_nodes: int = 0
    """Nodes that looked-up branches may add to a tree of drafts; 0 looks nothing up."""
    bytes_streamed: int = 0
    """Bytes that have crossed the link in all passes so far, in both directions."""
    prefixes: KeptPrefixes | None = None
    """What earlier sessions have computed of texts, and what this one keeps for later ones; None: nothing."""
    sequences: list[TokenSequence] = field(init=False)
    """By lane; the first is the one of a conversation."""
    _planners: dict[tuple[float, bool], TreePlanner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sequences = [TokenSequence(lane) for lane in range(self.target.cache.num_lanes)]

    @property
    def text(self) -> list[int]:
        """The first lane's prompt and accepted tokens; the last token is the next root."""
        return self.sequences[0].text

    @property
    def num_committed(self) -> int:
        """Tokens of the first lane's text whose keys and values the target holds."""
        return self.sequences[0].num_committed

    def generate(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        rng: np.random.Generator,
        *,
        rules: TextRules | None = None,
    ) -> Generator[Event, None, None]:
        """Decode behind `prompt`, alone, for as long as the consumer asks and the context lasts.

        `prompt` is not empty. Penalties count what is emitted from here on as the answer. Raises OptionError if a
        banned or forced token is none of the target's.
        """
        sequence = self.begin(prompt, params, rng, rules=rules)
        try:
            while self.has_room(sequence):
                for _, event in self.step([sequence]):
                    yield event
        finally:
            self.end(sequence)

    def begin(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        rng: np.random.Generator,
        *,
        rules: TextRules | None = None,
        lane: int = 0,
        top_logprobs: int | None = None,
        grammar: AnswerGrammar | None = None,
        thinking: ThinkingRules | None = None,
        logit_bias: Sequence[tuple[int, float]] = (),
        border: int | None = None,
    ) -> TokenSequence:
        """Make `prompt` the text of a lane, which no other answer uses, to be decoded by the next steps.

        What the lane's caches hold of it is kept. `top_logprobs` and `logit_bias`: see `PromptRequest`; `grammar` holds
        the answer to its schema, `thinking` what it thinks before. `border`: how many of its tokens later prompts may
        begin with; None: all. Raises OptionError as `generate` does.
        """
        processor = LogitProcessor(
            params,
            prompt=prompt,
            vocab_size=self.target.vocab_size,
            rules=rules,
            grammar=grammar,
            thinking=thinking,
        )
        sequence = self.sequences[lane]
        self._keep_prefixes([sequence])  # what did not find room before
        self.set_text(prompt, lane=lane)
        sequence.border = len(prompt) if border is None else border
        if self.drafter is not None:
            self.drafter.expect(sequence.border, lane=lane)
        if self.prefixes is not None:
            self.prefixes.begin(sequence)
        scheme = scheme_for(params)
        if logit_bias:
            scheme = AdjustedRows(scheme, BiasedRows(processor, logit_bias, vocab_size=self.target.vocab_size))
        elif not processor.is_idle:
            scheme = AdjustedRows(scheme, processor)
        planner = self._planner_for(params, num_text_tokens=len(prompt))
        sequence.choosing = Choosing(params, rng, processor, scheme, planner, top_logprobs)
        return sequence

    def end(self, sequence: TokenSequence) -> None:
        """Let a lane's answer be over; its text stays, for what begins like it."""
        sequence.choosing = None
        self.roll_back(lane=sequence.lane)

    def has_room(self, sequence: TokenSequence) -> bool:
        """Return whether the context has room for more of a text."""
        return len(sequence.text) < self.context_tokens

    def _planner_for(self, params: SamplingParams, *, num_text_tokens: int) -> TreePlanner:
        """Return the planner of these answers' temperature: while others are decoded at another one, one of its own."""
        can_grow_in_context = params.scheme_name in SCHEMES_IN_CONTEXT
        if self.planner.kind == "dynamic" and not can_grow_in_context:
            raise OptionError(
                f"verification is {params.scheme_name} and the tree dynamic, whose shape depends on what is drawn; "
                f"such trees need {' or '.join(SCHEMES_IN_CONTEXT)}: give --verification coupled, or another --tree"
            )
        key = (params.temperature, can_grow_in_context)
        is_alone = all(other.choosing is None for other in self.sequences)
        if is_alone or self._planners.get(key) is self.planner:
            planner = self.planner
        else:
            planner = self._planners.get(key) or self.planner.sibling()
        if is_alone:
            self._planners.clear()
        self._planners[key] = planner
        planner.use_temperature(
            params.temperature, can_grow_in_context=can_grow_in_context, num_text_tokens=num_text_tokens
        )
        return planner

    def step(self, sequences: Sequence[TokenSequence]) -> Generator[StepEvent, None, None]:
        """Run one pass for all of these texts: a round for each, or for a long prompt more of its reading.

        A text that waits for the room of others' prompts, or for what it shares with them, has no part in it.
        """
        with explained_shortage("a pass over the model"):
            yield from self._bring_prefixes(sequences)
            yield from self._run_step(self._share_out(sequences))
            self._keep_prefixes(sequences)

    def _bring_prefixes(self, sequences: Sequence[TokenSequence]) -> Iterator[StepEvent]:
        """Read what the store holds of prompts that have just begun, and that no other lane holds as much of."""
        if self.prefixes is None:
            return
        for sequence in sequences:
            if sequence.num_pending <= 1 or self._source_of(sequence, sequences)[0] is not None:
                continue
            with closing(self.prefixes.bring(sequence, self.planner.costs)) as outlooks:
                for outlook in outlooks:
                    yield sequence, self._progress_behind(outlook, len(sequence.text))

    def _keep_prefixes(self, sequences: Sequence[TokenSequence]) -> None:
        if self.prefixes is not None:
            for sequence in sequences:
                self.prefixes.keep(sequence)

    def _share_out(self, sequences: Sequence[TokenSequence]) -> list[_Place]:
        """Return the part of each text in the next pass, in an order in which none needs what a later one computes."""
        sources = {sequence.lane: self._source_of(sequence, sequences) for sequence in sequences}
        unread = sum(
            len(sequence.text) - sources[sequence.lane][1] for sequence in sequences if sequence.num_pending > 1
        )
        room = self.prefill.next_tokens(unread, self.planner.costs) if unread else 0
        num_cached = {sequence.lane: sequence.num_committed for sequence in self.sequences}
        places = []
        for sequence in sequences:
            source, start = sources[sequence.lane]
            if source is not None and num_cached[source] < start:
                continue
            num_pending = len(sequence.text) - start
            num_read = num_pending
            if sequence.num_pending > 1:
                num_read = min(num_pending, room)
                room -= num_read
                if not num_read:
                    continue
            num_cached[sequence.lane] = start + num_read
            shared = None if source is None else (source, start)
            places.append(_Place(sequence, start, num_read, is_ready=num_read == num_pending, shared=shared))
        return places

    def _source_of(self, sequence: TokenSequence, sequences: Sequence[TokenSequence]) -> tuple[int | None, int]:
        """Return the lane that holds more of a new prompt's beginning than its own, or will, and how many tokens.

        None, and what its own lane holds, where no other does.
        """
        best: int | None = None
        num_tokens = sequence.num_committed
        if sequence.num_pending <= 1:
            return best, num_tokens
        is_before = True
        for other in [*sequences, *(each for each in self.sequences if each not in sequences)]:
            if other is sequence:
                is_before = False
                continue
            num_shared = other.num_shared(sequence.text)
            cache = self.target.cache
            # Of a state nothing can be taken while the very pass computes it: it may be further by then.
            if other.choosing is None or not is_before or other not in sequences or cache.recurrent:
                num_shared = cache.reachable(min(num_shared, other.num_committed), lane=other.lane)
            if num_shared >= num_tokens + LEAST_SHARED:
                best, num_tokens = other.lane, num_shared
        return best, num_tokens

    def _run_step(self, places: Sequence[_Place]) -> Iterator[StepEvent]:
        """Grow a tree for each text whose prompt ends here, run the pass, and keep what it accepts."""
        laps = [time.perf_counter()]
        growing = yield from self._grow([place for place in places if place.is_ready], places)
        laps.append(time.perf_counter())
        trees = {each.place.lane: each.tree for each in growing}
        inputs = [place.inputs(trees.get(place.lane)) for place in places]
        num_wanted = [trees[place.lane].topology.num_nodes if place.is_ready else 1 for place in places]
        hidden = self._run_target(places, inputs, num_wanted)  # every streamed layer crosses the link once
        laps.append(time.perf_counter())
        num_pass_tokens = sum(part.num_tokens for part in inputs)
        if any(place.num_read > 1 for place in places):
            self.prefill.observe(num_pass_tokens, self.target.last_pass)
        by_lane = {place.lane: states for place, states in zip(places, hidden, strict=True)}
        rows = LazyLogits.of_texts(self.target, [(by_lane[each.place.lane], each.tree.topology) for each in growing])
        verdicts = [each.walk(logits) for each, logits in zip(growing, rows, strict=True)]
        laps.append(time.perf_counter())
        for each, verdict in zip(growing, verdicts, strict=True):
            self._commit(each, verdict)  # both caches keep the path, in place
        laps.append(time.perf_counter())
        if growing:
            yield from self._rounds(growing, verdicts, laps, num_pass_tokens=num_pass_tokens)
        for place in places:
            if not place.is_ready:
                yield place.sequence, self._keep_read(place)  # last, as the draft can fail in it

    def _grow(self, ready: Sequence[_Place], places: Sequence[_Place]) -> Generator[StepEvent, None, list[_Growing]]:
        """Grow a tree on each of these texts, the draft alone, all levels side by side."""
        loading_seconds = self.target.loading_seconds
        shapes = [
            place.choosing.planner.shape(
                max_levels=self.context_tokens - len(place.sequence.text),
                loading_seconds=loading_seconds,
                num_texts=len(ready),
            )
            for place in ready
        ]
        trees = yield from self._draft(ready, shapes, places)
        return [
            _Growing(place, shape, self._graft(place, tree))
            for place, shape, tree in zip(ready, shapes, trees, strict=True)
        ]

    def _draft(
        self, ready: Sequence[_Place], shapes: Sequence[TreeShape], places: Sequence[_Place]
    ) -> Generator[StepEvent, None, list[TokenTree]]:
        texts = [place.sequence.text for place in ready]
        if self.drafter is None:
            return [
                TokenTree.rooted(TreeTopology.single(), root_token_id=text[-1], root_position=len(text) - 1)
                for text in texts
            ]
        begun = [
            place
            for place, text in zip(ready, texts, strict=True)
            if place.num_read > 1 or len(text) - self.drafter.num_committed_in(place.lane) > PREFILL_CHUNK_TOKENS
        ]
        sources = {place.shared[0] for place in places if place.shared is not None}
        for place in begun:
            num_left = 1 if place.lane in sources else max(1, PREFILL_CHUNK_TOKENS // len(begun))
            self._let_draft_follow(place, len(place.sequence.text), num_left=num_left)
        wanted = [
            WantedTree(
                text=text,
                shape=shape,
                params=place.choosing.params,
                scheme=place.choosing.scheme,
                rng=place.choosing.rng,
                spread=place.choosing.planner.spread,
                lane=place.lane,
            )
            for place, text, shape in zip(ready, texts, shapes, strict=True)
        ]
        growing = self.drafter.grow(wanted)
        while True:
            try:
                level = next(growing)
            except StopIteration as done:
                trees: list[TokenTree] = done.value
                return trees
            for place in ready:
                yield place.sequence, level

    def _let_draft_follow(self, place: _Place, num_tokens: int, *, num_left: int | None = None) -> None:
        """Let the draft read along with the first `num_tokens` tokens of a text."""
        if self.drafter is None:
            return
        lane, text = place.lane, place.sequence.text
        if place.shared is not None and place.shared[1] > self.drafter.num_committed_in(lane):
            self.drafter.share(place.shared[1], source=place.shared[0], lane=lane)
        begun, num_before = time.perf_counter(), self.drafter.num_committed_in(lane)
        self.drafter.follow(text[:num_tokens], chunk_tokens=PREFILL_CHUNK_TOKENS, num_left=num_left, lane=lane)
        self.prefill.observe_reading(self.drafter.num_committed_in(lane) - num_before, time.perf_counter() - begun)

    def _graft(self, place: _Place, tree: TokenTree) -> GraftedTree:
        """Add continuations that rules force or the text holds, as far as caches, logits and context have room.

        A root alone stays so: it was chosen because every node costs more than it brings.
        """
        branches, text = [], place.sequence.text
        if self.num_graft_nodes > 0 and tree.topology.num_nodes > 1:
            branches = forced_branches(tree, place.choosing.processor) + lookup_branches(text, tree)
        return graft(
            tree,
            branches,
            max_nodes=tree.topology.num_nodes + self.num_graft_nodes,
            max_levels=min(self.context_tokens - len(text), MAX_TREE_LEVELS),
        )

    def _run_target(
        self, places: Sequence[_Place], inputs: Sequence[PassInput], num_wanted: Sequence[int]
    ) -> list[torch.Tensor]:
        """Return the last hidden states of the wanted tokens of each text, (N, E)."""
        hidden = self.target.run_batch(inputs, num_wanted=num_wanted)
        self.bytes_streamed += self.target.last_pass.link_bytes
        for place in places:
            place.sequence.bytes_streamed += self.target.last_pass.link_bytes / len(places)
        return hidden

    def _keep_read(self, place: _Place) -> PrefillProgress:
        """Keep what a pass has read of a long prompt, and return how far it is; the draft reads along."""
        sequence = place.sequence
        sequence.num_cached += place.start - sequence.num_committed  # what another lane had
        sequence.num_committed = place.start + place.num_read
        self._let_draft_follow(place, sequence.num_committed)
        return self.prefill_progress(sequence.num_committed, len(sequence.text))

    def _commit(self, each: _Growing, verdict: Verdict) -> None:
        """Keep the accepted path in both caches, and what the round emitted, which is part of the text now."""
        sequence = each.place.sequence
        root_slot = len(sequence.text) - 1
        sequence.num_cached += each.place.start - sequence.num_committed  # what another lane had
        self.target.cache.compact(root_slot, [root_slot + node for node in verdict.path], lane=sequence.lane)
        sequence.num_committed = root_slot + len(verdict.path)
        if self.drafter is not None:
            self.drafter.commit(each.grafted.drawn_nodes[list(verdict.path)].tolist(), lane=sequence.lane)
        emitted = verdict.emitted_token_ids(each.tree)
        sequence.text += emitted
        each.place.choosing.processor.accept(emitted)

    def _rounds(
        self, growing: Sequence[_Growing], verdicts: Sequence[Verdict], laps: Sequence[float], *, num_pass_tokens: int
    ) -> Iterator[StepEvent]:
        """Yield each text's round of the pass just committed, from which the planners have learned.

        `laps`: its start, and the ends of draft, pass, walk and commit.
        """
        begun, drafted, passed, walked, committed = laps
        of_pass = Round(
            parents=(),
            path=(),
            draft_seconds=drafted - begun,
            verify_seconds=committed - drafted,
            pass_statistics=self.target.last_pass,
            num_pass_tokens=num_pass_tokens,
            draft_steps=() if self.drafter is None else tuple(self.drafter.step_seconds),
            placing_seconds=0.0 if self.drafter is None else self.drafter.placing_seconds,
            walk_seconds=walked - passed,
            num_texts=len(growing),
            num_pass_nodes=sum(each.tree.topology.num_nodes for each in growing),
        )
        by_planner: dict[TreePlanner, list[Round]] = {}
        rounds = []
        for each, verdict in zip(growing, verdicts, strict=True):
            accepted_ranks, num_children = each.grafted.drawn_ranks(verdict.path, verdict.accepted_ranks)
            done = replace(
                of_pass,
                parents=tuple(each.tree.topology.parents.tolist()),
                path=verdict.path,
                accepted_ranks=accepted_ranks,
                num_children=num_children,
                num_grafted=each.grafted.num_grafted,
                is_in_context=isinstance(each.shape, GrowthLimits),
                token_ids=tuple(verdict.emitted_token_ids(each.tree)),
                logprobs=verdict.logprobs,
            )
            rounds.append(done)
            by_planner.setdefault(each.place.choosing.planner, []).append(done)
        for number, (planner, learned) in enumerate(by_planner.items()):
            planner.observe(*learned, with_costs=number == 0)  # the pass is one for all
        for each, done in zip(growing, rounds, strict=True):
            yield each.place.sequence, done

    def prompt_progress(self, prompt: Sequence[int], *, lane: int = 0) -> PrefillProgress:
        """Return how much of a prompt a lane holds, and how long the rest takes: reading what is kept, and passes."""
        num_kept, num_prompt = self.sequences[lane].num_kept(prompt), len(prompt)
        num_held = self.target.cache.reachable(num_kept, lane=lane)
        if self.prefixes is None:
            return self.prefill_progress(num_held, num_prompt)
        return self._progress_behind(self.prefixes.outlook(prompt, num_held, self.planner.costs), num_prompt)

    def _progress_behind(self, outlook: Outlook, num_prompt: int) -> PrefillProgress:
        """Return how far a prompt is whose beginning comes from the store."""
        expected = self.prefill_progress(outlook.num_coming, num_prompt)
        if expected.expected_seconds is not None:
            expected = replace(expected, expected_seconds=expected.expected_seconds + outlook.seconds)
        return replace(expected, num_done_tokens=outlook.num_held)

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

    def set_text(self, prompt: Sequence[int], *, lane: int = 0) -> None:
        """Make `prompt` a lane's text; what both caches hold of a common prefix is kept."""
        sequence = self.sequences[lane]
        self.truncate(sequence.num_shared(prompt), lane=lane)
        sequence.text, sequence.border = list(prompt), None
        sequence.num_cached = sequence.num_committed

    def truncate(self, num_tokens: int, *, lane: int = 0) -> None:
        """Shorten a lane's text, and both caches with it, as far as states go back: what they lose is pending again."""
        sequence = self.sequences[lane]
        del sequence.text[num_tokens:]
        sequence.num_committed = min(sequence.num_committed, num_tokens)
        self.roll_back(lane=lane)

    def roll_back(self, *, lane: int = 0) -> None:
        """Forget what either cache holds beyond a lane's committed text."""
        sequence = self.sequences[lane]
        sequence.num_committed = self.target.cache.truncate(sequence.num_committed, lane=lane)
        if self.drafter is not None:
            self.drafter.roll_back(len(sequence.text), lane=lane)


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
