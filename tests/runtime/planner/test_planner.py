"""The planner on synthetic machines: it must find the tree that the recurrence says is best, and report it."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.config import MAX_TREE_LEVELS
from runtime.planner.costs import CostTable, RoundCosts, StreamShape
from runtime.planner.growth import YieldLearner
from runtime.planner.planner import FIRST_SHAPE, PLAIN_ROUNDS, PROBE_ROUNDS, PROBE_SHAPE, PairPrior, TreePlanner
from runtime.planner.tree_choice import TreeChoice, choose_tree
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import best_first
from tests.support.pipeline_simulation import round_seconds
from tests.support.synthetic_machine import BUILTIN, LAYER_BYTES, NUM_LAYERS, SLOW_LINK, STREAM, Machine


def planner_for(
    *,
    max_nodes: int = 256,
    fixed_shape: tuple[int, int] | None = None,
    costs: RoundCosts | None = None,
    acceptance_at: Callable[[float], np.ndarray] = lambda temperature: BUILTIN,
) -> TreePlanner:
    return TreePlanner(
        PairPrior(acceptance_at, is_measured=costs is not None),
        STREAM,
        max_nodes=max_nodes,
        fixed_shape=fixed_shape,
        initial_costs=costs,
    )


def chosen(machine: Machine, planner: TreePlanner, *, num_rounds: int = 24) -> tuple[int, int]:
    machine.run(planner, num_rounds)
    assert planner.choice is not None
    return planner.choice.num_nodes, planner.choice.num_levels


def assert_same_choice(planner: TreePlanner, expected: TreeChoice) -> None:
    """But for the last bits of the acceptance, which decide between nodes that are worth the same."""
    assert planner.choice is not None
    assert (planner.choice.num_nodes, planner.choice.num_levels) == (expected.num_nodes, expected.num_levels)
    assert planner.choice.seconds_per_token == pytest.approx(expected.seconds_per_token, rel=1e-3)


def test_before_anything_is_measured_the_first_tree_is_modest() -> None:
    planner = planner_for()
    topology = planner.topology(max_levels=100)
    assert (topology.num_nodes, topology.num_levels) == FIRST_SHAPE
    assert planner.choice is None
    assert planner.costs is None


@pytest.mark.parametrize("max_nodes", [1, 2, 10])
def test_no_tree_is_larger_than_memory_allows(max_nodes: int) -> None:
    planner = planner_for(max_nodes=max_nodes)
    assert planner.topology(max_levels=100).num_nodes == max_nodes
    assert SLOW_LINK.run(planner, 20).num_nodes <= max_nodes
    assert planner_for(max_nodes=max_nodes, costs=SLOW_LINK.costs()).topology(max_levels=100).num_nodes <= max_nodes


@pytest.mark.parametrize("num_levels", [1, 2, 5])
def test_the_tree_never_has_more_levels_than_the_context_allows(num_levels: int) -> None:
    for planner in (planner_for(), planner_for(costs=SLOW_LINK.costs())):
        topology = planner.topology(max_levels=num_levels)
        assert topology.num_levels == num_levels
        assert planner.topology(max_levels=100).num_levels > num_levels


def test_a_pass_that_waits_for_layers_to_be_loaded_takes_a_larger_tree() -> None:
    """And only that pass: the next round has the tree of before."""
    planner = planner_for(costs=Machine(link=1e9, compute=(0.01, 1e-3), draft=(0.01, 1e-4)).costs())
    before = planner.shape(max_levels=100)
    late = planner.shape(max_levels=100, loading_seconds=100.0)
    assert isinstance(before, TreeTopology) and isinstance(late, TreeTopology)
    assert before.num_nodes < late.num_nodes <= 256 and before.num_levels <= late.num_levels
    short = planner.shape(max_levels=3, loading_seconds=100.0)
    assert isinstance(short, TreeTopology) and short.num_levels <= 3
    assert planner.shape(max_levels=100) == before
    for other in (planner_for(), planner_for(fixed_shape=(8, 3), costs=SLOW_LINK.costs()), planner_for(max_nodes=1)):
        assert other.shape(max_levels=100, loading_seconds=100.0) == other.shape(max_levels=100)


def test_a_fixed_shape_ends_all_choosing() -> None:
    for costs in (None, SLOW_LINK.costs()):
        planner = planner_for(max_nodes=64, fixed_shape=(64, 10), costs=costs)
        before = planner.topology(max_levels=100)
        Machine(link=1e9, compute=(0, 1.0), draft=(1.0, 0)).run(planner, 40, path=((0, 5),))
        planner.use_temperature(1.0)
        planner.use_temperature(0.0)
        topology = planner.topology(max_levels=100)
        assert topology == before
        assert (topology.num_nodes, topology.num_levels) == (64, 10)
        assert planner.choice is None


def test_a_slow_link_and_cheap_compute_want_a_large_deep_tree() -> None:
    num_nodes, num_levels = chosen(SLOW_LINK, planner_for())
    assert num_nodes > 200
    assert num_levels > 12


def test_a_costly_draft_wants_few_levels() -> None:
    _, shallow = chosen(Machine(link=1e7, compute=(0.01, 1e-4), draft=(0.3, 0)), planner_for())
    _, deep = chosen(Machine(link=1e7, compute=(0.01, 1e-4), draft=(0.001, 0)), planner_for())
    assert shallow < deep


def test_where_every_node_costs_a_pass_plain_decoding_is_chosen() -> None:
    assert chosen(Machine(link=1e12, compute=(0, 1.0), draft=(0.1, 0.1)), planner_for()) == (1, 1)


def test_plain_decoding_tries_a_small_tree_now_and_then_and_leaves_when_that_pays() -> None:
    """A draft that met a busy processor at the start would otherwise never be asked again."""
    planner, busy = planner_for(), Machine(link=1e9, compute=(0.01, 0.05), draft=(3.0, 0))
    assert chosen(busy, planner) == (1, 1)
    sizes = []
    for _ in range(3 * PROBE_ROUNDS):
        sizes.append(SLOW_LINK.run(planner, 1).num_nodes)
    assert sizes[0] == 1
    assert max(sizes) > 1
    for _ in range(30 * PROBE_ROUNDS):
        SLOW_LINK.run(planner, 1)
    assert planner.choice is not None
    assert planner.choice.num_nodes > 100


def test_the_choice_is_the_best_of_an_exhaustive_search() -> None:
    """All sizes and levels by the plain recurrence, one at a time, on the costs that the planner was shown."""
    machine = Machine(link=2e7, compute=(0.05, 2e-3), draft=(0.02, 1e-3))
    planner = planner_for(max_nodes=40)
    chosen(machine, planner)
    assert planner.choice is not None
    best = np.inf
    for num_levels in range(1, 33):
        search = best_first(BUILTIN, 40, num_levels)
        for num_nodes in range(1, len(search.depths) + 1):
            topology = search.topology(num_nodes)
            parts = machine.parts(num_nodes, topology.num_levels, len(np.flatnonzero(topology.num_children)))
            best = min(best, round_seconds(parts) / search.expected_tokens[num_nodes - 1])
    assert planner.choice.seconds_per_token == pytest.approx(best, rel=0.01)


def test_nodes_and_levels_change_by_a_factor_of_two_at_most() -> None:
    """What a pass of 4,096 nodes costs cannot be known from one of 24; nor is one bad round the end of drafting."""
    for machine in (SLOW_LINK, Machine(link=1e12, compute=(0, 1.0), draft=(0.1, 0.1))):
        planner = planner_for(max_nodes=4096)
        before = planner.topology(max_levels=1000)
        for _ in range(24):
            machine.run(planner, 1)
            after = planner.topology(max_levels=1000)
            assert after.num_nodes <= max(8, 2 * before.num_nodes)
            assert after.num_levels <= max(4, 2 * before.num_levels)
            assert after.num_nodes >= before.num_nodes // 2
            assert after.num_levels >= before.num_levels // 2
            before = after


def test_a_step_that_was_too_short_is_followed_by_the_next_at_once() -> None:
    """From 24 nodes to 1,024 in seven rounds, not in four and two times eight."""
    planner = planner_for(max_nodes=1024)
    SLOW_LINK.run(planner, 7)
    assert planner.topology(max_levels=1000).num_nodes > 900


def test_a_draft_that_is_nearly_always_right_is_followed_far() -> None:
    """Found: 64 levels were the most, where a substitute in int8 brings half as much again with 128."""
    costs = replace(SLOW_LINK.costs(), draft_step_seconds=CostTable((1,), (1e-3,)))
    planner = TreePlanner(
        PairPrior(lambda temperature: np.array([0.995, 0.003])),
        STREAM,
        max_nodes=256,
        initial_costs=costs,
    )
    assert 64 < planner.topology(max_levels=1000).num_levels <= MAX_TREE_LEVELS


def test_with_a_profile_the_first_tree_is_the_planned_one() -> None:
    planner = planner_for(max_nodes=1024, costs=SLOW_LINK.costs())
    expected = choose_tree(SLOW_LINK.costs(), BUILTIN, max_nodes=1024, max_levels=MAX_TREE_LEVELS).best
    assert_same_choice(planner, expected)
    assert planner.topology(max_levels=100).num_nodes == expected.num_nodes


def test_a_profile_that_is_wrong_is_corrected_by_what_rounds_cost() -> None:
    """The link is a thousand times faster than the profile says, and the draft 30 times slower: no deep tree."""
    planner = planner_for(costs=SLOW_LINK.costs())
    before = planner.topology(max_levels=100)
    Machine(link=1e9, compute=SLOW_LINK.compute, draft=(0.3, 3e-3)).run(planner, 60)
    assert planner.topology(max_levels=100).num_levels < before.num_levels / 4


def test_a_text_that_is_easier_to_draft_gets_a_deeper_tree_and_a_harder_one_a_shallower() -> None:
    """60 rounds of paths on which the first child is accepted with these probabilities; None: nothing is told."""
    machine, levels = Machine(link=1e7, compute=(0.01, 1e-3), draft=(0.05, 1e-3)), []
    for first in (0.95, None, 0.4):
        rng, planner = np.random.default_rng(0), planner_for()
        for _ in range(60):
            path = ((1, 3),) * (rng.geometric(1 - first) - 1) + ((0, 3),) if first else ()
            machine.run(planner, 1, path=path)
        assert planner.choice is not None
        levels.append(planner.choice.num_levels)
    assert levels[0] > levels[1] > levels[2]


def test_each_temperature_has_its_own_prior_and_its_own_counts() -> None:
    def acceptance_at(temperature: float) -> np.ndarray:
        return BUILTIN * (0.5 if temperature > 0.5 else 1.0)

    planner = planner_for(acceptance_at=acceptance_at)
    SLOW_LINK.run(planner, 30, path=((0, 4),))
    cold = planner.acceptance
    assert cold[0, 0] < 0.4
    planner.use_temperature(1.0)
    assert planner.acceptance[0] == pytest.approx(0.5 * BUILTIN)
    assert planner.choice is not None
    SLOW_LINK.run(planner, 10, path=((1, 4),))
    assert planner.acceptance[0, 0] > 0.5
    planner.use_temperature(0.0)
    assert planner.acceptance == pytest.approx(cold)


def test_with_a_profile_another_temperature_gets_its_planned_tree_at_once() -> None:
    def acceptance_at(temperature: float) -> np.ndarray:
        return BUILTIN * (0.4 if temperature > 0.5 else 1.0)

    costs = Machine(link=1e7, compute=(0.01, 1e-4), draft=(0.02, 1e-4)).costs()
    planner = planner_for(costs=costs, acceptance_at=acceptance_at)
    planner.use_temperature(1.0)
    expected = choose_tree(costs, acceptance_at(1.0), max_nodes=256, max_levels=MAX_TREE_LEVELS).best
    assert_same_choice(planner, expected)
    planner.use_temperature(0.0)
    assert_same_choice(planner, choose_tree(costs, BUILTIN, max_nodes=256, max_levels=MAX_TREE_LEVELS).best)


def test_the_first_tree_is_planned_for_the_keys_and_values_that_travel_then() -> None:
    """A long text makes every pass longer, which a larger tree is worth; the next text may be short again."""
    costs = Machine(link=2e8, compute=(0.01, 1e-3), draft=(0.001, 1e-4)).costs()
    stream = StreamShape((LAYER_BYTES,) * NUM_LAYERS, num_slots=2, row_bytes=(LAYER_BYTES // 1000,) * NUM_LAYERS)
    planner = TreePlanner(PairPrior(lambda temperature: BUILTIN), stream, max_nodes=256, initial_costs=costs)
    for num_tokens in (0, 10_000, 100):
        planner.use_temperature(0.0, num_text_tokens=num_tokens)
        seconds = (1 + num_tokens / 1000) * LAYER_BYTES / 2e8
        longer = replace(costs, copy_seconds=(seconds,) * NUM_LAYERS)
        assert_same_choice(planner, choose_tree(longer, BUILTIN, max_nodes=256, max_levels=MAX_TREE_LEVELS).best)
        assert planner.choice is not None
        assert (planner.choice.num_nodes > 100) == (num_tokens == 10_000)


def test_planning_between_rounds_takes_no_noticeable_time() -> None:
    """Some 7 ms at 256 nodes when idle; 80 layers."""
    planner = TreePlanner(
        PairPrior(lambda temperature: np.tile(BUILTIN, (32, 1))),
        StreamShape((LAYER_BYTES,) * 80, num_slots=2),
        max_nodes=256,
    )
    SLOW_LINK.run(planner, 24)
    began = time.process_time()
    SLOW_LINK.run(planner, 8)  # one of them chooses
    assert time.process_time() - began < 0.3


def test_a_disk_behind_the_link_is_part_of_the_prediction() -> None:
    """Half of the layers come from a disk four times slower than the link: the disk is the bound, and is predicted."""
    machine = Machine(link=1e7, compute=(0.001, 1e-6), draft=(0.01, 1e-4))
    reads = tuple(LAYER_BYTES if index % 2 else None for index in range(NUM_LAYERS))
    planner = TreePlanner(
        PairPrior(lambda temperature: BUILTIN),
        StreamShape((LAYER_BYTES,) * NUM_LAYERS, num_slots=2, read_bytes=reads, num_stages=2),
        max_nodes=64,
    )
    disk_seconds = NUM_LAYERS / 2 * LAYER_BYTES / (machine.bytes_per_second / 4)
    for num_nodes, widths in ((24, (1, 2)), (40, (1, 3, 9)), (64, (1, 5, 20))):
        machine.observe(planner, num_nodes, widths, disk_seconds=disk_seconds, bytes_read=NUM_LAYERS // 2 * LAYER_BYTES)
    assert planner.costs is not None
    assert planner.costs.round_seconds([1.0], [0.0])[0] >= 0.999 * disk_seconds
    assert planner.choice is not None
    assert planner.choice.bound == "disk"


def test_a_held_tree_is_every_rounds_and_teaches_nothing() -> None:
    planner = planner_for()
    planner.held_tree = best_first(BUILTIN, 5, 3).topology(5)
    SLOW_LINK.run(planner, 10)
    assert planner.shape(max_levels=100) is planner.held_tree
    assert (planner.choice, planner.costs) == (None, None)
    planner.held_tree = None
    topology = planner.topology(max_levels=100)
    assert (topology.num_nodes, topology.num_levels) == FIRST_SHAPE


class Processor(Machine):
    """Holds every layer; one token alone takes far less than wider passes let expect."""

    def observe(self, planner: TreePlanner, num_nodes: int, widths: tuple[int, ...], **options: Any) -> None:
        same = self.compute
        if num_nodes == 1:
            self.compute = (0.020, 0.0)
        super().observe(planner, num_nodes, widths, **options)
        self.compute = same


def resident_planner() -> TreePlanner:
    stream = StreamShape((None,) * NUM_LAYERS, num_slots=2)
    return TreePlanner(PairPrior(lambda temperature: BUILTIN), stream, max_nodes=256)


def sizes_of(machine: Machine, planner: TreePlanner, num_rounds: int) -> list[int]:
    return [machine.run(planner, 1).num_nodes for _ in range(num_rounds)]


def test_where_everything_is_resident_plain_decoding_is_tried_and_taken_if_it_is_faster() -> None:
    """Passes of 12 to 24 tokens let expect 60 ms of a single one, which takes 20: trees would never be left."""
    machine = Processor(link=1e12, compute=(0.060, 0.0005), draft=(0.018, 0))
    assert sizes_of(machine, resident_planner(), 36)[-24:] == [1] * 24


def test_where_a_tree_pays_a_resident_session_tries_plain_decoding_seldom() -> None:
    machine = Processor(link=1e12, compute=(0.021, 0.0001), draft=(0.0001, 0))
    sizes = sizes_of(machine, resident_planner(), 10 * PLAIN_ROUNDS)
    assert 1 <= sizes.count(1) <= 11


def test_where_layers_stream_no_round_is_spent_on_plain_decoding() -> None:
    assert 1 not in sizes_of(SLOW_LINK, planner_for(), 4 * PLAIN_ROUNDS)


def test_trials_of_trees_become_rare_where_plain_decoding_stays_best() -> None:
    machine = Processor(link=1e12, compute=(0.060, 0.0005), draft=(0.018, 0))
    planner = resident_planner()
    machine.run(planner, 60)
    assert sum(size > 1 for size in sizes_of(machine, planner, 1000)) <= 7


def test_plain_decoding_is_not_blamed_for_what_trees_failed_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static trees that brought half of what they promised made trees shaped by context look faster than no tree."""
    machine = Processor(link=1e12, compute=(0.060, 0.0005), draft=(0.018, 0))
    stream = StreamShape((None,) * NUM_LAYERS, num_slots=2)
    planner = TreePlanner(PairPrior(lambda temperature: BUILTIN), stream, max_nodes=256, kind="either")
    planner.use_temperature(0.0, can_grow_in_context=True)
    monkeypatch.setattr(YieldLearner, "factor", lambda self, *, is_in_context: 1.0 if is_in_context else 0.5)
    machine.run(planner, 36)
    assert planner.choice is not None
    assert (planner.choice.num_nodes, planner.choice.is_dynamic) == (1, False)


