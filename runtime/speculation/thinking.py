"""Where an answer thinks, told by its tokens, and where its thinking has to end: each node by its own path.

The tokens of a path alone decide it, so that draft and target rows, and any tree, come to the same text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

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


class _Spot(NamedTuple):
    """A place in an answer, between two tokens."""

    is_inside: bool
    num_tokens: int
    """Of thinking, before it."""
    tail: tuple[int, ...] = ()
    """The last tokens since a mark, as many as the next mark may have begun with."""


class AnswerThinking:
    """How far an answer's thinking is, and what follows for the places behind it.

    A place took less than 1 us where the budget cannot be reached, else about 1 us for each token of its path.
    """

    def __init__(self, rules: ThinkingRules) -> None:
        """The answer has no token yet."""
        self._rules = rules
        self._marks = (_Mark(rules.begin), _Mark(rules.end))
        self._spot = _Spot(rules.num_begun is not None, rules.num_begun or 0)
        self._is_answer = rules.num_begun is None

    @property
    def has_budget(self) -> bool:
        return self._rules.budget is not None

    @property
    def is_inside(self) -> bool:
        """Return whether the answer is within thinking."""
        return self._spot.is_inside

    @property
    def num_tokens(self) -> int:
        """Return how many tokens of thinking there are so far, those of a mark that may be ending it included."""
        return self._spot.num_tokens

    def accept(self, token_ids: Sequence[int]) -> None:
        """Append a round's tokens to the answer."""
        self._is_answer = self.behind(token_ids) is not None
        self._spot = self._after(token_ids)

    def forced(self, path: Sequence[int] = ()) -> int | None:
        """Return the only token that may follow a path behind the answer; None where any may."""
        budget, spot = self._rules.budget, self._spot
        if budget is None or spot.num_tokens + len(path) < budget:
            return None
        if not spot.is_inside and self._marks[False].last.isdisjoint(path):
            return None
        spot = self._after(path)
        if not spot.is_inside or spot.num_tokens < budget:
            return None
        return self._rules.end[self._marks[True].num_filled(spot.tail)][0]

    def behind(self, path: Sequence[int]) -> Sequence[int] | None:
        """Return what of a path behind the answer stands behind the thinking that the prompt has begun.

        None where that goes on behind the path.
        """
        if self._is_answer:
            return path
        if self._marks[True].last.isdisjoint(path):
            return None
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
        is_inside, num_tokens, tail = spot
        mark = self._marks[is_inside]
        num_tokens += is_inside
        if token in mark.last and mark.is_filled((*tail, token)):
            return _Spot(not is_inside, num_tokens - mark.length * is_inside)  # an end mark is no thinking
        return _Spot(is_inside, num_tokens, (*tail, token)[1 - mark.length :] if mark.length > 1 else ())


class _Mark:
    """Finds one mark in the tokens that came last."""

    def __init__(self, places: Mark) -> None:
        self._places = tuple(map(frozenset, places))
        self.length = len(places)
        self.last = self._places[-1]
        """What may stand in its last place."""

    def is_filled(self, tail: Sequence[int]) -> bool:
        """Return whether these last tokens are the mark."""
        is_long_enough = len(tail) >= self.length
        return is_long_enough and self._fits(tail[-self.length :])

    def num_filled(self, tail: Sequence[int]) -> int:
        """Return how many of its places the last tokens fill."""
        lengths = range(min(len(tail), self.length), 0, -1)
        return next((length for length in lengths if self._fits(tail[-length:])), 0)

    def _fits(self, tokens: Sequence[int]) -> bool:
        return all(token in place for token, place in zip(tokens, self._places, strict=False))


def num_thinking(answer: Sequence[int], rules: ThinkingRules) -> int:
    """Return how many tokens of an answer are thinking: of the first that there is in it, without marks."""
    thinking = AnswerThinking(replace(rules, budget=None, num_begun=None if rules.num_begun is None else 0))
    for token in answer:
        was_inside = thinking.is_inside
        thinking.accept([token])
        if was_inside and not thinking.is_inside:
            break
    return thinking.num_tokens


def num_opening(prompt: Sequence[int], *, begin: Mark) -> int:
    """Return how many tokens a text has from the last mark on that begins thinking; 0 where it has none."""
    return next((len(prompt) - start for start in reversed(range(len(prompt))) if _is_at(start, begin, prompt)), 0)


def num_thought(prompt: Sequence[int], *, begin: Mark, end: Mark) -> int | None:
    """Return how many tokens of thinking a text ends with that has not ended; None where it ends with none."""
    for start in reversed(range(len(prompt))):
        if _is_at(start, begin, prompt):
            return len(prompt) - start - len(begin)
        if _is_at(start, end, prompt):
            return None
    return None


def _is_at(start: int, mark: Mark, text: Sequence[int]) -> bool:
    """Return whether a mark stands whole in a text, from this token on."""
    return len(text) - start >= len(mark) and all(
        token in place for token, place in zip(text[start : start + len(mark)], mark, strict=True)
    )
