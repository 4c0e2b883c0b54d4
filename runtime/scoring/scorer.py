"""Scores continuations: all items are one trie of tokens, computed in passes as large as compute covers.

In their sorted order each item begins where it parts from the one before. So what items share, a long prompt before
many questions or a question before its choices, is computed once, and a pass is any stretch of that order: a chain
behind what the cache holds, and branches, each of which sees its own ancestors alone. As a layer computes so many rows
of branches at once as it has room for, several lanes of the cache take a stretch each.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from offload.memory import explained_shortage
from runtime.engine.engine import Engine
from runtime.engine.session import check_tokens
from runtime.engine.token_sequence import LEAST_SHARED
from runtime.errors import OptionError
from runtime.events import TokenLogprob, TokenLogprobs
from runtime.model.pass_shapes import WALK_ROWS
from runtime.model.streamed_model import PassInput
from runtime.model.upload import upload
from runtime.scoring.score_file import Score, ScoreRequest, ScoreResult
from runtime.tokenizer.box import Tokenizer

_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenPair:
    """A text, of which the last tokens are scored."""

    token_ids: _Ids
    """(T,) of context and continuation."""
    num_scored: int
    """At least one, and fewer than T."""
    num_truncated: int = 0
    """Tokens of the context that the window had no room for."""

    @classmethod
    def within(cls, context_ids: Sequence[int], continuation_ids: Sequence[int], *, window: int) -> "TokenPair":
        """Cut a context from the left so that all tokens but the last fit into `window`, as lm_eval does.

        Raises OptionError if the continuation alone does not.
        """
        if len(continuation_ids) > window:
            raise OptionError(
                f"the continuation has {len(continuation_ids)} tokens and the context holds {window}; give a larger "
                "--context (the model's own limit is the most) or a shorter continuation"
            )
        token_ids = np.array([*context_ids, *continuation_ids], dtype=np.int64)
        num_truncated = max(0, len(token_ids) - window - 1)
        return cls(token_ids[num_truncated:], len(continuation_ids), num_truncated)


@dataclass(frozen=True, slots=True)
class ScoringPass:
    """One pass of the target is done."""

    scores: dict[int, Score]
    """Of the pairs that it completed, by their index."""
    num_tokens: int
    """That it computed."""
    num_left: int
    """Tokens that are left to compute, about: lanes may compute the beginning of a text once each."""
    predictions: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    """Of the same pairs, one of each scored token, where they are wanted."""


@dataclass(slots=True, eq=False)
class _Branch:
    """The tokens of a pair that predict others."""

    token_ids: _Ids
    wants: list[tuple[int, int, int]] = field(default_factory=list)
    """(index of a pair, start, stop): whose predictions are made by which tokens, in whichever branch they are new."""


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Tokens start..stop of a branch in a pass, one behind the other."""

    branch: _Branch
    start: int
    stop: int
    first: int
    """Its first token's place in the piece."""
    ancestors: _Ids
    """(start,) slots of the tokens before it."""

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.stop - self.start)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """What a lane computes in a pass, and what is read from its rows."""

    inputs: PassInput
    num_wanted: int
    """Rows, the last ones."""
    rows: _Ids
    """(M,) among the wanted rows, one for each prediction."""
    targets: _Ids
    """(M,) the tokens whose probabilities are wanted there."""
    indices: _Ids
    """(M,) the pairs that they belong to."""
    places: _Ids
    """(M,) where the targets stand in these."""


