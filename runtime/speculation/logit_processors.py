"""Penalties, bans and forced tokens: what happens to a row of logits before it becomes a distribution.

A row belongs to a node and is judged by that node's own path, draft and target rows by the same object. Repetition
penalty counts prompt and answer (CTRL, arXiv 1909.05858, section 4.1, made right for negative logits), presence and
frequency penalty the answer alone, as in vLLM. Then comes what the text may not hold, and what it must begin or end
with, in the order of transformers; bans of single tokens come behind them; the end of thinking that has lasted long
enough overrules them, a token that is asked for by name all of these, and a grammar whatever it does not allow in the
answer behind the thinking.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.config import SamplingParams
from runtime.errors import OptionValueError
from runtime.speculation.grammar import AnswerGrammar
from runtime.speculation.schemes import Row, RowChanges, TokenIds
from runtime.speculation.thinking import AnswerThinking, ThinkingRules

_NOTHING: TokenIds = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """What a text may not hold and must hold beside what is chosen for an answer: the model's own rules."""

    no_repeat_ngram_size: int = 0
    """No n tokens in a row may stand twice in prompt and answer; 0 is off, 1 lets no token come twice."""
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    """Token ids that may not follow each other, none of them empty; they may begin in the prompt."""
    banned_tokens: tuple[int, ...] = ()
    banned_first_tokens: tuple[int, ...] = ()
    """What an answer may not begin with; behind a `first_token` its second one."""
    min_new_tokens: int = 0
    """Before that many tokens of an answer none of `end_token_ids` may come."""
    end_token_ids: tuple[int, ...] = ()
    first_token: int | None = None
    """What an answer begins with."""
    last_tokens: tuple[int, ...] = ()
    """One of these ends an answer that reaches its limit."""


