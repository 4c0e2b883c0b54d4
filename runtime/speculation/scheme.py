"""What a verification scheme is: how candidates are placed below a node, and which of them the target accepts.

A scheme gets single rows of logits and knows no model; the drafter grows trees with it and `verifier.verify` walks
them. Whatever changes logits by what stands before them, such as a penalty or a ban, belongs into
`AdjustedRows`: it reaches the draft's and the target's rows alike, each with its own node's path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.sampling_params import SamplingParams
from runtime.speculation.sampling import top_tokens
from runtime.speculation.token_tree import TokenTree

Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token is being chosen."""

    params: SamplingParams
    """The choices of the answer."""
    position: int
    """The token's absolute position, counted from the text's first token."""
    path: tuple[int, ...] = ()
    """The token ids between the text and this place: those of the node's path without the root."""

    @classmethod
    def below(cls, tree: TokenTree, node: int, params: SamplingParams) -> Self:
        """Where a node's children stand."""
        path = tree.path_token_ids(node)
        return cls(params, tree.root_position + len(path), tuple(path[1:].tolist()))


@dataclass(frozen=True, slots=True, eq=False)
class Children:
    """The candidates below one node, in the order of their ranks.

    Drawn ones are draws from `draft_probs`, which judging has to undo. The others may be any tokens: the scheme's own
    fixed ones, or grafts that somebody put behind, such as a continuation found in the prompt.
    """

    token_ids: NDArray[np.int64]
    """(b,) one token per child."""
    drawn: range = range(0)
    """Which of them are drawn, in drawing order."""
    draft_probs: NDArray[np.float32] | None = None
    """(V,) the distribution, up to a factor, that the drawn ones came from."""

    @classmethod
    def below(cls, tree: TokenTree, node: int) -> Self:
        """Those of a tree's node."""
        children = tree.topology.children(node)
        token_ids = tree.token_ids[children.start : children.stop]
        return cls(token_ids, tree.drawn.get(node, range(0)), tree.draft_probs.get(node))

    @property
    def drawn_token_ids(self) -> list[int]:
        """The tokens that were drawn, in order."""
        return [int(token) for token in self.token_ids[self.drawn.start : self.drawn.stop]]

    def index_of(self, token: int) -> int | None:
        """The first child that is `token`; None if no child is."""
        found = np.flatnonzero(self.token_ids == token)
        return int(found[0]) if len(found) else None


def fill_up(token_ids: Sequence[int], draft_row: Row, num_children: int) -> NDArray[np.int64]:
    """These tokens, and behind them the draft's most likely others until there are `num_children`, (b,).

    `draft_row` (V,) are logits. Raises ValueError if the vocabulary is smaller than `num_children`.
    """
    num_missing = num_children - len(token_ids)
    if num_missing <= 0:
        return np.asarray(token_ids, dtype=np.int64)
    likely = top_tokens(np.maximum(draft_row, np.finfo(np.float32).min), num_children)  # -inf is a token too
    others = [token for token in likely.tolist() if token not in token_ids]
    return np.array([*token_ids, *others[:num_missing]], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a node emits."""

    token_id: int
    """The token."""
    child: int | None
    """The child that is accepted with it, as an index from 0; None if the walk ends here."""


class Scheme(Protocol):
    """Places candidates and judges them; one object serves one answer.

    What is emitted must have the target's distribution exactly, whatever the draft's row is and whichever tokens
    somebody grafts behind the scheme's own: a continuation found in the prompt, say.
    """

    @property
    def name(self) -> str:
        """As it is typed and reported."""

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """Choose the children of a node, 1 or more, from the draft's logits (V,) after it.

        Raises ValueError if the vocabulary is smaller than `num_children`.
        """

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Choose what an accepted node emits, given the target's logits (V,) after it."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The tokens that a draft would propose in one place, the first choice first."""

    token_ids: NDArray[np.int64]
    """(..., B)"""
    scores: NDArray[np.float32]
    """(..., B) what they are ranked by, in logits, see `candidate_chances`; -inf is no candidate."""


@runtime_checkable
class RankingScheme(Scheme, Protocol):
    """A scheme that follows the target's own token, whichever children there are and however they were chosen.

    Its candidates have scores, so that a tree can take its shape from them (`dynamic_tree`).
    """

    def rank(self, draft_row: Row, num_candidates: int, place: Place) -> Candidates:
        """The first `num_candidates` candidates (B,), at most the vocabulary, from the draft's logits (V,)."""


AdjustRow = Callable[[Row, tuple[int, ...]], Row]
"""From logits (V,) and the path behind the text to other logits (V,); it does not write into its argument."""


@dataclass(frozen=True, slots=True)
class AdjustedRows:
    """A scheme whose rows, the draft's and the target's, are changed by what their own path holds."""

    scheme: Scheme
    """What chooses from the changed rows."""
    adjusted: AdjustRow
    """The same function for both models."""
    name: str = field(init=False)
    """That of the scheme."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.scheme.name)

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """See `Scheme`."""
        return self.scheme.place(self.adjusted(draft_row, place.path), num_children, place, rng)

    def rank(self, draft_row: Row, num_candidates: int, place: Place) -> Candidates:
        """See `RankingScheme`, which the scheme inside must be."""
        assert isinstance(self.scheme, RankingScheme), f"{self.name} has no scores"
        return self.scheme.rank(self.adjusted(draft_row, place.path), num_candidates, place)

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """See `Scheme`."""
        return self.scheme.judge(children, self.adjusted(target_row, place.path), place, rng)