def test_texts_that_share_a_pass_share_the_nodes_that_it_may_have() -> None:
    planner = planner_for(max_nodes=64)
    assert planner.shape(max_levels=100, num_texts=2).num_nodes == FIRST_SHAPE[0] // 2
    assert planner.shape(max_levels=100, num_texts=32).num_nodes == 2
    assert planner.shape(max_levels=100, num_texts=100).num_nodes == 1
    assert planner.shape(max_levels=100).num_nodes == FIRST_SHAPE[0]


@pytest.mark.parametrize(("link", "num_nodes"), [(1e9, PROBE_SHAPE[0]), (4e7, 12), (1e6, FIRST_SHAPE[0])])
def test_the_first_trees_of_many_texts_are_as_large_as_the_link_covers(link: float, num_nodes: int) -> None:
    """Sixteen trees of 24 nodes took ten times as long as sixteen roots on a disk that a pass hardly waits for."""
    machine = Machine(link=link, compute=(0.0, 1e-3), draft=(0.01, 1e-4))
    planner = planner_for(max_nodes=1000)
    assert planner.shape(max_levels=100, num_texts=16).num_nodes == PROBE_SHAPE[0]
    machine.observe(planner, 300, (1, 2))
    assert planner.costs is None
    assert planner.shape(max_levels=100, num_texts=16).num_nodes == num_nodes


