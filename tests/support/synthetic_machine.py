"""A machine for the tests of the planner: its parts cost exactly what it says; it runs rounds on a planner's trees."""

import numpy as np

from offload.pass_statistics import PassStatistics
from runtime.events import Round
from runtime.planner.costs import CostTable, RoundCosts, StreamShape
from runtime.planner.planner import TreePlanner
from runtime.speculation.acceptance import builtin_acceptance
from runtime.speculation.token_tree import TreeTopology
from tests.support.pipeline_simulation import PipelineParts

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
        path: tuple[tuple[int, int], ...] = (),
        is_in_context: bool = False,
    ) -> None:
        """A round; `path` holds (accepted rank, children) of each accepted node."""
        compute = self.compute[0] + self.compute[1] * num_nodes
        busy = NUM_LAYERS * LAYER_BYTES / self.bytes_per_second
        planner.observe(
            Round(
                parents=(-1,) + (0,) * (num_nodes - 1),
                path=(0,),
                num_pass_tokens=num_nodes,
                draft_seconds=sum(self.draft[0] + self.draft[1] * width for width in widths),
                verify_seconds=compute + 0.51,
                draft_steps=tuple((width, self.draft[0] + self.draft[1] * width) for width in widths),
                pass_statistics=PassStatistics(
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
                accepted_ranks=tuple(rank for rank, _ in path),
                num_children=tuple(count for _, count in path),
                is_in_context=is_in_context,
            )
        )

    def run(self, planner: TreePlanner, num_rounds: int, *, path: tuple[tuple[int, int], ...] = ()) -> TreeTopology:
        """Rounds of the planner's own trees; returns the last one."""
        for _ in range(num_rounds):
            topology = planner.topology(max_levels=1000)
            widths = (
                np.bincount(topology.depths[np.flatnonzero(topology.num_children)]) if topology.num_nodes > 1 else []
            )
            self.observe(planner, topology.num_nodes, tuple(map(int, widths)), path=path)
        return topology

    def costs(self) -> RoundCosts:
        """The same machine as a profile would describe it."""
        return RoundCosts(
            copy_seconds=(LAYER_BYTES / self.bytes_per_second,) * NUM_LAYERS,
            pass_seconds=CostTable((0, 1), (self.compute[0], sum(self.compute))),
            draft_step_seconds=CostTable((0, 1), (self.draft[0], sum(self.draft))),
            walk_seconds=CostTable((1,), (0.01,)),
            num_slots=2,
        )


BUILTIN = builtin_acceptance(substitute_held=None)
STREAM = StreamShape((LAYER_BYTES,) * NUM_LAYERS, num_slots=2)
SLOW_LINK = Machine(link=1e6, compute=(0.01, 1e-5), draft=(0.01, 1e-4))
