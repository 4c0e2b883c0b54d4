"""One text that is being decoded: its tokens, where it lies in the caches, and how its tokens are chosen."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.config import SamplingParams
from runtime.planner.planner import TreePlanner
from runtime.speculation.logit_processors import LogitProcessor
from runtime.speculation.schemes import Scheme

LEAST_SHARED = 16
"""Tokens of another lane's text that are worth taking over."""


@dataclass(frozen=True, slots=True)
class Choosing:
    """How the tokens of an answer are chosen."""

    params: SamplingParams
    rng: np.random.Generator
    processor: LogitProcessor
    scheme: Scheme
    planner: TreePlanner
    """Chooses its trees; of all answers at one temperature the same."""
    top_logprobs: int | None = None
    """See `PromptRequest`."""


@dataclass(slots=True, eq=False)
class TokenSequence:
    """A lane of the caches and the text in it, which stays when its answer has ended."""

    lane: int
    text: list[int] = field(default_factory=list)
    """Prompt and accepted tokens; its last token is the next root."""
    num_committed: int = 0
    """Tokens of the text whose keys and values the target holds."""
    num_cached: int = 0
    """Tokens of the prompt that were not computed for it: its lane had them, another one, or the store."""
    border: int | None = None
    """How many tokens of the prompt later ones may begin with; None where nobody has said."""
    choosing: Choosing | None = None
    """None between two answers."""
    bytes_streamed: float = 0.0
    """Its share of what has crossed the link in the passes that it had a part in, both directions."""

    @property
    def num_pending(self) -> int:
        """Tokens that the target has not seen; more than the root only while a prompt is read."""
        return len(self.text) - self.num_committed

    def num_shared(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of `prompt` the text begins with, its last one apart."""
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self.text, prompt[:-1], strict=False))
        return sum(1 for _ in same)

    def num_kept(self, prompt: Sequence[int]) -> int:
        """Return how many of these the target holds, so that an answer in this lane need not compute them."""
        return min(self.num_committed, self.num_shared(prompt))