class Scorer:
    """Scores texts with an engine's target; its caches are empty before and after."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """`tokenizer`: the target's."""
        self._engine = engine
        self._tokenizer = tokenizer

    def run(self, requests: Iterable[ScoreRequest]) -> Iterator[ScoreResult | ScoringPass]:
        """Give every request its result, in an order of its own, with the passes between.

        One that has no tokens for the model costs its own score. Raises what a failed or cancelled copy raises.
        """
        usable: list[ScoreRequest] = []
        pairs: list[TokenPair] = []
        for request in requests:
            try:
                pairs.append(self.encode(request.context, request.continuation))
                usable.append(request)
            except OptionError as error:
                yield ScoreResult(id=request.id, line_number=request.line_number, error=str(error))
        for done in self.score(pairs):
            yield done
            for index, score in done.scores.items():
                yield ScoreResult(id=usable[index].id, line_number=usable[index].line_number, score=score)

    def encode(self, context: str, continuation: str) -> TokenPair:
        """Return the tokens of a text within the window. Raises OptionError, also for a too long continuation."""
        return TokenPair.within(*self.encode_ids(context, continuation), window=self._engine.context_tokens)

    def encode_ids(self, context: str | None, continuation: str) -> tuple[list[int], list[int]]:
        """Return both parts' token ids, as `formatting.encode_pair` says.

        Raises OptionError for a token that the model has no row for, or that stands for an image.
        """
        context_ids, continuation_ids = self._tokenizer.encode_pair(context, continuation)
        target = self._engine.target
        check_tokens(
            [*context_ids, *continuation_ids],
            self._tokenizer,
            vocab_size=target.vocab_size,
            other_token_ids=target.parts.other_token_ids,
        )
        return context_ids, continuation_ids

    def score(self, pairs: Sequence[TokenPair], *, num_likeliest: int | None = None) -> Iterator[ScoringPass]:
        """Score all pairs, in an order of its own; yield after every pass.

        With `num_likeliest` each token's own prediction is given too, with so many likeliest tokens. The iterator may
        be closed at any time. Raises what a failed or cancelled copy raises.
        """
        engine = self._engine
        engine.target.allow()  # whoever cancelled answers did not mean this
        queue, num_left = _plan(pairs)
        tally = _Tally(pairs, keeps_predictions=num_likeliest is not None)
        lanes = [_Lane(engine, lane) for lane in range(engine.target.cache.num_lanes)]
        try:
            while pieces := self._fill(lanes, queue, pairs, num_left=num_left):
                num_tokens = sum(piece.inputs.num_tokens for piece in pieces)
                with explained_shortage("a pass over the model"):
                    for piece, hidden in zip(pieces, self._run(pieces), strict=True):
                        tally.add(piece, *self._read(hidden, piece, num_likeliest or 0))
                for lane in lanes:
                    lane.keep_path()
                engine.prefill.observe(num_tokens, engine.target.last_pass)
                engine.bytes_streamed += engine.target.last_pass.link_bytes
                num_left = max(0, num_left - num_tokens)
                scores = tally.take_completed()
                yield ScoringPass(scores, num_tokens, num_left, tally.take_predictions(scores))
        finally:
            for lane in lanes:
                lane.clear()

    def _fill(
        self, lanes: Sequence["_Lane"], queue: deque[_Branch], pairs: Sequence[TokenPair], *, num_left: int
    ) -> list[_Piece]:
        """Return what each lane computes in the next pass, as far as compute covers; nothing where all is done."""
        prefill = self._engine.prefill
        room = prefill.next_tokens(max(num_left, prefill.slice_tokens), self._engine.planner.costs)
        pieces: list[_Piece] = []
        for index, lane in enumerate(lanes):
            piece = lane.fill(queue, pairs, most_tokens=room, others=lanes[:index])
            if piece is not None:
                pieces.append(piece)
                room -= piece.inputs.num_tokens
            if room <= 0:
                break
        return pieces

    def _run(self, pieces: Sequence[_Piece]) -> list[torch.Tensor]:
        """Return the wanted hidden states of each piece, (W, E)."""
        num_wanted = [piece.num_wanted for piece in pieces]
        return self._engine.target.run_batch([piece.inputs for piece in pieces], num_wanted=num_wanted, is_prefill=True)

    def _read(
        self, hidden: torch.Tensor, piece: _Piece, num_likeliest: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.float32], _Ids]:
        """Return log P(target) of each prediction (M,), and whether the target is the likeliest token.

        And of the `num_likeliest` K tokens log P and ids, (M, K) each.
        """
        target = self._engine.target
        rows, places = np.unique(piece.rows, return_inverse=True)
        log_probs = np.empty(len(places), dtype=np.float32)
        is_likeliest = np.empty(len(places), dtype=np.bool_)
        top_log_probs = np.empty((len(places), num_likeliest), dtype=np.float32)
        top_ids = np.empty((len(places), num_likeliest), dtype=np.int64)
        for start in range(0, len(rows), WALK_ROWS):
            chosen = np.flatnonzero((start <= places) & (places < start + WALK_ROWS))
            index, row, token = upload(
                (rows[start : start + WALK_ROWS], places[chosen] - start, piece.targets[chosen]), hidden.device
            )
            logits = target.logits(hidden.index_select(0, index))  # (R, V)
            is_likeliest[chosen] = (logits.argmax(dim=-1)[row] == token).numpy(force=True)
            log_softmax = torch.log_softmax(logits, dim=-1)
            log_probs[chosen] = log_softmax[row, token].numpy(force=True)
            if num_likeliest:
                top = log_softmax.topk(num_likeliest, dim=-1)
                top_log_probs[chosen] = top.values[row].numpy(force=True)
                top_ids[chosen] = top.indices[row].numpy(force=True)
        return log_probs, is_likeliest, top_log_probs, top_ids


