"""Chooses each round's tree: the one with the fewest predicted seconds per token, from what rounds cost here.

The first rounds use a modest tree and are measured; from then on every part of a round is a fitted cost: draft steps
by width, layer computation by pass size, the link's rate, and the head. `pipeline_model` turns them into the seconds
of a round (the hardware-aware choice of Sequoia, section 3.3, with measured instead of assumed parts). Plans are
derived and never stored. Knows no model and no device.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offload.layer_streamer import PassStatistics
from offload.pipeline_model import round_seconds_for
from runtime.events import PassVerified
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import BestFirst, best_first_by_levels

FIRST_SHAPE = (24, 8)
"""Nodes and levels of the tree before anything was measured."""
NUM_EAGER_ROUNDS = 4
"""Rounds after each of which the tree is chosen anew; later every REPLAN_ROUNDS."""
REPLAN_ROUNDS = 8
MAX_LEVELS = 32
GROWTH_LIMIT = 4
"""A choice extrapolates to at most this many times the largest pass measured."""


@dataclass(frozen=True, slots=True)
class RoundObservation:
    """What one round cost and brought."""

    num_pass_tokens: int
    """Tokens that the pass computed: the tree, and text that the target had not seen."""
    num_nodes: int
    """Nodes of the tree, root included."""
    num_emitted: int
    """Tokens emitted: accepted drafts and the one after them."""
    draft_seconds: float
    """Growing the tree."""
    verify_seconds: float
    """The pass, the head and the walk."""
    draft_steps: tuple[tuple[int, float], ...]
    """(width, seconds) of each draft forward."""
    statistics: PassStatistics
    """What the pass says of itself."""

    def to_event(self) -> PassVerified:
        """The same as the consumer sees it."""
        return PassVerified(
            num_nodes=self.num_nodes,
            num_accepted=self.num_emitted,
            seconds=self.statistics.seconds,
            link_busy_seconds=self.statistics.link_busy_seconds,
            bytes_streamed=self.statistics.bytes_streamed,
            draft_seconds=self.draft_seconds,
            verify_seconds=self.verify_seconds,
        )


class LinearCost:
    """seconds = base + slope * size, both >= 0, fitted to the last few measurements."""

    def __init__(self, *, num_kept: int = 48) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=num_kept)

    def add(self, size: float, seconds: float) -> None:
        """Learn one measurement."""
        self._samples.append((size, seconds))

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return bool(self._samples)

    @property
    def largest_size(self) -> float:
        """The largest size measured."""
        return max(size for size, _ in self._samples)

    def fit(self) -> tuple[float, float]:
        """(base, slope) by least squares without outliers, clamped to be non-negative; one size alone gives a base.

        A step that met a busy processor may take ten times its time: what lies three deviations off is left out.
        """
        sizes, seconds = np.array(self._samples, dtype=np.float64).T
        base, slope = _fit_line(sizes, seconds)
        for _ in range(3):
            errors = np.abs(seconds - base - slope * sizes)
            is_kept = errors <= 3 * 1.4826 * np.median(errors) + 1e-12
            base, slope = _fit_line(sizes[is_kept], seconds[is_kept])
        return base, slope


def _fit_line(sizes: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float]:
    spread = sizes - sizes.mean()
    variance = float((spread**2).sum())
    if variance == 0:
        return float(np.median(seconds)), 0.0
    slope = max(0.0, float((spread * seconds).sum() / variance))
    base = float(seconds.mean() - slope * sizes.mean())
    if base < 0:
        return 0.0, float((sizes * seconds).sum() / (sizes**2).sum())
    return base, slope


@dataclass(frozen=True, slots=True)
class Choice:
    """A tree and what it is predicted to bring."""

    num_nodes: int
    """Nodes, root included."""
    num_levels: int
    """Level limit, root included."""
    expected_tokens: float
    """Tokens per round."""
    round_seconds: float
    """Seconds per round, drafting included."""

    @property
    def seconds_per_token(self) -> float:
        """What the choice minimises."""
        return self.round_seconds / self.expected_tokens


class TreePlanner:
    """Measures rounds and chooses trees."""

    def __init__(
        self,
        acceptance: NDArray[np.float64],
        *,
        streamed_bytes: Sequence[int | None],
        num_slots: int,
        max_nodes: int,
        fixed_shape: tuple[int, int] | None = None,
        read_bytes: Sequence[int | None] = (),
        num_stages: int = 0,
    ) -> None:
        """`streamed_bytes`: per layer, None for residents; `fixed_shape` (nodes, levels) ends all choosing.

        `read_bytes`: per layer, what a disk delivers to one of `num_stages` stages; empty where no disk is behind.
        """
        self._acceptance = acceptance
        self._streamed_bytes = tuple(streamed_bytes)
        self._read_bytes = tuple(read_bytes)
        self._num_stages = num_stages
        self._num_slots = num_slots
        self._max_nodes = max(1, max_nodes)
        self._is_fixed = fixed_shape is not None
        self._shape = fixed_shape or FIRST_SHAPE
        self._num_rounds = 0
        self._draft_step = LinearCost()
        self._compute = LinearCost()
        self._overhead: deque[float] = deque(maxlen=16)
        self._bytes_per_second: deque[float] = deque(maxlen=16)
        self._disk_bytes_per_second: deque[float] = deque(maxlen=16)
        self.choice: Choice | None = None

    @cached_property
    def _searches(self) -> tuple[BestFirst, ...]:
        num_nodes, num_levels = self._max_nodes, MAX_LEVELS
        if self._is_fixed:
            num_nodes, num_levels = self._shape
        return best_first_by_levels(self._acceptance, num_nodes, num_levels)

    def topology(self, *, max_levels: int) -> TreeTopology:
        """The tree for the next round, with at most `max_levels` levels."""
        num_nodes, num_levels = self._shape
        search = self._searches[min(num_levels, max_levels, len(self._searches)) - 1]
        return search.topology(min(num_nodes, len(search.depths)))

    def observe(self, observation: RoundObservation) -> None:
        """Learn from a round, and choose the next rounds' tree anew when it is time."""
        for width, seconds in observation.draft_steps:
            self._draft_step.add(width, seconds)
        statistics = observation.statistics
        self._compute.add(observation.num_pass_tokens, statistics.compute_seconds)
        self._overhead.append(observation.verify_seconds - statistics.seconds)
        if statistics.link_busy_seconds > 0:
            self._bytes_per_second.append(statistics.bytes_streamed / statistics.link_busy_seconds)
        if statistics.disk_busy_seconds > 0:
            self._disk_bytes_per_second.append(statistics.bytes_read / statistics.disk_busy_seconds)
        self._num_rounds += 1
        is_time = self._num_rounds <= NUM_EAGER_ROUNDS or self._num_rounds % REPLAN_ROUNDS == 0
        if is_time and not self._is_fixed and self._draft_step.is_known:
            self.choice = self._choose()
            self._shape = (self.choice.num_nodes, self.choice.num_levels)

    def _choose(self) -> Choice:
        limit = min(self._max_nodes, int(GROWTH_LIMIT * self._compute.largest_size))
        sizes = np.unique(np.geomspace(1, limit, 48).astype(np.int64))
        candidates = []
        for levels, search in enumerate(self._searches, start=1):
            possible = sizes[sizes <= len(search.depths)]
            num_expanded = np.cumsum(search.ranks == 1)  # each node with children has one child of rank 1
            num_levels = np.maximum.accumulate(search.depths) + 1
            for size in possible:
                if num_levels[size - 1] == levels:
                    candidates.append((size, levels, search.expected_tokens[size - 1], num_expanded[size - 1]))
        table = np.array(candidates, dtype=np.float64)  # (C, 4)
        seconds = self.round_seconds(table[:, 0], table[:, 1], table[:, 3])
        best = int(np.argmin(seconds / table[:, 2]))
        size, levels, tokens, _ = table[best]
        return Choice(int(size), int(levels), float(tokens), float(seconds[best]))

    def round_seconds(
        self, num_nodes: NDArray[np.float64], num_levels: NDArray[np.float64], num_expanded: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Predicted seconds (C,) of rounds with these trees: all but the last level, and only parents, are drafted."""
        step_base, step_slope = self._draft_step.fit()
        draft_seconds = (num_levels - 1) * step_base + num_expanded * step_slope
        base, slope = self._compute.fit()
        num_layers = len(self._streamed_bytes)
        per_layer = (base + slope * num_nodes) / num_layers  # (C,)
        rate = float(np.median(self._bytes_per_second)) if self._bytes_per_second else np.inf
        disk_rate = float(np.median(self._disk_bytes_per_second)) if self._disk_bytes_per_second else np.inf
        return round_seconds_for(
            np.repeat(per_layer[:, None], num_layers, axis=1),
            [None if size is None else size / rate for size in self._streamed_bytes],
            num_slots=self._num_slots,
            between_passes_seconds=draft_seconds + float(np.median(self._overhead)),
            read_seconds=[None if size is None else size / disk_rate for size in self._read_bytes],
            num_stages=self._num_stages,
        )
