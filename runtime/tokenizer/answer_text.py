"""The text of an answer as its tokens come: no character is split, and no stop string is ever shown."""

from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_UNFINISHED_CHARACTER = "\ufffd"
_PROBE = "is it ? no , it 's ."
"""What cleaning up spaces would change."""


class AnswerText:
    """Turns accepted tokens into text as they come: no character is split, and no stop string is ever shown."""

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        *,
        behind: Sequence[int] = (),
        kept: Sequence[str] = (),
        has_ends: bool = False,
    ) -> None:
        """`behind`: the last tokens of a text that is written on; many tokenizers drop a text's first space.

        `kept`: tokens whose text stays although they are special, as marks do in which parts of the answer stand.
        `has_ends`: whether to find where each token ends.
        """
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._dropped = _special_ids(tokenizer).difference(_ids_of(tokenizer, kept)) if kept else None
        self._behind = list(behind)
        self._before = self._plain(self._behind) if self._behind else ""
        has_stream = not self._before.endswith(_UNFINISHED_CHARACTER)
        self._stream = _decode_stream(tokenizer, behind, is_all_shown=bool(kept)) if has_stream else None
        self._streamed = ""
        self._num_released = 0
        self._has_ends = has_ends
        self.token_ids: list[int] = []
        self.ends: list[int] = []
        """Of each token, how many whole characters the text has with it: one that is split ends with its last part."""
        self.is_stopped = False
        """Whether a stop string was found; later tokens change nothing."""

    @property
    def text(self) -> str:
        text = self._decode(self.token_ids)
        return text[: self._end_of(text)[0]]

    @property
    def stop_string(self) -> str | None:
        """Return the stop string that ended the text, if one did."""
        return self._end_of(self._decode(self.token_ids))[1]

    def _end_of(self, text: str) -> tuple[int, str | None]:
        """Return where a text ends, and the stop string that begins there, the earliest one."""
        ends = [(index, stop) for stop in self._stop if (index := text.find(stop)) >= 0]
        return min(ends, default=(len(text), None))

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the text has: those that a stop string begins before are none of its own."""
        num_tokens = len(self.token_ids)
        if self.is_stopped:
            num_characters = len(self.text)
            while num_tokens and self._num_decoded(num_tokens - 1) >= num_characters:
                num_tokens -= 1
        return num_tokens

    def add(self, token_ids: Sequence[int]) -> str:
        """Append tokens and return the text they release; stop after the token that completes a stop string."""
        for token_id in token_ids:
            if self.is_stopped:
                break
            self.token_ids.append(token_id)
            self._advance(token_id)
            if self._has_ends:
                end = self._num_decoded(len(self.token_ids)) if self._stream is None else len(self._streamed)
                self.ends.append(max(end, *self.ends[-1:], 0))
            self.is_stopped = bool(self._stop) and self._has_stop()
        return self._release(self.text if self.is_stopped else self._settled())

    def finish(self) -> str:
        """Return the text held back so far, once no token follows."""
        return self._release(self.text)

    def _num_decoded(self, num_tokens: int) -> int:
        """Return how many whole characters the first tokens have."""
        return len(self._decode(self.token_ids[:num_tokens]).rstrip(_UNFINISHED_CHARACTER))

    def _decode(self, token_ids: list[int]) -> str:
        return self._plain([*self._behind, *token_ids])[len(self._before) :]

    def _plain(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens without those that are special, but for those that are kept."""
        ids = list(token_ids)
        if self._dropped is not None:
            ids = [token_id for token_id in ids if token_id not in self._dropped]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._dropped is None)
        return text

    def _advance(self, token_id: int) -> None:
        """Decode one more token, so that a round costs its own tokens and not the whole answer."""
        if self._stream is None or (self._dropped is not None and token_id in self._dropped):
            return
        try:
            self._streamed += self._stream.step(self._tokenizer.backend_tokenizer, token_id) or ""
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # of Rust, or its panic: bytes that are no UTF-8 change how those before are decoded
            self._stream = None

    def _settled(self) -> str:
        """Return the text that no later token changes and that begins no stop string."""
        text = self._decode(self.token_ids) if self._stream is None else self._streamed
        text = text.rstrip(_UNFINISHED_CHARACTER)
        return text[: len(text) - self._held_for_stop(text)]

    def _release(self, text: str) -> str:
        released = text[self._num_released :]
        self._num_released = max(self._num_released, len(text))
        return released

    def _has_stop(self) -> bool:
        # The tail is enough: a stop string that ends with this token covers at most as many tokens as it has bytes.
        longest = max(len(stop.encode()) for stop in self._stop)
        tail = self._plain(self.token_ids[-longest - 8 :])
        return any(stop in tail for stop in self._stop)

    def _held_for_stop(self, text: str) -> int:
        """Return how many last characters could be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for num_held in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-num_held:]) for stop in self._stop):
                return num_held
        return 0


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    return frozenset((*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)))


def _ids_of(tokenizer: Any, contents: Sequence[str]) -> Iterator[int]:
    """Yield the ids of added tokens."""
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.content in contents:
            yield token_id


def _decode_stream(tokenizer: Any, behind: Sequence[int], *, is_all_shown: bool) -> DecodeStream | None:
    """Return a stream of what `tokenizer` decodes; None if its text is not that of the library below it.

    Tokenizers written in Python have no such library, and some take spaces before punctuation away afterwards.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    probe: list[int] = backend.encode(_PROBE, add_special_tokens=False).ids
    if tokenizer.decode(probe, skip_special_tokens=True) != backend.decode(probe, skip_special_tokens=True):
        return None
    return DecodeStream(ids=list(behind), skip_special_tokens=not is_all_shown)