class LogitProcessor:
    """One answer's penalties, bans and forced tokens, and the text that they depend on.

    A row costs as much as it has tokens to change, and nothing if there are none; an accepted token costs O(1). Rules
    about sequences look through the text once for each row.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt: Sequence[int],
        vocab_size: int,
        rules: TextRules | None = None,
        grammar: AnswerGrammar | None = None,
        thinking: ThinkingRules | None = None,
    ) -> None:
        """`vocab_size` V: columns of every row. Raises OptionError if no token is left, or an id is not one of V."""
        _check_token_ids(params, vocab_size)
        self._params = params
        self._rules = rules = rules or TextRules()
        self._is_seen = np.zeros(vocab_size, dtype=np.bool_)  # in prompt or answer
        self._is_seen[np.asarray(prompt, dtype=np.int64)] = True
        self._answer_counts = np.zeros(vocab_size, dtype=np.int32)
        self._num_answer_tokens = 0
        self._is_banned = np.zeros(vocab_size, dtype=np.bool_)
        banned = [*params.banned_tokens, *rules.banned_tokens]
        self._is_banned[banned] = True
        self._has_banned = bool(banned)
        self._ends = np.array([token for token in rules.end_token_ids if 0 <= token < vocab_size], dtype=np.int64)
        self._sequences = _BannedSequences(rules.banned_sequences)
        self._has_sequences = bool(rules.banned_sequences or rules.no_repeat_ngram_size)
        self._text = np.asarray(prompt, dtype=np.int64)
        self._counts_answer = bool(params.presence_penalty or params.frequency_penalty)
        self._counts_prompt = params.repetition_penalty != 1
        self._text_changes: tuple[TokenIds, Row] | None = None
        self._grammar = grammar
        self._thinking = None if thinking is None else AnswerThinking(thinking)

    @property
    def is_idle(self) -> bool:
        """Whether no row of this answer will ever be changed."""
        rules = self._rules
        is_ruled = rules.min_new_tokens or rules.banned_first_tokens or rules.last_tokens or self._has_sequences
        is_forced = self._params.forced_tokens or rules.first_token is not None or self._has_budget
        is_changed = self._counts_prompt or self._counts_answer or self._has_banned or is_forced or is_ruled
        return self._grammar is None and not is_changed

    @property
    def _has_budget(self) -> bool:
        return self._thinking is not None and self._thinking.has_budget

    @property
    def failure(self) -> str | None:
        """Return why the answer can be held to its grammar no longer, as a part of a sentence."""
        return None if self._grammar is None else self._grammar.failure

    def accept(self, token_ids: Sequence[int]) -> None:
        """Append a round's tokens to the answer that the next rows follow."""
        accepted = np.asarray(token_ids, dtype=np.int64)
        self._is_seen[accepted] = True
        np.add.at(self._answer_counts, accepted, 1)
        self._num_answer_tokens += len(accepted)
        self._text_changes = None
        if self._grammar is not None and (answered := self._behind_thinking(token_ids)) is not None:
            self._grammar.accept(answered)
        if self._thinking is not None:
            self._thinking.accept(token_ids)
        if self._has_sequences:
            self._text = np.concatenate((self._text, accepted))

    def adjusted(self, row: Row, path_token_ids: Sequence[int] = ()) -> Row:
        """Return the logits (V,) of the node whose ancestors and itself, below the root, are `path_token_ids` (D,).

        The root is the text's last token. `row` itself is returned if nothing changes, otherwise a copy. Changing a row
        of 152k floats took 0.02 (short texts) to 0.12 ms (30k tokens), and the copy 0.06 ms more.
        """
        result = self._ruled(row, path_token_ids)
        if self._grammar is None:
            return result
        answered = self._behind_thinking(path_token_ids)
        return self._grammar.without_ends(result) if answered is None else self._grammar.masked(result, answered)

    def forced(self, path_token_ids: Sequence[int] = (), *, max_tokens: int) -> tuple[int, ...]:
        """Return what is bound to follow a path, or nearly: see `AnswerGrammar.forced`; at most so many tokens."""
        path = list(path_token_ids)
        while len(path) - len(path_token_ids) < max_tokens and (token := self._given(path)) is not None:
            path.append(token)
        given = tuple(path[len(path_token_ids) :])
        if self._grammar is None or (answered := self._behind_thinking(path)) is None:
            return given
        return (*given, *self._grammar.forced(tuple(answered), max_tokens=max_tokens - len(given)))

    def _given(self, path: Sequence[int]) -> int | None:
        """Return the token that follows a path by name, or because thinking ends there; None where there is none."""
        index = self._index_behind(path)
        if index < len(self._params.forced_tokens):
            return self._params.forced_tokens[index]
        return None if self._thinking is None else self._thinking.forced(path)

    def _behind_thinking(self, path: Sequence[int]) -> Sequence[int] | None:
        """Return what of a path is no thinking that the prompt has begun; None where that has not ended."""
        return path if self._thinking is None else self._thinking.behind(path)

    def _ruled(self, row: Row, path_token_ids: Sequence[int]) -> Row:
        """Return the row as penalties, bans and forced tokens leave it."""
        index = self._index_behind(path_token_ids)
        if index < len(self._params.forced_tokens):
            return _only(row, self._params.forced_tokens[index : index + 1])
        if self._thinking is not None and (end := self._thinking.forced(path_token_ids)) is not None:
            return _only(row, (end,))
        if forced := self._demanded(index):
            result = _only(row, forced)
            result[self._is_banned] = -np.inf
            if self._is_first(index):
                result[list(self._rules.banned_first_tokens)] = -np.inf
            return result
        if self._leaves_rows(index):
            return row
        result = row.copy()
        token_ids, drops = self._changes_by_text()
        own_token_ids, own_drops = self._changes_by_path(path_token_ids)
        own_logits = row[own_token_ids]  # before the text's changes: every token is changed once
        result[token_ids] = self._changed(row[token_ids], drops)
        result[own_token_ids] = self._changed(own_logits, own_drops)
        return result

    def changes(self, paths: Sequence[Sequence[int]]) -> RowChanges | None:
        """Return what `adjusted` does to the rows behind W paths; None where only a few tokens of one are left."""
        indices = [self._index_behind(path) for path in paths]
        if self._grammar is not None or any(
            index < len(self._params.forced_tokens) or self._demanded(index) for index in indices
        ):
            return None
        if self._thinking is not None and any(self._thinking.forced(path) is not None for path in paths):
            return None
        own = [self._changes_by_path(path) for path in paths]
        lengths = [len(token_ids) for token_ids, _ in own]
        own_token_ids = np.zeros((len(own), max(lengths)), dtype=np.int64)
        own_drops = np.zeros(own_token_ids.shape, dtype=np.float32)
        for place, (token_ids, drops) in enumerate(own):
            if len(token_ids):
                own_token_ids[place], own_drops[place] = token_ids[0], drops[0]
            own_token_ids[place, : len(token_ids)], own_drops[place, : len(token_ids)] = token_ids, drops
        penalty = self._params.repetition_penalty
        return RowChanges(penalty, *self._changes_by_text(), own_token_ids, own_drops, np.array(lengths) > 0)

    def _index_behind(self, path: Sequence[int]) -> int:
        """Return the place in the answer of the token that follows a path."""
        return self._num_answer_tokens + len(path)

    def _demanded(self, index: int) -> tuple[int, ...]:
        """Return the tokens one of which must stand at this place of the answer, if it is such a place."""
        if index == 0 and self._rules.first_token is not None:
            return (self._rules.first_token,)
        return self._rules.last_tokens if index == self._params.max_new_tokens - 1 else ()

    def _leaves_rows(self, index: int) -> bool:
        """Whether a row at this place of the answer stays as it is."""
        is_ruled = self._is_first(index) or self._is_early(index) or self._has_sequences
        return not (self._is_penalised(index) or is_ruled or self._has_banned)

    def _is_penalised(self, index: int) -> bool:
        return self._counts_prompt or (self._counts_answer and index > 0)

    def _is_first(self, index: int) -> bool:
        """Whether what stands here may not be one of the rules' `banned_first_tokens`."""
        return bool(self._rules.banned_first_tokens) and index == int(self._rules.first_token is not None)

    def _is_early(self, index: int) -> bool:
        """Whether the answer may not end yet."""
        return index < self._rules.min_new_tokens

    def _changes_by_text(self) -> tuple[TokenIds, Row]:
        """Return the tokens of prompt, answer and bans, and their drops, (K,) each: those of every row of a round."""
        if self._text_changes is None:
            is_changed = self._is_banned.copy()
            if self._counts_prompt:
                is_changed |= self._is_seen
            elif self._counts_answer:
                is_changed |= self._answer_counts > 0
            token_ids = np.flatnonzero(is_changed)
            self._text_changes = token_ids, self._drops(token_ids, self._answer_counts[token_ids])
        return self._text_changes

    def _changes_by_path(self, path: Sequence[int]) -> tuple[TokenIds, Row]:
        """Return the tokens that a path changes, its own and what may not follow it, and their drops, (P,) each."""
        counted = path if self._counts_prompt or self._counts_answer else ()
        token_ids, counts = np.unique(np.asarray(counted, dtype=np.int64), return_counts=True)
        drops = self._drops(token_ids, self._answer_counts[token_ids] + counts.astype(np.int32))
        forbidden = self._forbidden(path)
        if not len(forbidden):
            return token_ids, drops
        is_free = ~np.isin(token_ids, forbidden)
        infinite = np.full(len(forbidden), np.inf, dtype=np.float32)
        return np.concatenate((token_ids[is_free], forbidden)), np.concatenate((drops[is_free], infinite))

    def _forbidden(self, path: Sequence[int]) -> TokenIds:
        """Return what may not follow the path because of the place, or of what stands before it."""
        index = self._index_behind(path)
        found = [self._ends] if self._is_early(index) else []
        if self._is_first(index):
            found.append(np.array(self._rules.banned_first_tokens, dtype=np.int64))
        if self._has_sequences:
            text = np.concatenate((self._text, np.asarray(path, dtype=np.int64)))
            found.append(self._sequences.completed_by(text))
            found.append(_repeating(text, self._rules.no_repeat_ngram_size))
        return np.concatenate(found) if found else _NOTHING

    def _changed(self, logits: Row, drops: Row) -> Row:
        """New logits (K,). Text and path share it: an accepted token must not change a row by a bit."""
        penalty = self._params.repetition_penalty
        if self._counts_prompt:
            logits = np.where(logits > 0, logits / penalty, logits * penalty)
        return logits - drops

    def _drops(self, token_ids: TokenIds, counts: NDArray[np.int32]) -> Row:
        """What is subtracted from tokens (K,) that the answer holds so many times; infinite for banned ones."""
        params = self._params
        drops = (params.frequency_penalty * counts + params.presence_penalty * (counts > 0)).astype(np.float32)
        if self._has_banned:
            drops[self._is_banned[token_ids]] = np.inf
        return drops


