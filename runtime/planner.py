"""Chooses each round's tree: the one with the fewest predicted seconds per token, from what rounds cost and accept.

With a profile the first tree is the planned one. Without, a modest tree is measured and grown step by step. Either way
every round teaches what its parts cost and which children were accepted, and the tree is chosen anew every few rounds.
Each temperature has its own acceptance. Plans are derived and never stored. Knows no model and no device.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.cost_learning import CostLearner, StreamShape
from runtime.round_costs import RoundCosts
from runtime.round_observation import RoundObservation
from runtime.speculation.acceptance_learning import BUILTIN_EVENTS, MEASURED_EVENTS, AcceptanceLearner
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import best_first
from runtime.tree_choice import TreeChoice, TreeRanking, choose_tree

FIRST_SHAPE = (24, 8)
"""Nodes and levels of the tree before anything was measured."""
NUM_EAGER_ROUNDS = 4
"""Rounds after each of which the tree is chosen anew; later every REPLAN_ROUNDS, or while a step was too short."""
REPLAN_ROUNDS = 8
MAX_NODES, MAX_LEVELS = 4096, 64
STEP_FACTOR = 2
"""Nodes and levels grow and shrink at most by this from one choice to the next: costs beyond are extrapolated."""
LEAST_STEP = (8, 4)
"""Nodes and levels that a step may always reach: nothing would ever grow out of (1, 1) by factors of two."""
PROBE_ROUNDS = 32
"""Rounds of plain decoding after which a small tree is tried, since plain rounds say nothing about drafts."""
PROBE_SHAPE = (4, 3)

AcceptanceAt = Callable[[float], NDArray[np.float64]]
"""Acceptance to start from, by rank or by depth and rank, at a temperature."""


class TreePlanner:
    """Measures rounds and chooses trees."""

    def __init__(
        self,
        acceptance_at: AcceptanceAt,
        stream: StreamShape,
        *,
        max_nodes: int,
        fixed_shape: tuple[int, int] | None = None,
        initial_costs: RoundCosts | None = None,
        is_acceptance_measured: bool = False,
    ) -> None:
        """`fixed_shape` (nodes, levels) ends all choosing; `initial_costs` are those of a profile.

        `is_acceptance_measured`: whether `acceptance_at` comes from this pair, so that more is needed to move it.
        """
        self._acceptance_at = acceptance_at
        self._prior_events = MEASURED_EVENTS if is_acceptance_measured else BUILTIN_EVENTS
        self._learner = CostLearner(stream, initial_costs)
        self._max_nodes = min(MAX_NODES, max(1, max_nodes))
        self._fixed_shape = fixed_shape
        self._has_profile = initial_costs is not None
        self._shape = fixed_shape or (min(FIRST_SHAPE[0], self._max_nodes), FIRST_SHAPE[1])
        self._num_rounds = 0
        self._num_plain_rounds = 0
        self._is_step_short = False
        self._by_temperature: dict[float, AcceptanceLearner] = {}
        self._temperature = 0.0
        self.choice: TreeChoice | None = None
        """The latest choice and what it promises; None before the first one, and for a fixed shape."""
        self._start()

    @property
    def acceptance(self) -> NDArray[np.float64]:
        """(D, R) what is believed at the present temperature."""
        return self._acceptance_learner().estimate()

    @property
    def costs(self) -> RoundCosts | None:
        """What rounds are believed to cost; None before a round was measured or a profile said so."""
        return self._learner.costs() if self._learner.is_known else None

    def use_temperature(self, temperature: float) -> None:
        """The next rounds are drawn at this temperature: take its acceptance, and choose a tree for it."""
        if temperature != self._temperature:
            self._temperature = temperature
            self._start()

    def topology(self, *, max_levels: int) -> TreeTopology:
        """The tree for the next round, with at most `max_levels` levels."""
        if self._tree.num_levels <= max_levels:
            return self._tree
        return self._grown(self._tree.num_nodes, max_levels)

    def observe(self, observation: RoundObservation) -> None:
        """Learn from a round, and choose the next rounds' tree anew when it is time."""
        self._learner.observe(observation)
        self._acceptance_learner().observe(observation.accepted_ranks, observation.num_children)
        self._num_rounds += 1
        if self._fixed_shape is not None or not self._learner.is_known or self._max_nodes == 1:
            return
        was_probed = self._shape == (1, 1) and observation.num_nodes > 1
        is_eager = self._num_rounds <= NUM_EAGER_ROUNDS or self._is_step_short
        if is_eager or was_probed or self._num_rounds % REPLAN_ROUNDS == 0:
            self._choose(is_free=False)
        self._probe()

    def _start(self) -> None:
        """The first tree at a temperature."""
        if self._fixed_shape is None and self._learner.is_known:
            self._choose(is_free=self._has_profile)
        else:
            self._used_acceptance = self._acceptance_at(self._temperature)  # a fixed tree does not drift
            self._tree = self._grown(*self._shape)

    def _choose(self, *, is_free: bool) -> None:
        """The best tree of all, or, unless `is_free`, of those that a step from the present one reaches."""
        most_nodes, most_levels = self._max_nodes, MAX_LEVELS
        if not is_free:
            most_nodes = min(most_nodes, max(LEAST_STEP[0], STEP_FACTOR * self._shape[0]))
            most_levels = min(most_levels, max(LEAST_STEP[1], STEP_FACTOR * self._shape[1]))
        self._used_acceptance = self.acceptance
        ranking = choose_tree(
            self._learner.costs(), self._used_acceptance, max_nodes=most_nodes, max_levels=most_levels
        )
        choice = ranking.best
        if not is_free:
            choice = self._least_step(ranking) or choice
        is_cut = choice.num_nodes == most_nodes < self._max_nodes or choice.num_levels == most_levels < MAX_LEVELS
        self._is_step_short = is_cut or choice != ranking.best
        self.choice, self._shape = choice, (choice.num_nodes, choice.num_levels)
        self._tree = choice.topology()

    def _least_step(self, ranking: TreeRanking) -> TreeChoice | None:
        """The tree half-way down where the best lies further down than a step reaches; None where it does not."""
        best = ranking.best
        num_nodes, num_levels = self._shape[0] // STEP_FACTOR, self._shape[1] // STEP_FACTOR
        if best.num_nodes >= num_nodes and best.num_levels >= num_levels:
            return None
        levels = range(max(best.num_levels, num_levels), self._shape[1] + 1)  # few ranks may need more for the nodes
        return next(filter(None, (ranking.of_shape(max(best.num_nodes, num_nodes), count) for count in levels)), None)

    def _probe(self) -> None:
        """While plain decoding is best, try a small tree now and then, for one round."""
        self._num_plain_rounds = self._num_plain_rounds + 1 if self._shape == (1, 1) else 0
        if self._shape == (1, 1):
            is_time = self._num_plain_rounds % PROBE_ROUNDS == 0
            self._tree = self._grown(*PROBE_SHAPE) if is_time else TreeTopology.single()

    def _grown(self, num_nodes: int, num_levels: int) -> TreeTopology:
        """The most expected tokens of this shape, or of as many nodes as its levels can have."""
        search = best_first(self._used_acceptance, min(num_nodes, self._max_nodes), num_levels)
        return search.topology(len(search.depths))

    def _acceptance_learner(self) -> AcceptanceLearner:
        learner = self._by_temperature.get(self._temperature)
        if learner is None:
            prior = self._acceptance_at(self._temperature)
            learner = self._by_temperature[self._temperature] = AcceptanceLearner(
                prior, prior_events=self._prior_events
            )
        return learner
