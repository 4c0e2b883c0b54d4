"""How many texts a calibration writes at a time, from what passes and draft steps cost.

Where weights stream, the passes of a few texts more cost nothing until their computation shows; but every text of the
coolest temperature needs a prompt of its own, which both models read first. Knows no clock and no probe.
"""

import math
from dataclasses import dataclass

from profiles.calibration_probes import PairFacts
from profiles.cost_fit import CostLaw

_SLOWER = 2.0
"""As many texts are written at a time as make a step at most this much slower than one text of each temperature."""
_JUDGING_SECONDS = 0.01
"""What verification's outcome at one position takes to compute, with a large vocabulary."""


@dataclass(frozen=True, slots=True)
class TextPlan:
    """What texts cost."""

    facts: PairFacts
    """The prompts' tokens."""
    target: CostLaw
    """Of the target's passes."""
    draft: CostLaw
    """Of draft steps."""
    copy_seconds: float
    """All copies of a pass; 0 where nothing streams."""
    max_texts: int
    """Of each temperature."""

    def prompt_seconds(self, num_texts: int) -> float:
        """What the prompts of so many texts of each temperature take to read."""
        prompts = self.facts.prompt_tokens
        return self._pass_seconds(prompts[min(num_texts, len(prompts)) - 1])

    def step_seconds(self, num_texts: int, *, num_temperatures: int) -> float:
        """What one more token of each text takes."""
        rows = num_texts * num_temperatures
        return self._pass_seconds(rows) + _JUDGING_SECONDS * rows

    def most_at_once(self, room_seconds: float, *, num_temperatures: int) -> int:
        """Texts of each temperature, as many as hardly slow a step; their prompts may take a third of the room."""

        def is_affordable(count: int) -> bool:
            seconds = self.step_seconds(count, num_temperatures=num_temperatures)
            is_fast = seconds <= _SLOWER * self.step_seconds(1, num_temperatures=num_temperatures)
            return is_fast and self.prompt_seconds(count) <= room_seconds / 3

        return max(filter(is_affordable, range(1, self.max_texts + 1)), default=1)

    def most_positions(self, room_seconds: float, *, num_temperatures: int) -> tuple[int, int]:
        """(texts of each temperature, positions of each) with which the most are seen in the time, prompts and all.

        Greedy texts of one prompt are all the same, so that there are no more than prompts. (1, 0) if there is no time
        for any.
        """

        def num_positions(count: int) -> int:
            step_seconds = self.step_seconds(count, num_temperatures=num_temperatures)
            return count * max(0, math.floor((room_seconds - self.prompt_seconds(count)) / step_seconds))

        best = max(range(1, min(self.max_texts, len(self.facts.prompt_tokens)) + 1), key=num_positions)
        return best, num_positions(best)

    def _pass_seconds(self, num_tokens: int) -> float:
        return max(self.copy_seconds, self.target(num_tokens)) + self.draft(num_tokens)
