"""Penalties, bans and forced tokens: what happens to a row of logits before it becomes a distribution.

A row belongs to a node, and is judged by the node's own path: prompt, answer so far and the node's ancestors in the
tree, as plain decoding would judge it once that path is the text. Draft and target rows go through the same object.
Knows no model and no tree. Definitions: repetition penalty over prompt and answer, as in transformers and vLLM (CTRL,
arXiv 1909.05858, section 4.1, made right for negative logits); presence and frequency penalty over the answer alone,
as in OpenAI's interface and vLLM, so that words of the question stay free. They come in this order, then bans; a
forced token overrules them all.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import OptionError
from runtime.speculation.schemes import Row

TokenIds = NDArray[np.int64]


class ProcessorChoices(Protocol):
    """The part of SamplingParams that changes logits according to the text."""

    @property
    def repetition_penalty(self) -> float:
        """Logits of tokens in prompt or answer are divided by it if positive, else multiplied; 1 is off."""

    @property
    def presence_penalty(self) -> float:
        """Subtracted from the logit of every token that the answer holds; 0 is off."""

    @property
    def frequency_penalty(self) -> float:
        """Subtracted from a token's logit once for each time the answer holds it; 0 is off."""

    @property
    def banned_tokens(self) -> tuple[int, ...]:
        """Ids that are never emitted."""

    @property
    def forced_tokens(self) -> tuple[int, ...]:
        """Ids that the answer begins with."""


class TokenHistory:
    """How often each token stands in the answer so far, and which stand in the prompt; O(1) for each accepted token."""

    def __init__(self, prompt: Sequence[int], *, vocab_size: int) -> None:
        """All of `prompt` is prompt; the answer is empty."""
        self._is_seen = np.zeros(vocab_size, dtype=np.bool_)
        self._is_seen[np.asarray(prompt, dtype=np.int64)] = True
        self._answer_counts = np.zeros(vocab_size, dtype=np.int32)
        self._num_answer_tokens = 0

    @property
    def num_answer_tokens(self) -> int:
        """Tokens of the answer so far."""
        return self._num_answer_tokens

    def add(self, token_ids: Sequence[int]) -> None:
        """Append accepted tokens to the answer."""
        added = np.asarray(token_ids, dtype=np.int64)
        self._is_seen[added] = True
        np.add.at(self._answer_counts, added, 1)
        self._num_answer_tokens += len(added)

    def seen_ids(self) -> TokenIds:
        """The different tokens of prompt and answer, ascending."""
        return np.flatnonzero(self._is_seen)

    def answer_ids(self) -> TokenIds:
        """The different tokens of the answer, ascending."""
        return np.flatnonzero(self._answer_counts)

    def counts(self, token_ids: TokenIds) -> NDArray[np.int32]:
        """How often the answer holds each of `token_ids` (K,)."""
        counts: NDArray[np.int32] = self._answer_counts[token_ids]
        return counts


