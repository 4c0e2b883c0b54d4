"""Turns accepted tokens into text as they come: no character is split, no stop string is ever shown.

Knows the tokenizer's decode and the stop strings, not models or rounds.
"""

from collections.abc import Sequence
from typing import Protocol

_UNFINISHED_CHARACTER = "\ufffd"


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""


class DecoderBehind:
    """Decodes tokens that stand behind others: many tokenizers drop the space that a text begins with."""

    def __init__(self, tokenizer: Decoder, token_ids: Sequence[int]) -> None:
        """`token_ids` are some of those before."""
        self._tokenizer = tokenizer
        self._before = list(token_ids)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text that the token ids add."""
        before = self._tokenizer.decode(self._before, skip_special_tokens=skip_special_tokens)
        text = self._tokenizer.decode([*self._before, *token_ids], skip_special_tokens=skip_special_tokens)
        return text[len(before) :]


class IncrementalDetokenizer:
    """Collects an answer's tokens and releases the text that can no longer change."""

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._num_released = 0
        self.token_ids: list[int] = []
        """The answer's tokens so far."""
        self.is_stopped = False
        """Whether a stop string was found; later tokens change nothing."""

    @property
    def text(self) -> str:
        """The answer so far, cut before the first stop string."""
        text = self._tokenizer.decode(self.token_ids, skip_special_tokens=True)
        ends = [index for stop in self._stop if (index := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def add(self, token_ids: Sequence[int]) -> str:
        """Append tokens and return the text they release; stops after the token that completes a stop string."""
        for token_id in token_ids:
            if self.is_stopped:
                break
            self.token_ids.append(token_id)
            self.is_stopped = bool(self._stop) and self._has_stop()
        return self._release(is_last=self.is_stopped)

    def finish(self) -> str:
        """The text held back so far, once no token follows."""
        return self._release(is_last=True)

    def _has_stop(self) -> bool:
        # The tail is enough: a stop string that ends with this token covers at most as many tokens as it has bytes.
        longest = max(len(stop.encode()) for stop in self._stop)
        tail = self._tokenizer.decode(self.token_ids[-longest - 8 :], skip_special_tokens=True)
        return any(stop in tail for stop in self._stop)

    def _release(self, *, is_last: bool) -> str:
        text = self.text
        end = len(text)
        if not is_last:
            end -= len(text) - len(text.rstrip(_UNFINISHED_CHARACTER))
            end -= self._held_for_stop(text[:end])
        released = text[self._num_released : end]
        self._num_released = max(self._num_released, end)
        return released

    def _held_for_stop(self, text: str) -> int:
        """How many last characters could be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for num_held in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-num_held:]) for stop in self._stop):
                return num_held
        return 0
