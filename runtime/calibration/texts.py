"""Lets the target write many texts side by side, and says what verification would do at each of their positions.

One stream of weights brings a position of each; the draft reads along. At every position children are drawn from the
draft, and their analytic acceptance is handed out (Sequoia, section 4.1) with the draft's scores under the noise by
which the token was chosen, for trees that take their shape from context. A text ends at an end token, which is a
position too, or when it is long enough; at temperatures above 0 another one then takes its place.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from profiles.acceptance import ForcedPosition
from runtime.config import PREFILL_CHUNK_TOKENS, SamplingParams
from runtime.engine.drafter import Drafter
from runtime.engine.engine import Engine
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.model.streamed_model import PassInput
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.rejection import node_outcome
from runtime.speculation.sampling import Floats, draw_without_replacement, logits_to_probs
from runtime.speculation.schemes import Children, Coupled, Greedy, Place, RankingScheme

NUM_RANKS = 32
MAX_TEXT_TOKENS = 96
"""An answer is cut here: depth needs no more, and other prompts say more about acceptance."""
MIN_STEPS = 24
"""Fewer texts are written at a time if the caches would not hold so many tokens of each."""
MAX_PROMPT_TOKENS = 768
"""Prompts beyond the first are left out where they would take more together."""
_ROWS_AT_ONCE = 16
Seen = TypeVar("Seen")
NO_CHILDREN = Children(np.empty(0, dtype=np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """Where a text ends so far."""

    slots: tuple[int, ...]
    target_hidden: torch.Tensor
    """(E,) last hidden state of the target after them."""
    draft_hidden: torch.Tensor
    """(E',) last hidden state of the draft after them."""


class TextForest:
    """Many texts in the caches of one session: a pass computes the next token of all for one stream of weights.

    The slots form a forest: prompts that begin alike share slots, and each text is a branch that sees its own tokens
    alone, as a node of a token tree does. Target and draft hold the same forest. The engine's own text is forgotten,
    and the engine forgets these when it goes on.
    """

    def __init__(self, engine: Engine) -> None:
        assert engine.drafter is not None, "without a draft there is nothing to compare"
        self._engine = engine
        self._models = (engine.target, engine.drafter.model)
        self._positions: list[int] = []  # by slot

    def clear(self) -> None:
        self._positions = []
        self._engine.truncate(0)
        for model in self._models:
            model.cache.truncate(0)

    @property
    def num_free(self) -> int:
        return min(model.cache.capacity for model in self._models) - len(self._positions)

    def add(self, token_ids: Sequence[int], ancestors: Sequence[tuple[int, ...]]) -> list[Leaf]:
        """Run both models over new tokens, and return the leaf after each.

        `ancestors`: of each token the slots of those before it, from its text's beginning; slots of the same pass may
        be among them.
        """
        start, num_tokens = len(self._positions), len(token_ids)
        visible = np.zeros((num_tokens, start + num_tokens), dtype=np.bool_)
        slots = [(*before, start + row) for row, before in enumerate(ancestors)]
        for row, seen in enumerate(slots):
            visible[row, list(seen)] = True
        self._positions += map(len, ancestors)
        positions = np.asarray(self._positions, dtype=np.int64)
        inputs = PassInput(np.asarray(token_ids, dtype=np.int64), positions[start:], positions, visible)
        target, draft = self._models
        drafted = draft.run_pass(replace(inputs, token_ids=np.minimum(inputs.token_ids, draft.vocab_size - 1)))
        verified = target.run_pass(inputs)
        return [Leaf(*leaf) for leaf in zip(slots, verified, drafted, strict=True)]

    def add_prompts(self, prompts: Iterable[Sequence[int]]) -> list[Leaf]:
        """Run prompts in chunks, what several begin with once, and return the leaf after each; none may be empty."""
        start = len(self._positions)
        nodes, ends = _share_beginnings(prompts)
        ancestors = list[tuple[int, ...]]()
        for parent, _ in nodes:
            ancestors.append((*ancestors[parent], start + parent) if parent >= 0 else ())
        leaves = list[Leaf]()
        for begin in range(0, len(nodes), PREFILL_CHUNK_TOKENS):
            chunk = slice(begin, begin + PREFILL_CHUNK_TOKENS)
            leaves += self.add([token_id for _, token_id in nodes[chunk]], ancestors[chunk])
        return [leaves[end] for end in ends]


def num_forest_tokens(prompts: Iterable[Sequence[int]]) -> int:
    """Return the slots that these prompts take together."""
    return len(_share_beginnings(prompts)[0])


def _share_beginnings(prompts: Iterable[Sequence[int]]) -> tuple[list[tuple[int, int]], list[int]]:
    """Return (parent or -1, token) of each node of the prompts' tree, parents first, and the node that ends each."""
    number_of: dict[tuple[int, int], int] = {}
    ends = []
    for prompt in prompts:
        node = -1
        for token_id in prompt:
            node = number_of.setdefault((node, token_id), len(number_of))
        ends.append(node)
    return list(number_of), ends


@dataclass(slots=True)
class GrowingText:
    """A text that is being written."""

    number: int
    """Counted from 1 over all texts."""
    params: SamplingParams
    prompt_end: Leaf
    leaf: Leaf


class TextWriter:
    """Writes texts in a session, whose caches it needs for itself meanwhile."""

    def __init__(self, opened: OpenSession, requests: Sequence[PromptRequest], *, seed: int = 0) -> None:
        engine = opened.session.engine
        assert engine.drafter is not None, "without a draft there is nothing to compare"
        self._opened = opened
        self._drafter: Drafter = engine.drafter
        self._requests = requests
        self._forest = TextForest(engine)
        self._rng = np.random.default_rng(seed)
        self._coupled = Coupled(seed)
        self._texts: list[GrowingText] = []
        self._num_texts = self._num_judged = 0

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """Return what PairFacts says. Raises OptionError if the first prompt leaves no room for an answer."""
        prompts = self._fitting_prompts(len(self._requests))
        return tuple(num_forest_tokens(prompts[:count]) for count in range(1, len(prompts) + 1))

    def begin(self, num_texts: Mapping[SamplingParams, int]) -> None:
        """Run the prompts and begin texts of each kind, at least one; greedy ones need each a prompt of its own.

        There are fewer of all if the caches would not hold MIN_STEPS tokens of each. Raises OptionError if the first
        prompt leaves no room for an answer.
        """
        self._forest.clear()
        leaves = self._forest.add_prompts(self._fitting_prompts(max(num_texts.values())))
        share = min(1.0, self._forest.num_free / (MIN_STEPS * sum(num_texts.values())))
        self._texts = []
        for params, wanted in num_texts.items():
            count = max(1, int(share * wanted))
            count = min(count, len(leaves)) if params.is_greedy else count
            self._texts += [self._new_text(params, leaves[index % len(leaves)]) for index in range(count)]

    def step(self) -> list[ForcedPosition]:
        """Write the next token of every text, and return each one's position; none when no text can grow."""
        return self.grow(self._judge)

    def grow(self, look: Callable[[GrowingText, Floats, Floats], tuple[Seen, int]]) -> list[Seen]:
        """Go on with every text by one token, and return what was seen there; nothing when no text can grow.

        `look` gets a text with the target's and the draft's logits (V,) after it, and returns what it sees and the
        token. A few rows of the vocabulary are held at a time.
        """
        if self._forest.num_free < len(self._texts):
            return []
        target, found = self._opened.session.engine.target, list[tuple[Seen, int]]()
        for start in range(0, len(self._texts), _ROWS_AT_ONCE):
            texts = self._texts[start : start + _ROWS_AT_ONCE]
            verified = target.logits(torch.stack([text.leaf.target_hidden for text in texts]))
            drafted = self._drafter.model.logits(torch.stack([text.leaf.draft_hidden for text in texts]))
            rows = (verified.numpy(force=True), self._drafter.fit_vocabulary(drafted).numpy(force=True))
            found += starmap(look, zip(texts, *rows, strict=True))
        self._append([token_id for _, token_id in found])
        return [seen for seen, _ in found]

    def _append(self, token_ids: Sequence[int]) -> None:
        limit, texts = self._opened.plan.need.context_tokens, self._texts
        self._texts, growing, grown = [], list[GrowingText](), list[int]()
        for text, token_id in zip(texts, token_ids, strict=True):
            num_slots = len(text.leaf.slots) + 1
            is_ended = token_id in self._opened.session.end_token_ids or num_slots >= limit
            if not is_ended and num_slots - len(text.prompt_end.slots) < MAX_TEXT_TOKENS:
                growing.append(text)
                grown.append(token_id)
            elif not text.params.is_greedy:
                self._texts.append(self._new_text(text.params, text.prompt_end))
        if growing:
            leaves = self._forest.add(grown, [text.leaf.slots for text in growing])
            for text, leaf in zip(growing, leaves, strict=True):
                text.leaf = leaf
        self._texts += growing

    def _fitting_prompts(self, wanted: int) -> list[list[int]]:
        limit, session = self._opened.plan.need.context_tokens, self._opened.session
        prompts: list[list[int]] = []
        for request in self._requests[:wanted]:
            prompt = session.format_prompt(request)
            if not prompts and len(prompt) >= min(limit, self._forest.num_free):
                raise OptionError(
                    f"the prompt '{request.id}' has {len(prompt)} tokens and the context holds {limit}, answer "
                    "included; give a larger --context or a shorter prompt"
                )
            room = min(MAX_PROMPT_TOKENS, self._forest.num_free // 2)
            if not prompts or (len(prompt) < limit and num_forest_tokens([*prompts, prompt]) <= room):
                prompts.append(prompt)
        return prompts

    def _new_text(self, params: SamplingParams, prompt_end: Leaf) -> GrowingText:
        self._num_texts += 1
        return GrowingText(self._num_texts, params, prompt_end, prompt_end)

    def _judge(self, text: GrowingText, target_row: Floats, draft_row: Floats) -> tuple[ForcedPosition, int]:
        """Return what verification would do after `text`, and the token that the target goes on with."""
        num_ranks = min(NUM_RANKS, len(draft_row))
        self._num_judged += 1
        place = Place(text.params, self._num_judged)  # noise of its own for every position of every text
        scheme: RankingScheme = Greedy() if text.params.is_greedy else self._coupled
        ranked = scheme.rank(draft_row, num_ranks, place)
        token_id = scheme.judge(NO_CHILDREN, target_row, place, self._rng).token_id
        hits = (ranked.token_ids == token_id) & np.isfinite(ranked.scores)
        acceptance = followed = hits.astype(np.float64)
        if not text.params.is_greedy:
            acceptance, followed = self._drawn(text.params, target_row, draft_row, token_id)
        emitted = int(hits.argmax()) if hits.any() else -1
        return ForcedPosition(
            text.params.temperature, text.number, acceptance, followed, ranked.scores, emitted
        ), token_id

    def _drawn(
        self, params: SamplingParams, target_row: Floats, draft_row: Floats, token_id: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what sequoia accepts of children drawn here, by rank, and how it comes to the text's token."""
        target_probs = np.asarray(logits_to_probs(target_row, params), dtype=np.float64)
        drawn_from = logits_to_probs(draft_row, params, dtype=np.float32)
        children = draw_without_replacement(drawn_from, min(NUM_RANKS, len(draft_row)), self._rng).tolist()
        draft_probs = drawn_from.astype(np.float64)
        draft_probs /= draft_probs.sum()
        outcome = node_outcome(target_probs, draft_probs, children, emitted=token_id)
        return outcome.acceptance, outcome.followed
