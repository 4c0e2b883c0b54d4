"""Verification schemes: how candidates are placed below a node, and which of them the target accepts.

A scheme sees single rows of logits; the drafter grows trees with it and `verifier.verify` walks them. Sequoia,
SpecInfer and top-k match draw from a generator; greedy and coupled follow the target's own token, whatever tree
proposes it. `AdjustedRows` changes rows by what stands before them, such as a penalty or a ban: the draft's and the
target's rows alike, each by its own node's path.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.config import SamplingParams
from runtime.errors import OptionError
from runtime.speculation.rejection import accept_probability, residual_step, target_residual
from runtime.speculation.sampling import (
    Probs,
    draw_while_mass,
    draw_with_replacement,
    log_weights,
    logits_to_probs,
    sample,
    top_tokens,
)
from runtime.speculation.token_tree import TokenTree

Row = NDArray[np.float32]
TokenIds = NDArray[np.int64]

MAX_CACHED_POSITIONS = 64
"""As many as the levels of most trees: a round asks for each position twice, and the next one for what was rejected.
Deeper trees make theirs anew. With a vocabulary of 152,000 they take 39 MB."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token is being chosen."""

    params: SamplingParams
    position: int
    """Absolute, counted from the text's first token."""
    path: tuple[int, ...] = ()
    """The token ids between the text and this place: those of the node's path without the root."""

    @classmethod
    def below(cls, tree: TokenTree, node: int, params: SamplingParams) -> Self:
        """Return where a node's children stand."""
        path = tree.path_token_ids(node)
        return cls(params, tree.root_position + len(path), tuple(path[1:].tolist()))


@dataclass(frozen=True, slots=True, eq=False)
class Children:
    """The candidates below one node, in the order of their ranks.

    Drawn ones are draws from `draft_probs`, which judging has to undo. The others may be any tokens: ones that the
    scheme added, or grafts put behind them, such as a continuation found in the prompt.
    """

    token_ids: NDArray[np.int64]
    """(b,) one token per child."""
    drawn: range = range(0)
    """Which of them are drawn, in drawing order."""
    draft_probs: NDArray[np.float32] | None = None
    """(V,) the distribution, up to a factor, that the drawn ones came from."""

    @classmethod
    def below(cls, tree: TokenTree, node: int) -> Self:
        """Take the children of a tree's node."""
        children = tree.topology.children(node)
        token_ids = tree.token_ids[children.start : children.stop]
        return cls(token_ids, tree.drawn.get(node, range(0)), tree.draft_probs.get(node))

    def index_of(self, token: int) -> int | None:
        """Return the first child that is `token`."""
        found = np.flatnonzero(self.token_ids == token)
        return int(found[0]) if len(found) else None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a node emits."""

    token_id: int
    child: int | None
    """The child that is accepted with it, as an index from 0; None if the walk ends here."""


class Scheme(Protocol):
    """Places candidates and judges them; one object serves one answer.

    What is emitted must have the target's distribution exactly, whatever the draft's row is and whichever tokens are
    grafted behind the scheme's own.
    """

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
    """(..., B) what they are ranked by, in logits, see `profiles.acceptance`; -inf is no candidate."""


@runtime_checkable
class RankingScheme(Scheme, Protocol):
    """A scheme that follows the target's own token, whichever children there are and however they were chosen.

    Its candidates have scores, so that a tree can take its shape from them (`dynamic_tree`).
    """

    def rank(self, draft_row: Row, num_candidates: int, place: Place) -> Candidates:
        """Return the first `num_candidates` candidates (B,), at most the vocabulary, from the draft's logits (V,)."""


@dataclass(frozen=True, slots=True, eq=False)
class RowChanges:
    """What happens to some tokens of W rows: a logit is divided by the penalty, or multiplied if it is negative.

    Then its drop is subtracted, which is infinite for what may not follow.
    """

    penalty: float
    token_ids: TokenIds
    """(K,) in every row."""
    drops: Row
    """(K,)"""
    own_token_ids: TokenIds
    """(W, P) in one row each, where they stand instead of the others; a row with fewer of them repeats its first."""
    own_drops: Row
    """(W, P)"""
    has_own: NDArray[np.bool_]
    """(W,) False for a row without any, which has anything in the two above."""


class RowRules(Protocol):
    """What happens to a row of logits because of the text and the path before it, alike for both models."""

    def adjusted(self, row: Row, path_token_ids: Sequence[int] = ()) -> Row:
        """Return the logits (V,) that are used in place of `row`, which is left alone, or `row` itself."""

    def changes(self, paths: Sequence[Sequence[int]]) -> RowChanges | None:
        """Return the same for W paths; None where whole rows change."""


