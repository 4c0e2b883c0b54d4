"""Says what a calibration asks of a machine and a pair of models, and how far it goes.

Probes time one thing once, right now; how often, in which order and for how long is the calibrator's choice. The
probes of a real session are in `runtime.calibration.probes`; those of tests have a clock of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from profiles.acceptance import ForcedPosition
from profiles.machine_profile import MachineProfile
from profiles.pair_profile import FEW_POSITIONS, ModelIdentity

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class PairFacts:
    """Which models, and what their session has room for."""

    target: ModelIdentity
    draft: ModelIdentity
    compute_dtype: str
    max_pass_tokens: int
    """Tokens of the largest pass that the session has memory for."""
    cache_tokens: int
    """Tokens that both caches hold: context and pass together."""
    context_tokens: int
    """Most tokens of a text."""
    prompt_tokens: tuple[int, ...]
    """By number of prompts used, from one: tokens that they have together, common beginnings counted once."""
    is_streamed: bool
    """Whether any layer of the target crosses a link in every pass."""


class CalibrationProbes(Protocol):
    """Measures one thing once, now; times are in seconds."""

    def machine(self) -> MachineProfile:
        """Return device, memory, pin budget and the date, with nothing timed; asking the driver may take seconds."""

    def pair(self) -> PairFacts:
        """Return the models, and what their session has room for."""

    def time_link(self, num_bytes: int) -> float | None:
        """Time a copy from pinned host memory to the device; None where such memory cannot be had."""

    def time_disk(self, num_bytes: int) -> float | None:
        """Time a read of the target's files past the page cache; None where that, or so long a file, cannot be had."""

    def time_draft_step(self, width: int, context_tokens: int) -> float:
        """Time a draft forward of so many nodes, head and choice of children included."""

    def time_pass(self, num_tokens: int, context_tokens: int) -> float:
        """Time the computation of all layers of the target, with every weight there already."""

    def time_walk(self, num_nodes: int) -> float:
        """Time head, walk and compaction after a pass over a tree."""

    def time_copies(self) -> float:
        """Time all copies of a pass over the session's own link with nothing computing; only where layers stream."""

    def time_streamed_pass(self, num_tokens: int, context_tokens: int) -> tuple[float, float]:
        """Time a real pass that finds a full ring, until it is computed and until the ring is full again."""

    def begin_texts(self, num_texts: Mapping[float, int]) -> None:
        """Run the prompts through both models; at most so many texts of each temperature will be written at a time."""

    def grow_texts(self) -> Sequence[ForcedPosition]:
        """Write one token of every text, and say what verification would have done there; empty when no text grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationScope:
    """How far a calibration goes. Each part has a share of the time left when measuring begins; texts get the rest."""

    budget_seconds: float
    """From the start of the command to its end."""
    session_context_tokens: int = 2048
    """Context of the session where none is given: enough for texts side by side, and for the planner's contexts."""
    transfer_bytes: tuple[int, ...] = (64 * KIB, MIB, 8 * MIB, 64 * MIB, 256 * MIB)
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Nodes of draft steps, ascending."""
    step_context_tokens: int = 256
    """Tokens that draft steps attend to."""
    tree_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """Tokens of passes, ascending; all are measured behind the first context as far as time and memory go."""
    contexts: tuple[int, ...] = (128, 512, 2048, 4096)
    sizes_in_context: tuple[int, ...] = (64, 1, 256)
    """Tokens of the passes that are measured behind the later contexts, in this order."""
    walk_sizes: tuple[int, ...] = (1, 16, 64, 256, 1024)
    """Nodes of the trees that are walked, ascending."""
    temperatures: tuple[float, ...] = (0.0, 0.6, 1.0)
    max_texts: int = 24
    """Texts of a temperature that are written at a time, and prompts that are used."""
    greedy_per_sampled: int = 2
    """Greedy texts for each text of another temperature: their trees are the deepest, and most code is greedy."""
    min_text_steps: int = 32
    """More texts are written at a time as long as all of them get so many tokens: texts differ more than positions, but
    answers begin easier than they go on, so that short ones promise too much."""
    needed_positions: int = 0
    """Where time is too short for so many of each temperature, the coolest gets all of it; 0: they always share it."""
    repeat_seconds: float = 1.5
    """A size is timed again while its runs took less than this together, up to max_repeats."""
    max_repeats: int = 4
    """Runs of one size, of which the median counts."""
    overlap_looks: int = 3
    """Looks at passes that stream and compute at once, for each of two sizes."""
    transfers_share: float = 0.03
    """For the link, and again for the disk."""
    draft_share: float = 0.10
    passes_share: float = 0.22
    walks_share: float = 0.04
    overlap_share: float = 0.22
    """For passes that stream and compute at once."""
    texts_share: float = 0.25
    """Kept for texts, whatever the other parts took."""


FULL = CalibrationScope(budget_seconds=170.0)
"""Three minutes at most, with what the start and the files take."""
QUICK = CalibrationScope(
    budget_seconds=36.5,
    session_context_tokens=1024,
    widths=(1, 4, 16, 64, 256),
    tree_sizes=(1, 4, 16, 64, 256, 1024),
    sizes_in_context=(64,),
    max_texts=12,
    needed_positions=FEW_POSITIONS,
    greedy_per_sampled=1,
    repeat_seconds=0.4,
    max_repeats=3,
    overlap_looks=1,
    transfers_share=0.02,
    draft_share=0.05,
    passes_share=0.10,
    walks_share=0.03,
    overlap_share=0.27,
    texts_share=0.50,
)
"""Forty seconds at most, with two or three for the start and the end: everything once, and half of the time for texts;
of the coolest temperature alone where it is short, because too few positions of each would be believed at none."""
THOROUGH = CalibrationScope(
    budget_seconds=590.0,
    session_context_tokens=6144,  # a hundred texts of fifty tokens
    max_texts=48,
    min_text_steps=48,
    overlap_looks=4,
    passes_share=0.14,
    overlap_share=0.12,
    texts_share=0.60,
)
"""Ten minutes at most, most of them for texts: predictions get better with their number, once they are long enough."""