class _Tally:
    """Adds up what passes say of each pair."""

    def __init__(self, pairs: Sequence[TokenPair], *, keeps_predictions: bool) -> None:
        self._pairs = pairs
        self._keeps_predictions = keeps_predictions
        self._predictions: dict[int, dict[int, TokenLogprobs]] = {}
        self._missing = [pair.num_scored for pair in pairs]
        self._sums = [0.0] * len(pairs)
        self._is_greedy = [True] * len(pairs)
        self._completed: list[int] = []

    def add(
        self,
        piece: _Piece,
        log_probs: npt.NDArray[np.float32],
        is_likeliest: npt.NDArray[np.bool_],
        top_log_probs: npt.NDArray[np.float32],
        top_ids: _Ids,
    ) -> None:
        """Take one prediction of a pair for each entry."""
        indices = piece.indices
        if self._keeps_predictions:
            for number, (index, place) in enumerate(zip(indices.tolist(), piece.places.tolist(), strict=True)):
                likeliest = zip(top_ids[number].tolist(), top_log_probs[number].tolist(), strict=True)
                self._predictions.setdefault(index, {})[place] = TokenLogprobs(
                    TokenLogprob(int(piece.targets[number]), float(log_probs[number])),
                    tuple(TokenLogprob(token_id, log_prob) for token_id, log_prob in likeliest),
                )
        for index, log_prob, is_greedy in zip(indices.tolist(), log_probs.tolist(), is_likeliest.tolist(), strict=True):
            self._sums[index] += log_prob
            self._is_greedy[index] &= is_greedy
            self._missing[index] -= 1
            if not self._missing[index]:
                self._completed.append(index)

    def take_completed(self) -> dict[int, Score]:
        """Return the scores that were completed since the last time."""
        completed, self._completed = self._completed, []
        return {index: self._score(index) for index in completed}

    def take_predictions(self, indices: Iterable[int]) -> dict[int, tuple[TokenLogprobs, ...]]:
        """Return the predictions of pairs that were completed, in the order of their tokens."""
        found = {index: self._predictions.pop(index, {}) for index in indices if self._keeps_predictions}
        return {index: tuple(each[place] for place in sorted(each)) for index, each in found.items()}

    def _score(self, index: int) -> Score:
        pair = self._pairs[index]
        return Score(
            self._sums[index],
            self._is_greedy[index],
            num_tokens=pair.num_scored,
            num_context_tokens=len(pair.token_ids) - pair.num_scored,
            num_truncated=pair.num_truncated,
        )


