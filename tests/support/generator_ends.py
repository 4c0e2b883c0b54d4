"""Runs a generator to its end, for what it yields and what it returns."""

from collections.abc import Generator
from typing import TypeVar

Yielded = TypeVar("Yielded")
Returned = TypeVar("Returned")


def drained(steps: Generator[Yielded, None, Returned]) -> tuple[list[Yielded], Returned]:
    """(all that was yielded, what was returned)."""
    returned: list[Returned] = []

    def relay() -> Generator[Yielded, None, None]:
        returned.append((yield from steps))

    return list(relay()), returned[0]
