"""Says what the rounds so far tell about speed, link and acceptance: the figures of the status line and the panel.

Folds rounds into one frozen value. Rates are those of the last rounds, so that they follow a change within seconds and
do not jump with every round.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.events import Round

NUM_SMOOTHED_ROUNDS = 8
"""Rates are means over so many last rounds."""
NUM_REMEMBERED_ROUNDS = 240
"""Rounds that sparklines can look back on."""
MAX_DEPTH = 32
"""Deeper levels count as this one."""


@dataclass(frozen=True, slots=True)
class RunningFigures:
    """Everything that rounds tell since the model was loaded."""

    rounds: tuple[Round, ...] = ()
    """The last ones, oldest first."""
    num_tried: Counter[int] = field(default_factory=Counter)
    """By depth from 1 on: rounds in which the walk stood before children at this depth."""
    num_accepted: Counter[int] = field(default_factory=Counter)
    """By depth from 1 on: rounds in which one of these was accepted."""

    @property
    def last(self) -> Round | None:
        return self.rounds[-1] if self.rounds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last rounds; None before the first."""
        return tokens_per_second(self._smoothed)

    @property
    def tokens_per_pass(self) -> float | None:
        """Over the last rounds; None before the first."""
        return _ratio(sum(each.num_emitted for each in self._smoothed), len(self._smoothed))

    @property
    def link_bytes_per_second(self) -> float | None:
        """While the link carries bytes; None where nothing streams."""
        num_bytes = sum(each.pass_statistics.bytes_streamed for each in self._smoothed)
        return _ratio(num_bytes, _busy(self._smoothed)) or None

    @property
    def link_utilization(self) -> float | None:
        """Share of the last rounds in which the link was busy; None where nothing streams."""
        return link_utilization(self._smoothed) if self.link_bytes_per_second else None

    @property
    def acceptance(self) -> tuple[float, ...]:
        """By depth from 1 on: how often a child was accepted where there were children."""
        return tuple(self.num_accepted[depth] / num_tried for depth, num_tried in sorted(self.num_tried.items()))

    @property
    def _smoothed(self) -> tuple[Round, ...]:
        return self.rounds[-NUM_SMOOTHED_ROUNDS:]

    def with_round(self, latest: Round) -> "RunningFigures":
        """Return these figures after one more round."""
        num_accepted = len(latest.path) - 1
        num_tried = num_accepted + (latest.path[-1] in latest.parents)  # at the end there may be no children left
        depths = [min(depth, MAX_DEPTH) for depth in range(1, num_tried + 1)]
        return RunningFigures(
            rounds=(*self.rounds, latest)[-NUM_REMEMBERED_ROUNDS:],
            num_tried=self.num_tried + Counter(depths),
            num_accepted=self.num_accepted + Counter(depths[:num_accepted]),
        )


def tokens_per_second(rounds: Sequence[Round]) -> float | None:
    """Return the rate over these rounds; None if they took no time."""
    return _ratio(sum(each.num_emitted for each in rounds), sum(each.seconds for each in rounds))


def link_utilization(rounds: Sequence[Round]) -> float | None:
    """Return the share of these rounds in which the link carried bytes; None if they took no time."""
    share = _ratio(_busy(rounds), sum(each.seconds for each in rounds))
    return None if share is None else min(1.0, share)


def _busy(rounds: Sequence[Round]) -> float:
    return sum(each.pass_statistics.link_busy_seconds for each in rounds)


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None
