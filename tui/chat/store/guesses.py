"""Which characters of an answer were guessed ahead and kept, and which the model chose itself, as it is stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Origin = Literal["guessed", "chosen", "unknown"]
"""Proposed by a tree and accepted; the target's own token behind an accepted path; written by a person, or not told."""
Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """Where each character of an answer comes from; kept in its `statistics`, as numbers of characters alone."""

    start: Count = 0
    """How many characters at the beginning are of unknown origin."""
    lengths: tuple[Count, ...] = ()
    """How many behind them were guessed, how many then chosen, and so on in turns."""

    @property
    def end(self) -> int:
        """Return up to which character it is known."""
        return self.start + sum(self.lengths)

    def with_text(self, num_characters: int, guessed: tuple[tuple[int, int], ...]) -> "Guesses":
        """Return this with more text at the end, of which those stretches were guessed, in order."""
        lengths = [*self.lengths]
        place = 0
        for start, end in (*guessed, (num_characters, num_characters)):
            _extend(lengths, start - place, is_guessed=False)
            _extend(lengths, end - start, is_guessed=True)
            place = end
        return Guesses(start=self.start, lengths=tuple(lengths))

    def pieces(self, text: str) -> Iterator[tuple[str, Origin]]:
        """Yield the answer's text in pieces of one origin each, none of them empty; a line end is never cut."""
        places: list[tuple[int, Origin]] = [(self.start, "unknown")]
        for index, length in enumerate(self.lengths):
            places.append((places[-1][0] + length, "chosen" if index % 2 else "guessed"))
        begun = 0
        for end, origin in (*places, (len(text), "unknown")):
            if text[end - 1 : end + 1] == "\r\n":
                end += 1
            if piece := text[begun:end]:
                yield piece, origin
            begun = max(begun, end)

    def to_record(self) -> dict[str, Any]:
        """Return it as `statistics` have it."""
        return {"start": self.start, "lengths": list(self.lengths)}


def _extend(lengths: list[int], num_characters: int, *, is_guessed: bool) -> None:
    if num_characters <= 0:
        return
    if not lengths and not is_guessed:
        lengths.append(0)
    if lengths and (len(lengths) % 2 == 1) == is_guessed:
        lengths[-1] += num_characters
    else:
        lengths.append(num_characters)


def guesses_of(statistics: Mapping[str, Any]) -> Guesses | None:
    """Return what an answer's statistics say; None where they say nothing, or nothing that can be used."""
    try:
        return msgspec.convert(statistics.get("guesses"), Guesses | None)
    except msgspec.ValidationError:  # of a file that somebody wrote
        return None