class _BannedSequences:
    """Finds the tokens that would complete one of many sequences, by what the text ends with."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        last_tokens: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for *prefix, last in sequences:
            last_tokens[tuple(prefix)].add(last)
        self._last_tokens = {prefix: np.array(sorted(tokens), dtype=np.int64) for prefix, tokens in last_tokens.items()}
        self._lengths = sorted({len(prefix) for prefix in last_tokens})

    def completed_by(self, text: TokenIds) -> TokenIds:
        """Return the tokens that may not follow `text` (T,)."""
        tail = text[-self._lengths[-1] :].tolist() if self._lengths and self._lengths[-1] else []
        ends = (tuple(tail[len(tail) - length :]) for length in self._lengths if length <= len(tail))
        found = [self._last_tokens[end] for end in ends if end in self._last_tokens]
        return np.concatenate(found) if found else _NOTHING


def _repeating(text: TokenIds, size: int) -> TokenIds:
    """Return the tokens that would make the last `size` tokens of `text` (T,) and them stand there again; 0: none."""
    if not 0 < size <= len(text):
        return _NOTHING
    follows = np.arange(size - 1, len(text))  # where a token stands that has size - 1 tokens before it
    for back in range(1, size):
        follows = follows[text[follows - back] == text[-back]]
        if not len(follows):
            break
    return text[follows]


def _only(row: Row, token_ids: Sequence[int]) -> Row:
    only = np.full_like(row, -np.inf)
    only[list(token_ids)] = 0
    return only


def _check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    for name, token_ids in (("banned_tokens", params.banned_tokens), ("forced_tokens", params.forced_tokens)):
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise OptionValueError(name, f" holds {token_id}; the model's ids are 0 to {vocab_size - 1}")
    banned = set(params.banned_tokens)
    if len(banned) == vocab_size:
        raise OptionValueError("banned_tokens", f" holds all {vocab_size} ids of the model; leave at least one out")
    for token_id in params.forced_tokens:
        if token_id in banned:
            raise OptionValueError("forced_tokens", f" holds {token_id}, which is banned as well; remove it from one")
