"""What the rounds so far say about speed, link, memory and acceptance: the figures of the status line and the panel.

Folds reports of rounds into one frozen value. Rates are those of the last rounds, so that they follow a change within
seconds and do not jump with every round. Knows no widget and no clock.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tui.chat.engine.messages import RoundDone

NUM_SMOOTHED_ROUNDS = 8
"""Rates are means over so many last rounds."""
NUM_REMEMBERED_ROUNDS = 240
"""Rounds that sparklines can look back on."""
MAX_DEPTH = 32
"""Deeper levels count as this one."""


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round in short."""

    num_emitted: int
    """Tokens that it brought."""
    seconds: float
    """Drafting and verifying."""
    link_busy_seconds: float
    """Of these, how long the link carried bytes."""
    bytes_streamed: int
    """How many."""

    @property
    def tokens_per_second(self) -> float:
        """Of this round alone."""
        return self.num_emitted / self.seconds if self.seconds > 0 else 0.0

    @property
    def link_utilization(self) -> float:
        """Share of the round in which the link was busy."""
        return min(1.0, self.link_busy_seconds / self.seconds) if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class VerifiedTree:
    """The tree of one round, and what of it was accepted."""

    parents: tuple[int, ...] = ()
    """(N,) breadth first, the root's -1; empty before the first round."""
    path: tuple[int, ...] = ()
    """The accepted nodes, from the root on."""

    @property
    def depths(self) -> tuple[int, ...]:
        """(N,) of each node; the root's is 0."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)


@dataclass(frozen=True, slots=True)
class RunningFigures:
    """Everything measured since the model was loaded."""

    rounds: tuple[RoundFigures, ...] = ()
    """The last ones, oldest first."""
    num_tried: tuple[int, ...] = ()
    """By depth from 1 on: rounds in which the walk stood before children at this depth."""
    num_accepted: tuple[int, ...] = ()
    """By depth from 1 on: rounds in which one of these was accepted."""
    tree: VerifiedTree = VerifiedTree()
    """Of the last round."""
    num_context_tokens: int = 0
    """Tokens of prompt and answer so far."""
    process_bytes: int = 0
    """Memory of the engine's process."""
    device_bytes: int = 0
    """Memory that the runtime holds on the device."""
    predicted_seconds_per_token: float | None = None
    """What the planner expects of such rounds."""

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last rounds; None before the first."""
        return _ratio(sum(each.num_emitted for each in self._last), self._last_seconds)

    @property
    def predicted_tokens_per_second(self) -> float | None:
        """What the planner expects; None where it does not say."""
        return 1 / self.predicted_seconds_per_token if self.predicted_seconds_per_token else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Over the last rounds; None before the first."""
        return _ratio(sum(each.num_emitted for each in self._last), len(self._last))

    @property
    def link_bytes_per_second(self) -> float | None:
        """While the link carries bytes; None where nothing streams."""
        busy = sum(each.link_busy_seconds for each in self._last)
        return _ratio(sum(each.bytes_streamed for each in self._last), busy) or None

    @property
    def link_utilization(self) -> float | None:
        """Share of the last rounds in which the link was busy; None where nothing streams."""
        if self.link_bytes_per_second is None:
            return None
        busy = _ratio(sum(each.link_busy_seconds for each in self._last), self._last_seconds)
        return None if busy is None else min(1.0, busy)

    @property
    def acceptance(self) -> tuple[float | None, ...]:
        """By depth from 1 on: how often a child was accepted where there were children; None where never tried."""
        return tuple(_ratio(*each) for each in zip(self.num_accepted, self.num_tried, strict=True))

    @property
    def _last(self) -> tuple[RoundFigures, ...]:
        return self.rounds[-NUM_SMOOTHED_ROUNDS:]

    @property
    def _last_seconds(self) -> float:
        return sum(each.seconds for each in self._last)

    def with_round(self, report: RoundDone) -> "RunningFigures":
        """These figures and one more round."""
        latest = RoundFigures(
            num_emitted=report.num_emitted,
            seconds=report.draft_seconds + report.verify_seconds,
            link_busy_seconds=report.link_busy_seconds,
            bytes_streamed=report.bytes_streamed,
        )
        tree = VerifiedTree(report.parents, report.path)
        tried, accepted = _walk(tree)
        return replace(
            self,
            rounds=(*self.rounds, latest)[-NUM_REMEMBERED_ROUNDS:],
            num_tried=_sums(self.num_tried, tried),
            num_accepted=_sums(self.num_accepted, accepted),
            tree=tree,
            num_context_tokens=report.num_context_tokens,
            process_bytes=report.process_bytes,
            device_bytes=report.device_bytes,
            predicted_seconds_per_token=report.predicted_seconds_per_token,
        )


def _walk(tree: VerifiedTree) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """By depth from 1 on: 1 where the walk stood before children, and 1 where one of them was accepted."""
    num_children = Counter(tree.parents)
    num_depths = len(tree.path) - 1 + bool(tree.path and num_children[tree.path[-1]])
    accepted = tuple(1 if depth < len(tree.path) else 0 for depth in range(1, num_depths + 1))
    return _capped((1,) * num_depths), _capped(accepted)


def _capped(counts: tuple[int, ...]) -> tuple[int, ...]:
    head, tail = counts[: MAX_DEPTH - 1], counts[MAX_DEPTH - 1 :]
    return (*head, sum(tail)) if tail else head


def _sums(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    length = max(len(one), len(other))
    padded = ((*each, *([0] * (length - len(each)))) for each in (one, other))
    return tuple(map(sum, zip(*padded, strict=True)))


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None
