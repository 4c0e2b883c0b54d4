"""How many texts a calibration writes at a time, from what passes and draft steps cost.

Where weights stream, the passes of a few texts more cost nothing until their computation shows; but every text of the
coolest temperature needs a prompt of its own, which both models read first. Knows no clock and no probe.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiles.calibration_probes import PairFacts
from profiles.cost_fit import CostLaw

_SLOWER = 2.0
"""A step may always be this much slower than with one text of each temperature."""
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
    """Of a temperature."""
    greedy_per_sampled: int
    """Greedy texts for each text of another temperature."""
    min_text_steps: int
    """Tokens that all texts should get, the more of them there are at a time."""

    def split(self, count: int, temperatures: Sequence[float]) -> dict[float, int]:
        """Texts by temperature where a sampled one gets `count`, 1 or more; a single one is worth the same anywhere."""
        num_greedy = count * self.greedy_per_sampled if count > 1 else 1
        return {temperature: num_greedy if temperature == 0 else count for temperature in temperatures}

    def prompt_seconds(self, texts: Mapping[float, int]) -> float:
        """What the prompts of these texts take to read; texts of all temperatures share them."""
        prompts = self.facts.prompt_tokens
        return self._pass_seconds(prompts[min(max(texts.values()), len(prompts)) - 1])

    def step_seconds(self, texts: Mapping[float, int]) -> float:
        """What one more token of each text takes."""
        rows = sum(texts.values())
        return self._pass_seconds(rows) + _JUDGING_SECONDS * rows

    def most_at_once(self, room_seconds: float, temperatures: Sequence[float]) -> dict[float, int]:
        """As many texts as hardly slow a step, or as all get their tokens; prompts may take a third of the room.

        What a prediction's error shrinks with is the number of texts, more than that of positions.
        """
        least = self.step_seconds(self.split(1, temperatures))

        def is_affordable(count: int) -> bool:
            texts = self.split(count, temperatures)
            prompt_seconds = self.prompt_seconds(texts)
            longest = max(_SLOWER * least, (room_seconds - prompt_seconds) / self.min_text_steps)
            return self.step_seconds(texts) <= longest and prompt_seconds <= room_seconds / 3

        counts = range(1, self.max_texts // self.greedy_per_sampled + 1)
        return self.split(max(filter(is_affordable, counts), default=1), temperatures)

    def most_positions(self, room_seconds: float, temperatures: Sequence[float]) -> tuple[dict[float, int], int]:
        """(texts, the fewest positions of a temperature) with which the most are seen in the time, prompts and all.

        Greedy texts of one prompt are all the same, so that there are no more than prompts. One text of each and no
        position if there is no time for any.
        """

        def num_positions(count: int) -> int:
            texts = self.split(count, temperatures)
            return count * max(0, math.floor((room_seconds - self.prompt_seconds(texts)) / self.step_seconds(texts)))

        most = min(self.max_texts, len(self.facts.prompt_tokens)) // self.greedy_per_sampled
        best = max(range(1, max(1, most) + 1), key=num_positions)
        return self.split(best, temperatures), num_positions(best)

    def _pass_seconds(self, num_tokens: int) -> float:
        return max(self.copy_seconds, self.target(num_tokens)) + self.draft(num_tokens)
