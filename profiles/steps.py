"""Runs generators that yield progress and return a result to their end, or says their steps in other words."""

from collections.abc import Callable, Generator
from typing import TypeVar

Step = TypeVar("Step")
Said = TypeVar("Said")
Returned = TypeVar("Returned")


def finish(steps: Generator[Step, None, Returned], show: Callable[[Step], object] | None = None) -> Returned:
    """Run `steps` to their end, calling `show` with each; return what they return."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            returned: Returned = end.value
            return returned
        if show is not None:
            show(step)


def relabel(
    steps: Generator[Step, None, Returned], say: Callable[[Step], Said | None]
) -> Generator[Said, None, Returned]:
    """Yield what `say` makes of each step, leaving out None; return what the steps return."""
    try:
        while True:
            try:
                said = say(next(steps))
            except StopIteration as end:
                returned: Returned = end.value
                return returned
            if said is not None:
                yield said
    finally:
        steps.close()
