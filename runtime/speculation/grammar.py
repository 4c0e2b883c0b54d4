"""Holds an answer to a JSON schema: in each place of a tree the tokens that its own path allows, and no others.

One matcher of llguidance serves an answer. It stands behind the answer and goes along the path of the node whose row is
asked for, back first as far as the last one's has another beginning. A masked row of 152k floats took 0.3 ms, a third
of it the mask; one of 32k 0.06 ms. Both models' rows are masked, before temperature and filters, which so share out
what is allowed.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OptionError
from runtime.speculation.schemes import Row
from runtime.tokenizer.json_schema import grammar_of, json_library, limits, reason

MAX_KEPT_GRAMMARS = 64
"""Compiled ones, by schema: most lines of a file share a few."""
BLANKS = (b" ", b"\t", b"\n", b"\r")
MAX_SPELLINGS = 64
"""A text that is forced has as many tokens that begin it; where more are allowed, none is."""


class Grammars:
    """What answers with a schema share: the vocabulary as the library has it, and compiled schemas."""

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        *,
        vocab_size: int,
        end_token_ids: Sequence[int],
        check: Callable[[str], None],
    ) -> None:
        """`token_bytes`: what each token adds to a text, none for special ones; of `vocab_size` V rows the others none.

        `check` compiles a schema somewhere safe, and raises OptionError. A vocabulary of 152k tokens took 1.0 s. Raises
        OptionError where no token could end an answer.
        """
        self._library = json_library()
        self._ends = frozenset(token for token in end_token_ids if token < vocab_size)
        if not self._ends:
            raise OptionError(
                "the model has no end token, so that no answer in JSON could end; leave response_format out"
            )
        self._vocab_size = vocab_size
        self._check = check
        self._compiled: dict[str, Any] = {}
        padded = [*token_bytes[:vocab_size], *[b""] * (vocab_size - len(token_bytes))]
        for token in self._ends:
            padded[token] = b""
        self._token_bytes = padded
        self._is_solid = np.array([bool(content) and not content.startswith(BLANKS) for content in padded])
        vocabulary = self._library.TokenizerWrapper(_Vocabulary(padded, min(self._ends)))
        self._tokenizer = self._library.LLTokenizer(vocabulary, n_vocab=vocab_size, eos_token=sorted(self._ends))

    def begin(self, schema: str) -> "AnswerGrammar":
        """Return what holds one answer to a JSON schema. Raises OptionError where the schema allows no answer."""
        if schema not in self._compiled:
            self._check(schema)
            matcher = self._library.LLMatcher(self._tokenizer, grammar_of(schema), log_level=0, limits=limits())
            grammar = self._answer(matcher.deep_copy())
            allowed = grammar.allowed()
            if allowed is None or not allowed.any():
                why = reason(matcher.get_error()) or grammar.failure or "no token of the model begins an answer"
                raise OptionError(f"the JSON schema allows no answer: {why}; change the schema")
            while len(self._compiled) >= MAX_KEPT_GRAMMARS:
                self._compiled.pop(next(iter(self._compiled)))
            self._compiled[schema] = matcher
        return self._answer(self._compiled[schema].deep_copy())

    def _answer(self, matcher: Any) -> "AnswerGrammar":
        return AnswerGrammar(
            matcher,
            vocab_size=self._vocab_size,
            end_token_ids=self._ends,
            token_bytes=self._token_bytes,
            is_solid=self._is_solid,
        )


class _Vocabulary:
    """A tokenizer as the library asks for it, which it never asks to encode: no token is forced."""

    bos_token_id = None
    special_token_ids = ()

    def __init__(self, token_bytes: Sequence[bytes], end_token_id: int) -> None:
        self.tokens = token_bytes
        self.eos_token_id = end_token_id

    def __call__(self, text: object) -> list[int]:
        raise NotImplementedError


class AnswerGrammar:
    """One answer's schema, and how far the answer is; behind its end token anything may stand."""

    def __init__(
        self,
        matcher: Any,
        *,
        vocab_size: int,
        end_token_ids: frozenset[int],
        token_bytes: Sequence[bytes],
        is_solid: NDArray[np.bool_],
    ) -> None:
        """`matcher`: llguidance's, at the beginning of an answer; `vocab_size` V: columns of every row.

        `token_bytes` of each, none for ends and special ones; `is_solid` (V,): which of them begin with no blank.
        """
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._ends = end_token_ids
        self._token_bytes = token_bytes
        self._is_solid = is_solid
        self._has_ended = False
        self._path: tuple[int, ...] = ()
        """Where the matcher stands: behind these tokens, which follow the answer."""
        self.failure: str | None = None
        """Why the answer can be held to its schema no longer, as a part of a sentence; rows stay as they are then."""

    def accept(self, token_ids: Sequence[int]) -> None:
        """Append a round's tokens to the answer that the next rows follow."""
        if self._has_ended or self.failure is not None:
            return
        written = tuple(itertools.takewhile(lambda token: token not in self._ends, token_ids))
        self._has_ended = len(written) < len(token_ids)
        if not self._go_to(written):
            self.failure = "a token came that it does not allow"
        self._path = ()

    def masked(self, row: Row, path_token_ids: Sequence[int] = ()) -> Row:
        """Return the logits (V,) behind a path with -inf for what may not follow; `row` itself where all may."""
        allowed = self.allowed(path_token_ids)
        return row if allowed is None else np.where(allowed, row, np.float32(-np.inf))

    def without_ends(self, row: Row) -> Row:
        """Return a copy of the logits (V,) with -inf for what would end the text before there is an answer."""
        result = row.copy()
        result[list(self._ends)] = -np.inf
        return result

    def allowed(self, path_token_ids: Sequence[int] = ()) -> NDArray[np.bool_] | None:
        """Return which tokens (V,) may follow a path behind the answer, the end tokens where it may end.

        None behind an end token, and behind a path that is not allowed itself, where no answer comes.
        """
        path = tuple(path_token_ids)
        if self._has_ended or self.failure is not None or not self._ends.isdisjoint(path) or not self._go_to(path):
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # a step took more than the library's limits, and the matcher is of no use now
            self.failure = reason(self._matcher.get_error())
            return None
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def forced(self, path_token_ids: Sequence[int] = (), *, max_tokens: int) -> tuple[int, ...]:
        """Return what must follow a path if no blank does: at most so many tokens, the longest in each place.

        Keys, and the signs between values. A proposal like any other: a blank may stand there, and shorter tokens.
        Each token took 0.15 ms of a vocabulary of 152k, and so does a place where nothing is forced.
        """
        path = list(path_token_ids)
        num_given = len(path)
        while len(path) - num_given < max_tokens:
            allowed = self.allowed(path)
            if allowed is None or not allowed.any() or allowed[list(self._ends)].any():
                break
            solid = allowed & self._is_solid
            spellings = np.flatnonzero(solid if solid.any() else allowed).tolist()
            if len(spellings) > MAX_SPELLINGS:
                break
            longest = max(spellings, key=lambda token: len(self._token_bytes[token]))
            if not all(self._token_bytes[longest].startswith(self._token_bytes[token]) for token in spellings):
                break
            path.append(longest)
        return tuple(path[num_given:])

    def _go_to(self, path: tuple[int, ...]) -> bool:
        """Move the matcher behind a path, as far as that is allowed; return whether it is."""
        num_shared = 0
        for ours, theirs in zip(self._path, path, strict=False):
            if ours != theirs:
                break
            num_shared += 1
        if num_shared < len(self._path):
            self._matcher.rollback(len(self._path) - num_shared)
        num_taken = self._matcher.try_consume_tokens(list(path[num_shared:]))
        self._path = path[: num_shared + num_taken]
        return len(self._path) == len(path)