@dataclass(frozen=True, slots=True)
class AdjustedRows:
    """A scheme whose rows, the draft's and the target's, are changed by what their own path holds."""

    scheme: Scheme
    rules: RowRules

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        return self.scheme.place(self._proposable(draft_row, place), num_children, place, rng)

    def rank(self, draft_row: Row, num_candidates: int, place: Place) -> Candidates:
        assert isinstance(self.scheme, RankingScheme), "a tree shaped by context needs scores"
        return self.scheme.rank(self._proposable(draft_row, place), num_candidates, place)

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Raise OptionError where nothing may follow."""
        row = self.rules.adjusted(target_row, place.path)
        if row is not target_row and row.max() == -np.inf:
            raise OptionError(
                "what may not be written here leaves no token of the model; ban or forbid less, or give --generation "
                "plain if the model's own settings do"
            )
        return self.scheme.judge(children, row, place, rng)

    def _proposable(self, draft_row: Row, place: Place) -> Row:
        """Return the draft's row as adjusted; as it was where nothing may follow, which its target may never reach."""
        row = self.rules.adjusted(draft_row, place.path)
        return draft_row if row.max() == -np.inf else row


class Greedy:
    """Temperature 0, where all schemes are this one: the target's most likely token is followed. Uses no chance."""

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        return Children(top_tokens(draft_row, num_children))

    def rank(self, draft_row: Row, num_candidates: int, place: Place) -> Candidates:
        best = top_tokens(draft_row, num_candidates)
        return Candidates(best, draft_row[best])

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Emit the target's most likely token, of equals the lower one."""
        token = int(top_tokens(target_row, 1)[0])
        return Judgement(token, children.index_of(token))


class Sequoia:
    """Draws without replacement, and a rejection that shrinks both distributions (arXiv 2402.12374, algorithm 2).

    Children are tried in drawing order against the target's distribution, which after a rejection shrinks to its
    residual; the draft's shrinks likewise, as it did while the children were drawn.
    """

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """Draw different tokens, each from what the ones before leave of the draft's distribution.

        Once nothing is left of it, the draft's most likely other tokens follow, which count as not drawn.
        """
        probs = logits_to_probs(draft_row, place.params, dtype=np.float32)
        drawn = draw_while_mass(probs, num_children, rng).tolist()
        return Children(fill_up(drawn, draft_row, num_children), range(len(drawn)), probs)

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Accept x with min(1, P[x] / Q[x]); else P <- norm(max(P - Q, 0)), Q[x] <- 0, renormalised, and the next."""
        return _judge_drawn(children, _target_distribution(target_row, place), rng, after_rejection=residual_step)


class SpecInfer:
    """Draws with replacement, and a rejection that shrinks the target's distribution only (arXiv 2305.09781).

    A baseline: a token may be drawn twice, and a rejected one is drawn again all the same, so more children bring less.
    """

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        probs = logits_to_probs(draft_row, place.params, dtype=np.float32)
        drawn = draw_with_replacement(probs, num_children, rng)
        return Children(drawn, range(num_children), probs)

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Accept x with min(1, P[x] / Q[x]); else P <- norm(max(P - Q, 0)) and the next child."""

        def shrink_target(target_probs: Probs, draft_probs: Probs, rejected: Sequence[int]) -> tuple[Probs, Probs]:
            return target_residual(target_probs, draft_probs), draft_probs

        return _judge_drawn(children, _target_distribution(target_row, place), rng, after_rejection=shrink_target)


class TopKMatch:
    """The draft's most likely tokens, and the target's own sample followed where one of them is it.

    A baseline that earlier systems ship (SpecExec, arXiv 2406.02532, among them): what the draft's temperature says
    about its less likely tokens is not used, so hot sampling leaves the tree soon.
    """

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        return Children(top_tokens(draft_row, num_children))

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Draw a token from the target's distribution, whatever the children are."""
        return _end_of_node(children, _target_distribution(target_row, place), rng)


