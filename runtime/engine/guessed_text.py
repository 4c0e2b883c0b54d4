"""Which characters of an answer trees had proposed, and which the target chose itself after each accepted path."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol


class TokenEnds(Protocol):
    """The text of an answer: in sessions a `BoxedAnswer`."""

    @property
    def token_ends(self) -> Sequence[int]:
        """Of each token whose text was released, how many characters the text has with it."""
        ...


class GuessedText:
    """Tells the stretches of an answer's text whose tokens were proposed and accepted."""

    def __init__(self, text: TokenEnds) -> None:
        self._text = text
        self._is_guessed: list[bool] = []  # by token of the text
        self.num_guessed = 0
        """Of all tokens of the answer, an end token included."""

    def add(self, num_text: int, *, num_new: int, num_accepted: int) -> None:
        """Add what a round emitted: `num_text` tokens of the text, `num_new` with an end token behind them.

        Of all that it emitted the first `num_accepted` stood in the tree.
        """
        self._is_guessed += [index < num_accepted for index in range(num_text)]
        self.num_guessed += min(num_new, num_accepted)

    def spans(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """Return which characters of those from `start` to `end` were guessed, as stretches counted from `start`.

        A character that several tokens make is the last one's; what follows the last token's end is its own too.
        """
        ends = self._text.token_ends
        found: list[tuple[int, int]] = []
        place, index = start, bisect_right(ends, start)
        while place < end and ends:
            index = min(index, len(ends) - 1)
            stop = end if index == len(ends) - 1 else min(end, ends[index])
            if stop > place and self._is_guessed[index]:
                begun = found.pop()[0] if found and found[-1][1] == place - start else place - start
                found.append((begun, stop - start))
            place, index = max(place, stop), index + 1
        return tuple(found)