class LogitProcessor:
    """One answer's penalties, bans and forced tokens, and the text that they depend on.

    A row costs as much as it has tokens to change, and nothing if there are none.
    """

    def __init__(self, choices: ProcessorChoices, *, prompt: Sequence[int], vocab_size: int) -> None:
        """`vocab_size` V: columns of every row. Raises OptionError if no token is left, or an id is not one of V."""
        _check_token_ids(choices, vocab_size)
        self._choices = choices
        self._history = TokenHistory(prompt, vocab_size=vocab_size)
        self._banned = np.array(sorted(set(choices.banned_tokens)), dtype=np.int64)
        self._counts_answer = bool(choices.presence_penalty or choices.frequency_penalty)
        self._counts_prompt = choices.repetition_penalty != 1
        self._text_ids: TokenIds | None = None
        self._text_drops = np.empty(0, dtype=np.float32)

    @property
    def is_idle(self) -> bool:
        """Whether no row of this answer will ever be changed."""
        return not (self._counts_prompt or self._counts_answer or len(self._banned) or len(self._choices.forced_tokens))

    def accept(self, token_ids: Sequence[int]) -> None:
        """Append a round's tokens to the answer that the next rows follow."""
        self._history.add(token_ids)
        self._text_ids = None

    def forced_token(self, num_path_tokens: int = 0) -> int | None:
        """The only token allowed behind the text and `num_path_tokens` more, or None where any may stand."""
        index = self._history.num_answer_tokens + num_path_tokens
        forced = self._choices.forced_tokens
        return forced[index] if index < len(forced) else None

    def adjusted(self, row: Row, path_token_ids: ArrayLike = ()) -> Row:
        """The logits (V,) of the node whose ancestors and itself, below the root, are `path_token_ids` (D,).

        The root is the text's last token. `row` itself is returned if nothing changes, otherwise a copy.
        """
        path = np.asarray(path_token_ids, dtype=np.int64)
        if not self._changes_rows(path):
            return row
        result = row.copy()
        self.adjust(result, path)
        return result

    def adjust(self, row: Row, path_token_ids: ArrayLike = ()) -> None:
        """As `adjusted`, but in place: for a writable row (V,) that nobody else reads, and once for each row.

        Changing a row of 152k floats took 0.02 (short texts) to 0.12 ms (30k tokens); a copy adds 0.06 ms, and 0.4 ms
        where 200 copies are kept, as their memory is fresh.
        """
        path = np.asarray(path_token_ids, dtype=np.int64)
        forced = self.forced_token(len(path))
        if forced is not None:
            row[:] = -np.inf
            row[forced] = 0
            return
        if self._counts_prompt or self._counts_answer:
            self._penalise(row, path)
        row[self._banned] = -np.inf

    def _changes_rows(self, path: TokenIds) -> bool:
        if len(self._banned) or self.forced_token(len(path)) is not None:
            return True
        return self._counts_prompt or (self._counts_answer and self._history.num_answer_tokens + len(path) > 0)

    def _penalise(self, row: Row, path: TokenIds) -> None:
        if self._text_ids is None:
            history = self._history
            self._text_ids = history.seen_ids() if self._counts_prompt else history.answer_ids()
            self._text_drops = self._drops(history.counts(self._text_ids))
        added = Counter(path.tolist())
        path_ids = np.fromiter(added.keys(), dtype=np.int64, count=len(added))
        path_logits = row[path_ids]  # before the text's own changes: every token is changed once
        row[self._text_ids] = self._penalised(row[self._text_ids], self._text_drops)
        if added:
            path_counts = np.fromiter(added.values(), dtype=np.int32, count=len(added))
            counts = self._history.counts(path_ids) + path_counts
            row[path_ids] = self._penalised(path_logits, self._drops(counts))

    def _penalised(self, logits: Row, drops: NDArray[np.float32]) -> Row:
        """New logits (K,). Text and path share it: an accepted token must not change a row by a bit."""
        penalty = self._choices.repetition_penalty
        if self._counts_prompt:
            logits = np.where(logits > 0, logits / penalty, logits * penalty)
        return logits - drops if self._counts_answer else logits

    def _drops(self, counts: NDArray[np.int32]) -> NDArray[np.float32]:
        """What presence and frequency penalty subtract from tokens that the answer holds `counts` (K,) times."""
        choices = self._choices
        return (choices.frequency_penalty * counts + choices.presence_penalty * (counts > 0)).astype(np.float32)


def _check_token_ids(choices: ProcessorChoices, vocab_size: int) -> None:
    for name, token_ids in (("banned_tokens", choices.banned_tokens), ("forced_tokens", choices.forced_tokens)):
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise OptionError(f"{name} holds {token_id}; the model's ids are 0 to {vocab_size - 1}")
    banned = set(choices.banned_tokens)
    if len(banned) == vocab_size:
        raise OptionError(f"banned_tokens holds all {vocab_size} ids of the model; leave at least one out")
    for token_id in choices.forced_tokens:
        if token_id in banned:
            raise OptionError(f"forced_tokens holds {token_id}, which is among banned_tokens; remove it from one")
