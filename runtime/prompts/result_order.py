"""In which order results are written, and which lines of a prompt file a run answers."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from runtime.prompts.headless import Line, PromptItem, PromptResult
from runtime.prompts.prompt_file import BadLine


class Results(Protocol):
    """Where results go: a `ResultFile`, a `ResultStream`, or one of these in order."""

    def append(self, result: PromptResult) -> None:
        """Take one result."""


class InputOrder:
    """Results that come in any order, handed on in that of their prompts.

    It holds those alone that a prompt still being answered stands before; what it holds when a run ends is not written,
    so that a run that goes on with the file keeps the order.
    """

    def __init__(self, results: Results, items: Iterable[Line]) -> None:
        """`items` are the lines to be answered, in order, each of which has one result."""
        self._results = results
        self._awaited = deque((item.line_number, item.id) for item in items)
        self._held: dict[tuple[int, str], PromptResult] = {}

    @property
    def num_held(self) -> int:
        return len(self._held)

    def append(self, result: PromptResult) -> None:
        self._held[result.line_number, result.id] = result
        while self._awaited and self._awaited[0] in self._held:
            self._results.append(self._held.pop(self._awaited.popleft()))


def first_lines(items: Sequence[PromptItem], limit: int | None) -> list[PromptItem]:
    """Return the first `limit` lines that can be answered, all choices of each, and bad lines before the last of them.

    None: all lines.
    """
    if limit is None:
        return list(items)
    chosen: list[PromptItem] = []
    line_numbers: set[int] = set()
    for item in items:
        if len(line_numbers) == limit and item.line_number not in line_numbers:
            break
        if not isinstance(item, BadLine):
            line_numbers.add(item.line_number)
        chosen.append(item)
    return chosen
