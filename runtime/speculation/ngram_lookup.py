"""Continuations looked up in the text itself: what followed the last time the text read as it does now.

An answer that edits its prompt repeats long stretches of it, and a look into the text costs no forward of a draft. The
index grows by each accepted token and shrinks again, both in O(1); it holds one entry for each token of the text. Knows
token ids and no models; what becomes of a continuation is for the tree to say. Source: prompt lookup decoding, as
transformers and vLLM have it, with the longest match first and copies that may overlap the text's end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens that once followed what now stands at the end."""

    token_ids: tuple[int, ...]
    """The tokens to come, nearest first."""
    num_matched: int
    """How many tokens at the end read like those before the place it was found at, up to the index's `max_match`."""


class NgramIndex:
    """A text, and where each n-gram of it stands."""

    def __init__(self, *, min_match: int = 3, max_match: int = 16, max_candidates: int = 64) -> None:
        """Matches of at least `min_match` tokens are found and told apart up to `max_match`.

        Of an n-gram that is frequent, the newest `max_candidates` places are compared. Raises ValueError unless
        1 <= min_match <= max_match and max_candidates >= 1.
        """
        if not 1 <= min_match <= max_match or max_candidates < 1:
            raise ValueError(
                f"expected 1 <= min_match <= max_match and max_candidates >= 1, found {min_match}, {max_match} and "
                f"{max_candidates}"
            )
        self._min_match = min_match
        self._max_match = max_match
        self._max_candidates = max_candidates
        self._text: list[int] = []
        self._newest_end: dict[tuple[int, ...], int] = {}
        self._older_end: list[int] = [0]
        """For each length of the text, the next older place behind the same n-gram; 0 if there is none."""

    def __len__(self) -> int:
        """Tokens of the text."""
        return len(self._text)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append accepted tokens."""
        for token_id in token_ids:
            self._text.append(token_id)
            if len(self._text) < self._min_match:
                self._older_end.append(0)
                continue
            gram = self._last_gram()
            self._older_end.append(self._newest_end.get(gram, 0))
            self._newest_end[gram] = len(self._text)

    def truncate(self, num_tokens: int) -> None:
        """Forget everything behind the first `num_tokens` tokens."""
        while len(self._text) > num_tokens:
            older = self._older_end.pop()
            if len(self._text) >= self._min_match:
                gram = self._last_gram()
                if older:
                    self._newest_end[gram] = older
                else:
                    del self._newest_end[gram]
            self._text.pop()

    def follow(self, text: Sequence[int]) -> None:
        """Make `text` the text; what it has in common with the old one, from the front, is kept."""
        num_common = 0
        for old, new in zip(self._text, text, strict=False):
            if old != new:
                break
            num_common += 1
        self.truncate(num_common)
        self.extend(text[num_common:])

    def continuations(self, path: Sequence[int] = (), *, max_tokens: int, max_branches: int = 1) -> list[Continuation]:
        """At most `max_branches` different continuations of the text followed by `path`, tokens of a path in a tree.

        Each has exactly `max_tokens` tokens: where a copy reaches the end, it goes on with what it has copied, so that
        a text which repeats itself is continued in its period. Longest match first, among equals the newest place.
        """
        tail = [*self._text[-self._max_match :], *path][-self._max_match :]
        places = [(self._num_matched(end, tail), end) for end in self._candidate_ends(tail, has_path=bool(path))]
        places.sort(key=lambda place: -place[0])  # stable: the newest stays first among equals
        found: dict[tuple[int, ...], Continuation] = {}
        for num_matched, end in places:
            if len(found) == max_branches:
                break
            token_ids = self._copied(end, path, max_tokens)
            found.setdefault(token_ids, Continuation(token_ids, num_matched))
        return list(found.values())

    def _last_gram(self) -> tuple[int, ...]:
        return tuple(self._text[-self._min_match :])

    def _candidate_ends(self, tail: Sequence[int], *, has_path: bool) -> Iterator[int]:
        """Lengths of the text up to an occurrence of the tail's last n-gram, newest first; never the tail itself."""
        if len(tail) < self._min_match:
            return
        end = self._newest_end.get(tuple(tail[-self._min_match :]), 0)
        if end == len(self._text) and not has_path:
            end = self._older_end[end]
        for _ in range(self._max_candidates):
            if not end:
                return
            yield end
            end = self._older_end[end]

    def _num_matched(self, end: int, tail: Sequence[int]) -> int:
        num_matched = self._min_match
        most = min(len(tail), end)
        while num_matched < most and self._text[end - 1 - num_matched] == tail[-1 - num_matched]:
            num_matched += 1
        return num_matched

    def _copied(self, end: int, path: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        copied = self._text[end : end + num_tokens]
        if len(copied) < num_tokens:
            copied = list(islice(cycle([*copied, *path]), num_tokens))
        return tuple(copied)