def test_a_tree_of_many_texts_is_the_best_for_what_their_rounds_cost() -> None:
    """Where computation bounds the pass, each of sixteen has a smaller tree than one alone."""
    costs = RoundCosts(
        copy_seconds=(0.1,) * NUM_LAYERS,
        pass_seconds=CostTable((1, 101), (0.1, 1.1)),
        draft_step_seconds=CostTable((1, 101), (0.01, 0.03)),
        walk_seconds=CostTable((1,), (0.01,)),
        num_slots=2,
    )
    planner = planner_for(costs=costs)
    alone = planner.shape(max_levels=100).num_nodes
    planner.shape(max_levels=100, num_texts=16)
    expected = choose_tree(costs.for_texts(16), BUILTIN, max_nodes=16, max_levels=MAX_TREE_LEVELS).best
    assert_same_choice(planner, expected)
    assert planner.choice is not None and planner.choice.num_nodes < alone


def test_a_sibling_knows_the_same_costs_and_has_a_temperature_of_its_own() -> None:
    machine = SLOW_LINK
    planner = planner_for(acceptance_at=lambda temperature: BUILTIN * (1.0 if temperature == 0 else 0.5))
    machine.run(planner, 8)
    sibling = planner.sibling()
    sibling.use_temperature(1.0)
    assert sibling.costs == planner.costs is not None
    assert sibling.acceptance.tolist() != planner.acceptance.tolist()
    before = planner.choice
    machine.run(sibling, 9)
    assert planner.choice is before and sibling.choice is not before
