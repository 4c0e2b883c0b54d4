"""Chooses each round's tree: the one with the fewest predicted seconds per token, from what rounds cost and accept.

With a profile the first tree is the planned one; without, a modest tree is measured and grown step by step. Every round
teaches what its parts cost and which children were accepted, and the tree is chosen anew every few rounds. Rounds with
trees shaped by context teach how many tokens those bring, not ranks, since which nodes stand there is no accident.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runtime.config import MAX_TREE_LEVELS, TreeKind
from runtime.events import Round
from runtime.planner.costs import CostLearner, RoundCosts, StreamShape
from runtime.planner.growth import ContextChances, YieldLearner, builtin_chances, choose_growth, growth_limits
from runtime.planner.tree_choice import TreeChoice, TreeRanking, TreeShape, choose_tree
from runtime.speculation.acceptance import BUILTIN_EVENTS, MEASURED_EVENTS, AcceptanceLearner
from runtime.speculation.dynamic_tree import GrowthLimits
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import best_first

FIRST_SHAPE = (24, 8)
"""Nodes and levels of the tree before anything was measured; texts that share a pass share the nodes too."""
NUM_EAGER_ROUNDS = 4
"""Rounds after each of which the tree is chosen anew; later every REPLAN_ROUNDS, or while a step was too short."""
REPLAN_ROUNDS = 8
STEP_FACTOR = 2
"""Nodes and levels grow and shrink at most by this from one choice to the next: costs beyond are extrapolated."""
LEAST_STEP = (8, 4)
"""Nodes and levels that a step may always reach: nothing would ever grow out of (1, 1) by factors of two."""
PROBE_ROUNDS, MOST_PROBE_ROUNDS = 32, 256
"""Rounds of plain decoding after which a small tree is tried, since plain rounds say nothing about drafts: so many at
first, twice as many after each trial that changed nothing."""
FIRST_PLAIN_ROUNDS, PLAIN_ROUNDS = 4, 32
"""Rounds with trees after which one without is tried where no layer streams, since wide passes say little about the
narrowest one, which is all that a draft has to beat there: the first time, and from then on."""
PROBE_SHAPE = (4, 3)


@dataclass(frozen=True, slots=True)
class PairPrior:
    """What is believed of a pair of models at each temperature, before rounds say otherwise."""

    acceptance_at: Callable[[float], NDArray[np.float64]]
    """By rank, or by depth and rank."""
    chances_at: Callable[[float], ContextChances] = lambda temperature: builtin_chances(substitute_held=None)
    """Of single positions."""
    is_measured: bool = False
    """Whether the acceptance comes from this pair, so that more is needed to move it."""


class TreePlanner:
    """Measures rounds and chooses trees."""

    def __init__(
        self,
        prior: PairPrior,
        stream: StreamShape,
        *,
        max_nodes: int,
        text_nodes: int | None = None,
        fixed_shape: tuple[int, int] | None = None,
        initial_costs: RoundCosts | None = None,
        kind: TreeKind = "static",
    ) -> None:
        """`fixed_shape` (nodes, levels) ends all choosing; `initial_costs` are those of a profile.

        `max_nodes`: of all texts of a pass together; `text_nodes`: of one of them, None: the same. `kind`: which trees
        may be chosen.
        """
        self.kind: TreeKind = kind
        self._prior = prior
        self._can_grow_in_context = False
        self._learner = CostLearner(stream, initial_costs)
        self._has_rows = any(stream.row_bytes)
        self._max_nodes = max_nodes
        self._text_nodes = max_nodes if text_nodes is None else text_nodes
        self._num_texts = 1
        self._fixed_shape = fixed_shape
        self._has_profile = initial_costs is not None
        self._shape = fixed_shape or self._first_shape()
        self._num_rounds = 0
        self._num_plain_rounds, self._probe_rounds = 0, PROBE_ROUNDS
        self._is_resident = all(size is None for size in stream.streamed_bytes)
        self._num_to_plain = FIRST_PLAIN_ROUNDS
        self._is_step_short = False
        self._by_temperature: dict[float, tuple[AcceptanceLearner, YieldLearner]] = {}
        self._temperature = 0.0
        self._used_factor = 1.0  # of the choice's expected tokens, over those predicted without rounds
        self._tree: TreeShape
        self.choice: TreeChoice | None = None
        """The latest choice and what it promises; None before the first one, and for a fixed shape."""
        self.held_tree: TreeTopology | None = None
        """The tree of every round while a measurement sets one, that the context has room for; nothing is learned."""
        self._start()

    @property
    def acceptance(self) -> NDArray[np.float64]:
        """(D, R) what is believed at the present temperature."""
        return self._accepted.estimate()

    @property
    def costs(self) -> RoundCosts | None:
        """What rounds are believed to cost; None before a round was measured or a profile said so."""
        return self._learner.costs() if self._learner.is_known else None

    @property
    def tree_name(self) -> str:
        """The present tree, as `--tree` takes it."""
        kind = "dynamic:" if isinstance(self._tree, GrowthLimits) else ""
        return f"{kind}{self._tree.num_nodes}x{self._tree.num_levels}"

    @property
    def spread(self) -> float:
        """How far draft and target differ at the present temperature, in logits; see `profiles.acceptance`."""
        return self._prior.chances_at(self._temperature).spread

    def use_temperature(
        self, temperature: float, *, can_grow_in_context: bool = False, num_text_tokens: int = 0
    ) -> None:
        """Take the acceptance of the temperature that the next rounds are drawn at, and choose a tree for it.

        `can_grow_in_context`: whether their verification is right for trees that take their shape from context.
        `num_text_tokens`: how long the text is that they begin behind, whose keys and values may cross the link.
        """
        is_longer = self._has_rows and num_text_tokens != self._learner.num_rows
        self._learner.num_rows = num_text_tokens
        if is_longer or (temperature, can_grow_in_context) != (self._temperature, self._can_grow_in_context):
            self._temperature, self._can_grow_in_context = temperature, can_grow_in_context
            self._start()

    def sibling(self) -> "TreePlanner":
        """Return a planner for another temperature, in passes with this one's texts: both know the same costs."""
        other = copy.copy(self)
        other.choice, other._temperature = None, -1.0  # none that a text has
        return other

    def shape(self, *, max_levels: int, loading_seconds: float = 0.0, num_texts: int = 1) -> TreeShape:
        """Return a text's tree of the next round, or what limits it while it grows, of at most `max_levels` levels.

        A round whose pass waits `loading_seconds` for layers that are still being loaded takes a larger static tree,
        which costs it little. `num_texts` have a tree in the pass, and share the most nodes that it may have.
        """
        if self.held_tree is not None:
            return self.held_tree
        if num_texts != self._num_texts:
            self._num_texts = num_texts
            self._refit()
        if loading_seconds > 0 and self._fixed_shape is None and self._learner.is_known and self._most_nodes > 1:
            return self._tree_beside(loading_seconds, max_levels=max_levels)
        if isinstance(self._tree, GrowthLimits):
            return replace(self._tree, num_steps=min(self._tree.num_steps, max_levels - 1))
        return self.topology(max_levels=max_levels)

    @property
    def _most_nodes(self) -> int:
        """Of one text's tree."""
        return max(1, min(self._text_nodes, self._max_nodes // self._num_texts))

    def _first_shape(self) -> tuple[int, int]:
        """Nodes and levels while costs are unknown: for many texts no more than is computed while layers are copied.

        Where computation bounds the pass, sixteen trees of the first shape took ten times as long as sixteen roots.
        """
        num_nodes, num_levels = FIRST_SHAPE
        if self._num_texts > 1:
            covered = int(self._learner.covered_tokens or num_nodes) // self._num_texts
            num_nodes = min(num_nodes, max(PROBE_SHAPE[0], covered))
            num_levels = min(num_levels, num_nodes - 1)
        return min(num_nodes, self._most_nodes), num_levels

    def _costs(self) -> RoundCosts:
        """What rounds of so many texts cost, by the size of each one's tree."""
        costs = self._learner.costs()
        return costs if self._num_texts == 1 else costs.for_texts(self._num_texts)

    def _refit(self) -> None:
        """Choose a tree for another number of texts."""
        if self._fixed_shape is not None:
            return
        if self._learner.is_known:
            self._choose(is_free=self._has_profile)
            return
        self._shape = self._first_shape()
        self._tree = growth_limits(*self._shape) if isinstance(self._tree, GrowthLimits) else self._grown(*self._shape)

    def _tree_beside(self, loading_seconds: float, *, max_levels: int) -> TreeShape:
        """The best tree of a pass that cannot end sooner; it may compute and draft meanwhile."""
        costs = self._costs()
        num_streamed = sum(seconds is not None for seconds in costs.copy_seconds)
        if num_streamed:
            late = [
                None if seconds is None else seconds + loading_seconds / num_streamed for seconds in costs.copy_seconds
            ]
            costs = replace(costs, copy_seconds=tuple(late))
        else:
            walks = costs.walk_seconds
            late_walks = tuple(seconds + loading_seconds for seconds in walks.seconds)
            costs = replace(costs, walk_seconds=replace(walks, seconds=late_walks))
        most_levels = min(max_levels, MAX_TREE_LEVELS)
        return choose_tree(
            costs, self._used_acceptance, max_nodes=self._most_nodes, max_levels=most_levels
        ).best.shape()

    def topology(self, *, max_levels: int) -> TreeTopology:
        """Return the same as a static tree; for one that would take its shape from context the best of its size."""
        if isinstance(self._tree, TreeTopology) and self._tree.num_levels <= max_levels:
            return self._tree
        return self._grown(self._shape[0], min(self._shape[1], max_levels))

    def observe(self, *rounds: Round, with_costs: bool = True) -> None:
        """Learn from the rounds of one pass, and choose the next rounds' tree anew when it is time.

        Without `with_costs` a sibling has learned what the pass cost.
        """
        if self.held_tree is not None:
            return
        done = rounds[0]
        if with_costs:
            self._learner.observe(done)
        was_probed = (self._shape == (1, 1)) != (done.num_nodes == 1)
        for each in rounds:
            self._learn_tokens(each, is_probe=was_probed or done.pass_statistics.is_loading)
        self._num_rounds += 1
        if not self._learner.is_known and self._num_texts > 1:
            self._refit()  # the first pass says what the link leaves room for
        if self._fixed_shape is not None or not self._learner.is_known or self._most_nodes == 1:
            return
        is_eager = self._num_rounds <= NUM_EAGER_ROUNDS or self._is_step_short
        if is_eager or was_probed or self._num_rounds % REPLAN_ROUNDS == 0:
            self._choose(is_free=False)
        self._probe()

    def _start(self) -> None:
        """The first tree at a temperature, by what was learned at this one before."""
        if self._temperature not in self._by_temperature:
            events = MEASURED_EVENTS if self._prior.is_measured else BUILTIN_EVENTS
            accepted = AcceptanceLearner(self._prior.acceptance_at(self._temperature), prior_events=events)
            self._by_temperature[self._temperature] = accepted, YieldLearner()
        self._accepted, self._yields = self._by_temperature[self._temperature]
        if self._fixed_shape is None and self._learner.is_known:
            self._choose(is_free=self._has_profile)
        else:
            self._used_acceptance = self._prior.acceptance_at(self._temperature)  # a fixed tree does not drift
            is_dynamic = self.kind == "dynamic" and self._can_grow_in_context and self._shape[0] > 1
            self._tree = growth_limits(*self._shape) if is_dynamic else self._grown(*self._shape)

    def _learn_tokens(self, done: Round, *, is_probe: bool) -> None:
        if not done.is_in_context:
            self._accepted.observe(done.accepted_ranks, done.num_children)
        if self.choice is None or is_probe or done.is_in_context != self.choice.is_dynamic:
            return
        self._yields.observe(
            1 + sum(rank > 0 for rank in done.accepted_ranks),
            expected_tokens=self.choice.expected_tokens / self._used_factor,
            is_in_context=self.choice.is_dynamic,
        )

    def _choose(self, *, is_free: bool) -> None:
        """The best tree of all, or, unless `is_free`, of those that a step from the present one reaches."""
        most_nodes, most_levels = self._most_nodes, MAX_TREE_LEVELS
        if not is_free:
            most_nodes = min(most_nodes, max(LEAST_STEP[0], STEP_FACTOR * self._shape[0]))
            most_levels = min(most_levels, max(LEAST_STEP[1], STEP_FACTOR * self._shape[1]))
        self._used_acceptance = self.acceptance
        ranking = choose_tree(self._costs(), self._used_acceptance, max_nodes=most_nodes, max_levels=most_levels)
        choice = best = self._best(ranking)
        if not is_free and not best.is_dynamic:
            choice = self._least_step(ranking) or choice
        is_cut = choice.num_nodes == most_nodes < self._most_nodes or choice.num_levels == most_levels < MAX_TREE_LEVELS
        self._is_step_short = is_cut or choice != best
        self.choice, self._shape = choice, (choice.num_nodes, choice.num_levels)
        self._tree = choice.shape()

    def _best(self, ranking: TreeRanking) -> TreeChoice:
        """Of static trees, or of both kinds, each as good as its rounds have shown it to be on texts like this one."""
        self._used_factor = 1.0
        if self.kind == "static" or not self._can_grow_in_context:
            return ranking.best
        in_context, static = (self._yields.factor(is_in_context=kind) for kind in (True, False))
        chances = self._prior.chances_at(self._temperature)
        grown = choose_growth(self._costs(), chances, ranking, factor=in_context)
        if grown is None:
            return ranking.best
        best, plain = ranking.best, ranking.of_shape(1, 1)
        if self.kind != "dynamic":
            # What a tree is expected to bring may be wrong; the one token without a tree is certain.
            least_seconds = min(grown.seconds_per_token, best.seconds_per_token / static)
            if plain is not None and plain.seconds_per_token <= least_seconds:
                return plain
            if grown.seconds_per_token >= best.seconds_per_token / static:
                return best
        self._used_factor = in_context
        return grown

    def _least_step(self, ranking: TreeRanking) -> TreeChoice | None:
        """The tree half-way down where the best lies further down than a step reaches; None where it does not."""
        best = ranking.best
        num_nodes, num_levels = self._shape[0] // STEP_FACTOR, self._shape[1] // STEP_FACTOR
        if best.num_nodes >= num_nodes and best.num_levels >= num_levels:
            return None
        levels = range(max(best.num_levels, num_levels), self._shape[1] + 1)  # few ranks may need more for the nodes
        return next(filter(None, (ranking.of_shape(max(best.num_nodes, num_nodes), count) for count in levels)), None)

    def _probe(self) -> None:
        """While plain decoding is best, try a small tree now and then, for one round; with trees, a round without."""
        if self._shape != (1, 1):
            self._num_plain_rounds, self._probe_rounds = 0, PROBE_ROUNDS
            self._num_to_plain -= 1
            if self._is_resident and self._num_to_plain <= 0:
                self._num_to_plain = PLAIN_ROUNDS
                self._tree = TreeTopology.single()  # what it teaches makes the next choice
            return
        self._num_plain_rounds += 1
        is_time = self._num_plain_rounds >= self._probe_rounds
        if is_time:
            self._num_plain_rounds, self._probe_rounds = 0, min(2 * self._probe_rounds, MOST_PROBE_ROUNDS)
        self._tree = self._grown(*PROBE_SHAPE) if is_time else TreeTopology.single()

    def _grown(self, num_nodes: int, num_levels: int) -> TreeTopology:
        """The most expected tokens of this shape, or of as many nodes as its levels can have."""
        search = best_first(self._used_acceptance, min(num_nodes, self._most_nodes), num_levels)
        return search.topology(len(search.depths))