class Coupled:
    """Draft and target share the noise of a position, so that the text is a function of (seed, prompt, target) alone.

    The target emits argmax(log P + noise), an exact sample of P, whatever was proposed; the children, the top b of
    log Q + noise, are draws without replacement from Q that lean the same way. Hence the same tokens with any tree,
    with any draft and without one. List decoding with shared Gumbel noise (arXiv 2506.05632). Uses no generator.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        ranked = self.rank(draft_row, num_children, place)
        kept = ranked.token_ids[np.isfinite(ranked.scores)].tolist()
        return Children(fill_up(kept, draft_row, num_children))

    def rank(self, draft_row: Row, num_candidates: int, place: Place) -> Candidates:
        """Return the same; scores are T (log Q + noise)."""
        scores = self._scores(draft_row, place)
        best = top_tokens(scores, num_candidates)
        return Candidates(best, np.float32(place.params.temperature) * scores[best])

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        token = int(top_tokens(self._scores(target_row, place), 1)[0])
        return Judgement(token, children.index_of(token))

    def _scores(self, row: Row, place: Place) -> Row:
        scores = log_weights(row, place.params)
        scores += position_noise(self.seed, place.position, len(row))
        return scores


@lru_cache(MAX_CACHED_POSITIONS)
def position_noise(seed: int, position: int, num_tokens: int) -> NDArray[np.float32]:
    """Return Gumbel noise (V,) of the token chosen for `position`, from the text's first; finite and read-only.

    Counter-based (Philox), so that any position's vector can be had at any time: neither tree, draft, ring nor batch
    can change it. It is -log(-log(u)) of u = (2k + 1) / 2^53, k of 52 bits: exact in float64, and neither 0 nor 1, so
    that machines differ only by the last bit of their logarithm. Large noise, which is what wins, comes from u close to
    1, where -log(u) has steps of 2e-16. Of two vocabularies the smaller one's is the beginning of the larger one's.
    """
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key, counter=position << 64).random_raw(num_tokens)
    noise = _gumbel(bits)
    noise.flags.writeable = False
    return noise


SCHEMES: Mapping[str, Callable[[SamplingParams], Scheme]] = {
    "greedy": lambda _: Greedy(),
    "sequoia": lambda _: Sequoia(),
    "coupled": lambda params: Coupled(params.seed),
    "specinfer": lambda _: SpecInfer(),
    "top-k": lambda _: TopKMatch(),
}
"""How each scheme is made for one answer, by the name that is typed and reported."""


def scheme_for(params: SamplingParams) -> Scheme:
    """Make the scheme that one answer is to be verified with, see `SamplingParams.scheme_name`."""
    return SCHEMES[params.scheme_name](params)


def fill_up(token_ids: Sequence[int], draft_row: Row, num_children: int) -> NDArray[np.int64]:
    """Return these tokens, and behind them the draft's most likely others until there are `num_children`, (b,).

    `draft_row` (V,) are logits. Raises ValueError if the vocabulary is smaller than `num_children`.
    """
    num_missing = num_children - len(token_ids)
    if num_missing <= 0:
        return np.asarray(token_ids, dtype=np.int64)
    likely = top_tokens(np.maximum(draft_row, np.finfo(np.float32).min), num_children)  # -inf is a token too
    others = [token for token in likely.tolist() if token not in token_ids]
    return np.array([*token_ids, *others[:num_missing]], dtype=np.int64)


def _target_distribution(target_row: Row, place: Place) -> Probs:
    """P (V,), what plain decoding would draw from, of the target's logits (V,)."""
    return np.asarray(logits_to_probs(target_row, place.params), dtype=np.float64)


def _judge_drawn(
    children: Children,
    target_probs: Probs,
    rng: np.random.Generator,
    *,
    after_rejection: Callable[[Probs, Probs, Sequence[int]], tuple[Probs, Probs]],
) -> Judgement:
    """Try the drawn children in order; `after_rejection` makes of P, Q and the tokens rejected so far the next P, Q."""
    if not children.drawn:
        return _end_of_node(children, target_probs, rng)
    assert children.draft_probs is not None, "drawn children have a distribution"
    draft_probs: Probs = children.draft_probs.astype(np.float64)
    draft_probs /= draft_probs.sum()
    rejected: list[int] = []
    for child in children.drawn:
        token = int(children.token_ids[child])
        if rng.random() < accept_probability(target_probs, draft_probs, token):
            return Judgement(token, child)
        rejected.append(token)
        target_probs, draft_probs = after_rejection(target_probs, draft_probs, rejected)
    return _end_of_node(children, target_probs, rng)


def _end_of_node(children: Children, target_probs: Probs, rng: np.random.Generator) -> Judgement:
    """What a node emits whose drawn children were all rejected, or that has none; P `target_probs` (V,) is left.

    A child x that was not drawn may stand with probability P[x], else P[x] <- 0, renormalised, for the next one. That
    is one draw from P and a look whether a child has it.
    """
    token = sample(target_probs, rng)
    return Judgement(token, children.index_of(token))


def _gumbel(bits: NDArray[np.uint64]) -> NDArray[np.float32]:
    uniform = ((bits >> np.uint64(11)) | np.uint64(1)) * 2.0**-53
    noise: NDArray[np.float32] = -np.log(-np.log(uniform).astype(np.float32))
    return noise
