"""Runs a generator to its end, for what it yields and what it returns."""

from collections.abc import Generator
from typing import TypeVar

from profiles.steps import finish

Yielded = TypeVar("Yielded")
Returned = TypeVar("Returned")


def drained(steps: Generator[Yielded, None, Returned]) -> tuple[list[Yielded], Returned]:
    """(all that was yielded, what was returned)."""
    yielded: list[Yielded] = []
    returned = finish(steps, yielded.append)
    return yielded, returned
