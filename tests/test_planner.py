"""The planner on synthetic machines: it must find the tree that the recurrence says is best, and report it."""

import numpy as np
import pytest

from offload.layer_streamer import PassStatistics
from offload.pipeline_model import PipelineParts, round_seconds
from runtime.planner import FIRST_SHAPE, LinearCost, RoundObservation, TreePlanner
from runtime.speculation.acceptance import BUILTIN_ACCEPTANCE
from runtime.speculation.tree_search import best_first

NUM_LAYERS = 8
LAYER_BYTES = 1_000_000


class Machine:
    """A machine whose parts cost exactly what it says."""

    def __init__(self, *, link: float, compute: tuple[float, float], draft: tuple[float, float]) -> None:
        self.bytes_per_second = link
        self.compute = compute
        self.draft = draft

    def parts(self, num_nodes: int, num_levels: int, num_expanded: int, overhead: float = 0.01) -> PipelineParts:
        draft_seconds = (num_levels - 1) * self.draft[0] + num_expanded * self.draft[1]
        per_layer = (self.compute[0] + self.compute[1] * num_nodes) / NUM_LAYERS
        return PipelineParts(
            (LAYER_BYTES / self.bytes_per_second,) * NUM_LAYERS, (per_layer,) * NUM_LAYERS, 2, draft_seconds + overhead
        )

    def observe(
        self,
        planner: TreePlanner,
        num_nodes: int,
        widths: tuple[int, ...],
        *,
        disk_seconds: float = 0.0,
        bytes_read: int = 0,
    ) -> None:
        compute = self.compute[0] + self.compute[1] * num_nodes
        busy = NUM_LAYERS * LAYER_BYTES / self.bytes_per_second
        planner.observe(
            RoundObservation(
                num_pass_tokens=num_nodes,
                num_nodes=num_nodes,
                num_emitted=1,
                draft_seconds=sum(self.draft[0] + self.draft[1] * width for width in widths),
                verify_seconds=compute + 0.51,
                draft_steps=tuple((width, self.draft[0] + self.draft[1] * width) for width in widths),
                statistics=PassStatistics(
                    seconds=compute + 0.5,
                    wait_seconds=0.5,
                    link_busy_seconds=busy,
                    bytes_streamed=NUM_LAYERS * LAYER_BYTES,
                    num_layers=NUM_LAYERS,
                    num_streamed_layers=NUM_LAYERS,
                    compute_seconds=compute,
                    disk_busy_seconds=disk_seconds,
                    bytes_read=bytes_read,
                ),
            )
        )


def planner_for(*, max_nodes: int = 256, fixed_shape: tuple[int, int] | None = None) -> TreePlanner:
    return TreePlanner(
        np.asarray(BUILTIN_ACCEPTANCE),
        streamed_bytes=(LAYER_BYTES,) * NUM_LAYERS,
        num_slots=2,
        max_nodes=max_nodes,
        fixed_shape=fixed_shape,
    )


def chosen(machine: Machine, planner: TreePlanner) -> tuple[int, int]:
    machine.observe(planner, 100, (1, 3, 9))
    machine.observe(planner, 64, (1, 5, 20))
    assert planner.choice is not None
    return planner.choice.num_nodes, planner.choice.num_levels


def test_before_anything_is_measured_the_first_tree_is_modest() -> None:
    topology = planner_for().topology(max_levels=100)
    assert (topology.num_nodes, topology.num_levels) == FIRST_SHAPE


@pytest.mark.parametrize("num_levels", [1, 2, 5])
def test_the_tree_never_has_more_levels_than_the_context_allows(num_levels: int) -> None:
    assert planner_for().topology(max_levels=num_levels).num_levels <= num_levels


def test_a_fixed_shape_ends_all_choosing() -> None:
    planner = planner_for(max_nodes=64, fixed_shape=(64, 10))
    Machine(link=1e9, compute=(0, 1.0), draft=(1.0, 0)).observe(planner, 64, (1, 2))
    topology = planner.topology(max_levels=100)
    assert (topology.num_nodes, topology.num_levels) == (64, 10)
    assert planner.choice is None