class _Lane:
    """A lane of the cache that walks from branch to branch and keeps the tokens that lead to where it stands."""

    def __init__(self, engine: Engine, lane: int) -> None:
        """The lane is empty then; a pass may have `slice_tokens` rows in it that do not see all before them."""
        self._cache = engine.target.cache
        self._lane = lane
        self._slice_tokens = engine.prefill.slice_tokens
        self._engine = engine
        self._branch = _Branch(np.empty(0, dtype=np.int64))
        self._slots: _Ids = np.empty(0, dtype=np.int64)
        """Of the branch's tokens that are computed, from the first on."""
        self._chain: _Ids = np.empty(0, dtype=np.int64)
        """Tokens that its first slots hold, at least, once the pass that is being filled has reached it."""
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._engine.truncate(0, lane=self._lane)

    def fill(
        self, queue: deque[_Branch], pairs: Sequence[TokenPair], *, most_tokens: int, others: Sequence["_Lane"]
    ) -> _Piece | None:
        """Take branches until the piece is full; None where nothing is left.

        `others`: lanes that have their part in the pass, of which one may hold more of the first branch's beginning.
        """
        is_under_way = len(self._slots) < len(self._branch.token_ids)
        if not self._enter(queue):
            return None
        # Where layers keep states, a cut may leave less: what is missing is read again, and nothing of it is wanted.
        self._slots = self._slots[: self._cache.truncate(len(self._slots), lane=self._lane)]
        # Branches that others have entered since are not before one that is under way: its own tokens are its to read.
        shared = None if is_under_way else self._take_over(others)
        num_cached = len(self._slots)
        num_folded = self._cache.num_folded(num_cached, lane=self._lane if shared is None else shared[0])
        num_unwanted = self._num_unwanted()
        room = min(most_tokens, num_unwanted + self._slice_tokens, self._cache.capacity - num_cached)
        runs: list[_Run] = []
        while room > 0 and self._enter(queue, num_folded=num_folded):
            first = 0 if not runs else runs[-1].rows.stop
            start, num_tokens = len(self._slots), min(room, len(self._branch.token_ids) - len(self._slots))
            runs.append(_Run(self._branch, start, start + num_tokens, first, self._slots))
            self._slots = np.concatenate((self._slots, num_cached + first + np.arange(num_tokens)))
            room -= num_tokens
        self._chain = runs[0].branch.token_ids[: runs[0].stop]
        # Of the rows that nobody wants the first are left out: they are a chain that sees everything before it.
        num_tokens = runs[-1].rows.stop
        num_wanted = num_tokens - min(num_unwanted, runs[0].rows.stop - 1)
        inputs = replace(_pass_input(runs, num_cached=num_cached), lane=self._lane, shared=shared)
        return _Piece(inputs, num_wanted, *_predictions(runs, pairs, first_row=num_tokens - num_wanted))

    def _take_over(self, others: Sequence["_Lane"]) -> tuple[int, int] | None:
        """Begin with what another lane holds of the branch, if that is clearly more; return whose, and how many."""
        held = {other._lane: _num_shared(other._chain, self._branch.token_ids[:-1]) for other in others}
        if self._cache.recurrent:  # whose states are shared as they were before the pass
            held = {lane: self._cache.reachable(count, lane=lane) for lane, count in held.items()}
        source = max(held, key=held.__getitem__, default=self._lane)
        if held.get(source, 0) < len(self._slots) + LEAST_SHARED:
            return None
        self._slots = np.arange(held[source])
        return source, held[source]

    def _enter(self, queue: deque[_Branch], *, num_folded: int = 0) -> bool:
        """Go on to the next branch if this one is done; return whether there is anything to compute.

        One that parts before the `num_folded` tokens that a state holds is for another pass, or lane.
        """
        while len(self._slots) == len(self._branch.token_ids):
            if not queue:
                return False
            num_shared = _num_shared(self._branch.token_ids, queue[0].token_ids)
            if num_shared < num_folded:
                return False
            self._slots, self._branch = self._slots[:num_shared], queue.popleft()
        return True

    def _num_unwanted(self) -> int:
        """Return how many tokens come before the first one from which anything is read."""
        num_computed = len(self._slots)
        return (
            min(max(start, num_computed) for _, start, stop in self._branch.wants if stop > num_computed) - num_computed
        )

    def keep_path(self) -> None:
        """Forget all that was computed but the branch that the lane stands on."""
        kept = np.arange(len(self._slots))
        num_first = int(np.argmin(np.append(self._slots == kept, False)))
        self._cache.compact(num_first, self._slots[num_first:].tolist(), lane=self._lane)
        self._slots, self._chain = kept, self._branch.token_ids[: len(kept)]


