"""Where an answer thinks, told by its tokens, and where its thinking has to end: each node by its own path.

The tokens of a path alone decide it, so that draft and target rows, and any tree, come to the same text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

Mark = tuple[tuple[int, ...], ...]
"""The tokens that may stand in each of a mark's places, first the one that is written where the mark is forced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingRules:
    """What is to hold for the thinking of one answer."""

    begin: Mark
    end: Mark
    """Not empty."""
    budget: int | None
    """Tokens of thinking, in all of an answer, behind which the end is forced; None is no limit."""
    num_begun: int | None = None
    """Tokens of it with which the prompt ends; None where the answer does not begin within thinking."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """A place in an answer, between two tokens."""

    is_inside: bool
    num_tokens: int
    """Of thinking, before it."""
    tail: tuple[int, ...] = ()
    """The last tokens since a mark, as many as the next mark may have begun with."""


class AnswerThinking:
    """How far an answer's thinking is, and what follows for the places behind it."""

    def __init__(self, rules: ThinkingRules) -> None:
        """The answer has no token yet."""
        self._rules = rules
        self._spot = _Spot(rules.num_begun is not None, rules.num_begun or 0)
        self._is_answer = rules.num_begun is None

    @property
    def has_budget(self) -> bool:
        return self._rules.budget is not None

    def accept(self, token_ids: Sequence[int]) -> None:
        """Append a round's tokens to the answer."""
        self._is_answer = self.behind(token_ids) is not None
        self._spot = self._after(token_ids)

    def forced(self, path: Sequence[int] = ()) -> int | None:
        """Return the only token that may follow a path behind the answer; None where any may."""
        if self._rules.budget is None:
            return None
        spot = self._after(path)
        if not spot.is_inside or spot.num_tokens < self._rules.budget:
            return None
        return self._rules.end[self._num_matched(spot.tail, self._rules.end)][0]

    def behind(self, path: Sequence[int]) -> Sequence[int] | None:
        """Return what of a path behind the answer stands behind the thinking that the prompt has begun.

        None where that goes on behind the path.
        """
        if self._is_answer:
            return path
        spot = self._spot
        for index, token in enumerate(path):
            spot = self._step(spot, token)
            if not spot.is_inside:
                return path[index + 1 :]
        return None

    def _after(self, path: Sequence[int]) -> _Spot:
        spot = self._spot
        for token in path:
            spot = self._step(spot, token)
        return spot

    def _step(self, spot: _Spot, token: int) -> _Spot:
        mark = self._rules.end if spot.is_inside else self._rules.begin
        tail = (*spot.tail, token)[-len(mark) :]
        num_tokens = spot.num_tokens + spot.is_inside
        if len(tail) == len(mark) and self._num_matched(tail, mark) == len(mark):
            own = len(mark) if spot.is_inside else 0  # an end mark is no thinking
            return _Spot(not spot.is_inside, num_tokens - own)
        return replace(spot, num_tokens=num_tokens, tail=tail[len(tail) >= len(mark) :])

    @staticmethod
    def _num_matched(tail: Sequence[int], mark: Mark) -> int:
        """Return how many places of a mark the last tokens fill."""
        for length in range(min(len(tail), len(mark)), 0, -1):
            if all(token in place for token, place in zip(tail[len(tail) - length :], mark, strict=False)):
                return length
        return 0


def num_thought(prompt: Sequence[int], *, begin: Mark, end: Mark) -> int | None:
    """Return how many tokens of thinking a text ends with that has not ended; None where it ends with none."""
    for start in range(len(prompt) - len(begin), -1, -1):
        rest = prompt[start:]
        if all(token in place for token, place in zip(rest, begin, strict=False)):
            return len(rest) - len(begin)
        if len(rest) >= len(end) and all(token in place for token, place in zip(rest, end, strict=False)):
            return None
    return None