def test_a_slow_link_and_cheap_compute_want_a_large_deep_tree() -> None:
    num_nodes, num_levels = chosen(Machine(link=1e6, compute=(0.01, 1e-5), draft=(0.01, 1e-4)), planner_for())
    assert num_nodes > 200
    assert num_levels > 12


def test_a_costly_draft_wants_few_levels() -> None:
    _, shallow = chosen(Machine(link=1e7, compute=(0.01, 1e-4), draft=(0.3, 0)), planner_for())
    _, deep = chosen(Machine(link=1e7, compute=(0.01, 1e-4), draft=(0.001, 0)), planner_for())
    assert shallow < deep


def test_where_every_node_costs_a_pass_plain_decoding_is_chosen() -> None:
    assert chosen(Machine(link=1e12, compute=(0, 1.0), draft=(0.1, 0.1)), planner_for()) == (1, 1)


def test_the_choice_is_the_best_of_an_exhaustive_search() -> None:
    """All sizes and levels by the plain recurrence, one at a time, on the costs that the planner was shown."""
    machine = Machine(link=2e7, compute=(0.05, 2e-3), draft=(0.02, 1e-3))
    planner = planner_for(max_nodes=40)
    chosen(machine, planner)
    assert planner.choice is not None
    best = np.inf
    for num_levels in range(1, 33):
        search = best_first(BUILTIN_ACCEPTANCE, 40, num_levels)
        for num_nodes in range(1, len(search.depths) + 1):
            topology = search.topology(num_nodes)
            parts = machine.parts(num_nodes, topology.num_levels, len(topology.expanded_nodes))
            best = min(best, round_seconds(parts) / search.expected_tokens[num_nodes - 1])
    assert planner.choice.seconds_per_token == pytest.approx(best, rel=0.01)


def test_a_choice_extrapolates_only_so_far() -> None:
    planner = planner_for(max_nodes=4096)
    machine = Machine(link=1e5, compute=(0.01, 1e-6), draft=(0.001, 1e-6))
    machine.observe(planner, 20, (1, 2))
    assert planner.choice is not None
    assert planner.choice.num_nodes <= 80


def test_a_linear_cost_recovers_its_line_and_never_turns_negative() -> None:
    cost = LinearCost()
    for size in (1, 4, 9):
        cost.add(size, 0.5 + 0.25 * size)
    assert cost.fit() == pytest.approx((0.5, 0.25))
    falling = LinearCost()
    falling.add(1, 2.0)
    falling.add(3, 1.0)
    assert falling.fit() == pytest.approx((1.5, 0.0))
    steep = LinearCost()
    steep.add(10, 1.0)
    steep.add(20, 4.0)
    base, slope = steep.fit()
    assert base == 0
    assert slope > 0


def test_one_outlier_does_not_bend_the_line() -> None:
    """A draft step that met a busy processor must not decide the tree."""
    cost = LinearCost()
    for size in range(1, 13):
        cost.add(size, 0.5 + 0.25 * size)
    cost.add(6, 40.0)
    assert cost.fit() == pytest.approx((0.5, 0.25), rel=0.05)


def test_a_disk_behind_the_link_is_part_of_the_prediction() -> None:
    """Half of the layers come from a disk four times slower than the link: the disk is the bound, and is predicted."""
    machine = Machine(link=1e7, compute=(0.001, 1e-6), draft=(0.01, 1e-4))
    reads = tuple(LAYER_BYTES if index % 2 else None for index in range(NUM_LAYERS))
    planner = TreePlanner(
        np.asarray(BUILTIN_ACCEPTANCE),
        streamed_bytes=(LAYER_BYTES,) * NUM_LAYERS,
        num_slots=2,
        max_nodes=64,
        read_bytes=reads,
        num_stages=2,
    )
    disk_seconds = NUM_LAYERS / 2 * LAYER_BYTES / (machine.bytes_per_second / 4)
    for num_nodes, widths in ((40, (1, 3, 9)), (64, (1, 5, 20))):
        machine.observe(planner, num_nodes, widths, disk_seconds=disk_seconds, bytes_read=NUM_LAYERS // 2 * LAYER_BYTES)
    predicted = planner.round_seconds(np.array([1.0]), np.array([1.0]), np.array([0.0]))[0]
    assert predicted >= 0.999 * disk_seconds