def _plan(pairs: Sequence[TokenPair]) -> tuple[deque[_Branch], int]:
    """Return the branches in the order of their tokens, and how many tokens are new in all of them together."""
    branches: deque[_Branch] = deque()
    path: list[tuple[int, _Branch]] = []  # from which token on each branch is the first to have them
    before, num_tokens = np.empty(0, dtype=np.int64), 0
    for index in sorted(range(len(pairs)), key=lambda index: pairs[index].token_ids.astype(">u4").tobytes()):
        pair = pairs[index]
        branch = _Branch(pair.token_ids[:-1])
        num_shared = _num_shared(before, branch.token_ids)
        while path and path[-1][0] >= num_shared:
            path.pop()
        if num_shared < len(branch.token_ids):
            path.append((num_shared, branch))
            branches.append(branch)
            num_tokens += len(branch.token_ids) - num_shared
        stop = len(branch.token_ids)
        first = stop - pair.num_scored
        for start, owner in reversed(path):
            if stop > first:
                owner.wants.append((index, max(first, start), stop))
            stop = min(stop, start)
        before = branch.token_ids
    return branches, num_tokens


def _num_shared(token_ids: _Ids, others: _Ids) -> int:
    """Return how many tokens two texts begin with alike."""
    num_common = min(len(token_ids), len(others))
    differing = np.flatnonzero(token_ids[:num_common] != others[:num_common])
    return int(differing[0]) if len(differing) else num_common


def _pass_input(runs: Sequence[_Run], *, num_cached: int) -> PassInput:
    """Return the pass over the runs behind the `num_cached` tokens of the first one's branch."""
    num_tokens = runs[-1].rows.stop
    positions = np.concatenate([np.arange(run.start, run.stop) for run in runs])
    key_positions = np.concatenate((np.arange(num_cached), positions))
    # What all runs have in common is text; what only some of them see is told apart.
    num_text = min(runs[0].stop, *(run.start for run in runs[1:]), num_cached + num_tokens)
    sight = np.zeros((num_tokens, num_cached + num_tokens - num_text), dtype=np.bool_)
    for run in runs:
        own = num_cached + np.arange(run.rows.start, run.rows.stop) - num_text
        sight[run.rows, run.ancestors[num_text:] - num_text] = True
        sight[run.rows, own[own >= 0]] = np.tri(run.stop - run.start, dtype=np.bool_)[:, own >= 0]
    token_ids = np.concatenate([run.branch.token_ids[run.start : run.stop] for run in runs])
    return PassInput(token_ids, positions, key_positions, sight)


def _predictions(runs: Iterable[_Run], pairs: Sequence[TokenPair], *, first_row: int) -> tuple[_Ids, _Ids, _Ids, _Ids]:
    """Return row, target, pair and place of each prediction that the runs make; rows count from `first_row`."""
    rows, targets, indices, targets_places = [], [], [], []
    for run in runs:
        for index, start, stop in run.branch.wants:
            places = np.arange(max(start, run.start), min(stop, run.stop))
            rows.append(run.first - run.start - first_row + places)
            targets.append(pairs[index].token_ids[places + 1])
            indices.append(np.full(len(places), index))
            targets_places.append(places + 1)
    return (
        np.concatenate(rows),
        np.concatenate(targets),
        np.concatenate(indices),
        np.concatenate(targets_places),
    )
