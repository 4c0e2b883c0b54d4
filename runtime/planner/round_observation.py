"""What one round cost and brought: the engine writes it down, the planner learns from it, the consumer sees a part."""

from dataclasses import dataclass

from offload.layer_streamer import PassStatistics
from runtime.events import PassVerified


@dataclass(frozen=True, slots=True)
class RoundObservation:
    """One round, as measured."""

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
    accepted_ranks: tuple[int, ...] = ()
    """For each accepted node of the draft's, from the root down, the rank of the child that was accepted; 0 if none of
    the draft's was."""
    num_children: tuple[int, ...] = ()
    """For each of these nodes how many children of the draft's stood for acceptance."""
    num_grafted: int = 0
    """Nodes of the tree that are not the draft's."""
    parents: tuple[int, ...] = ()
    """(N,) of the verified tree, breadth first; the root's is -1."""
    path: tuple[int, ...] = ()
    """The accepted nodes, from the root on."""
    placing_seconds: float = 0.0
    """Part of `draft_seconds`: from logits to children."""
    walk_seconds: float = 0.0
    """Part of `verify_seconds`: logits where the walk goes, and the walk."""
    is_in_context: bool = False
    """Whether the tree took its shape from context."""

    @property
    def overhead_seconds(self) -> float:
        """What was neither a draft forward nor the pass: head, walk and compaction, and filling the tree."""
        outside_pass = self.verify_seconds - self.statistics.seconds
        outside_steps = self.draft_seconds - sum(seconds for _, seconds in self.draft_steps)
        return max(0.0, outside_pass + outside_steps)

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
            parents=self.parents,
            path=self.path,
            placing_seconds=self.placing_seconds,
            walk_seconds=self.walk_seconds,
        )
