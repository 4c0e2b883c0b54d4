"""What stands on a page, before it is known whether it becomes HTML or Markdown; all texts are as they come."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """Labels, and what there is to say under each."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """Columns under headings; all but the first `num_words` hold figures."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_words: int = 1


@dataclass(frozen=True, slots=True)
class Chart:
    """Columns side by side from zero up."""

    title: str
    values: Sequence[float]
    marks: Sequence[tuple[float, str]]
    """(place in columns, words) below them."""
    unit: str
    top: float | None = None
    """Where the scale ends; None: at the largest value."""
    is_in_text: bool = True
    """Whether it is also drawn where there are characters alone."""


Part = str | Facts | Table | Chart
"""A sentence, or what else a section holds."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Page:
    """A title, a sentence below it, and sections."""

    title: str
    summary: str
    sections: Sequence[Section]


def regrouped(values: Sequence[float], most: int) -> list[float]:
    """Return at most so many means of neighbours, in order."""
    size = -(-len(values) // most) if values else 1
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(group) / len(group) for group in groups]
