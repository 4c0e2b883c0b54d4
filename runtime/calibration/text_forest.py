"""Many texts in the caches of one session: every pass computes the next token of all of them for one stream of weights.

The caches' slots form a forest: prompts that begin alike share slots, and each text is a branch that sees its own
tokens alone, as a node of a token tree does. Target and draft hold the same forest. Knows tokens, not what they mean.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from runtime.engine.engine import Engine
from runtime.engine_config import PREFILL_CHUNK_TOKENS
from runtime.model.streamed_model import PassInput


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that goes behind others."""

    token_id: int
    """Its id."""
    ancestors: tuple[int, ...]
    """Slots of the tokens before it, from the text's beginning; slots of the same pass may be among them."""


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """The end of a text so far."""

    slots: tuple[int, ...]
    """Of all its tokens."""
    target_hidden: torch.Tensor
    """(E,) the target's last hidden state after them."""
    draft_hidden: torch.Tensor
    """(E',) the draft's."""


class TextForest:
    """Texts on a session's caches; the engine's own text is forgotten, and the engine forgets these when it goes on."""

    def __init__(self, engine: Engine) -> None:
        assert engine.drafter is not None, "without a draft there is nothing to compare"
        self._engine = engine
        self._models = (engine.target, engine.drafter.model)
        self._positions: list[int] = []  # by slot

    def clear(self) -> None:
        """Forget every text."""
        self._positions = []
        self._engine.truncate(0)
        for model in self._models:
            model.cache.truncate(0)

    @property
    def num_free(self) -> int:
        """Tokens that still fit both caches."""
        return min(model.cache.capacity for model in self._models) - len(self._positions)

    def add(self, tokens: Sequence[NewToken]) -> list[Leaf]:
        """Run both models over new tokens; the leaf after each."""
        start, num_tokens = len(self._positions), len(tokens)
        visible = np.zeros((num_tokens, start + num_tokens), dtype=np.bool_)
        for row, token in enumerate(tokens):
            visible[row, [*token.ancestors, start + row]] = True
        self._positions += [len(token.ancestors) for token in tokens]
        positions = np.asarray(self._positions, dtype=np.int64)
        token_ids = np.asarray([token.token_id for token in tokens], dtype=np.int64)
        inputs = PassInput(token_ids, positions[start:], positions, visible)
        target, draft = self._models
        drafted = draft.run_pass(replace(inputs, token_ids=np.minimum(token_ids, draft.vocab_size - 1)))
        verified = target.run_pass(inputs)
        slots = [(*token.ancestors, start + row) for row, token in enumerate(tokens)]
        return [Leaf(*leaf) for leaf in zip(slots, verified, drafted, strict=True)]

    def add_prompts(self, prompts: Iterable[Sequence[int]]) -> list[Leaf]:
        """Run prompts, none of them empty, in chunks; what several begin with is computed once. The leaf after each."""
        start = len(self._positions)
        tokens: list[NewToken] = []
        nodes, ends = _share_beginnings(prompts)
        for parent, token_id in nodes:
            ancestors = () if parent < 0 else (*tokens[parent].ancestors, start + parent)
            tokens.append(NewToken(token_id, ancestors))
        chunks = (tokens[i : i + PREFILL_CHUNK_TOKENS] for i in range(0, len(tokens), PREFILL_CHUNK_TOKENS))
        leaves = [leaf for chunk in chunks for leaf in self.add(chunk)]
        return [leaves[end] for end in ends]


def num_forest_tokens(prompts: Iterable[Sequence[int]]) -> int:
    """Slots that these prompts take together."""
    return len(_share_beginnings(prompts)[0])


def _share_beginnings(prompts: Iterable[Sequence[int]]) -> tuple[list[tuple[int, int]], list[int]]:
    """(parent or -1, token) of every node of the prompts' common tree, parents first, and the node that ends each."""
    number_of: dict[tuple[int, int], int] = {}
    ends = []
    for prompt in prompts:
        node = -1
        for token_id in prompt:
            node = number_of.setdefault((node, token_id), len(number_of))
        ends.append(node)
    return list(number_of), ends
