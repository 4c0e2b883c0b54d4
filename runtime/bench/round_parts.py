"""What a round is made of, each part measured with the rest at rest, and what the recurrence makes of the parts.

A copy of every layer with nothing computing, a pass of a tree over layers of zeros that are already there, the drafting
of the tree alone, head, walk and compaction alone, and copies and pass at once with neither waiting for the other.
Prints nothing.
"""

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from offload.copying.copy_engine import DiskSource
from offload.copying.staged_engine import StagedCopyEngine
from offload.layer_streamer import ResidentLayer
from offload.pipeline_model import PipelineParts, round_seconds
from profiles.steps import finish
from runtime.bench.bare_loop import raw_link_seconds, streamed_layouts
from runtime.calibration.timing import layers_of_zeros, median_seconds, run_copies
from runtime.engine.engine import verify_input
from runtime.engine.loading import OpenSession
from runtime.model.streamed_model import LazyLogits
from runtime.sampling_params import SamplingParams
from runtime.speculation.token_tree import TokenTree
from runtime.speculation.verifier import verify

PROMPT_TOKENS = tuple(range(1, 33))
"""Any tokens do: what they cost does not depend on what they mean."""
GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True)
class RoundParts:
    """What a round is made of, each measured with the rest at rest; seconds."""

    link_seconds: float
    """All copies of a pass over the link, one after the other."""
    disk_seconds: float
    """All reads of a pass from a disk behind the link; 0 without one."""
    compute_seconds: float
    """All layers of a pass over the tree."""
    head_seconds: float
    """Head, walk and compaction."""
    free_overlap_seconds: float
    """Copies and layers of a pass at once, neither waiting for the other: no pass that shares cores can be shorter."""
    draft_seconds: float
    """Growing the tree."""
    predicted_seconds: float
    """A round, by the recurrence."""
    shared_seconds: float
    """The same, with copies and computation slowing each other as in the free overlap."""

    def describe(self) -> str:
        """One line for people."""
        return (
            f"apart: link {self.link_seconds:.3f} s, disk {self.disk_seconds:.3f} s, compute "
            f"{self.compute_seconds:.3f} s, both at once {self.free_overlap_seconds:.3f} s, draft "
            f"{self.draft_seconds:.3f} s, head {self.head_seconds:.3f} s; together a round should take "
            f"{self.predicted_seconds:.3f} s, {self.shared_seconds:.3f} s where both share the cores"
        )


def measure_parts(opened: OpenSession, num_repeats: int, *, params: SamplingParams = GREEDY) -> RoundParts:
    """Every part of a round with the session's own tree, on the text that it holds, its tokens chosen by `params`."""
    engine = opened.session.engine
    if not engine.text:
        engine.set_text(PROMPT_TOKENS)
    tree, draft_seconds = _time_draft(opened, num_repeats, params)
    parts = RoundParts(
        *time_copies(opened),
        *_time_compute(opened, tree, num_repeats, params),
        draft_seconds=draft_seconds,
        predicted_seconds=0.0,
        shared_seconds=0.0,
    )
    if opened.link is not opened.reader:  # nothing is shared
        longest = max(parts.link_seconds, parts.disk_seconds, parts.compute_seconds)
        parts = replace(parts, free_overlap_seconds=longest)
    return replace(
        parts,
        predicted_seconds=predict_round(opened, parts),
        shared_seconds=predict_round(opened, parts, is_shared=True),
    )


def predict_round(opened: OpenSession, measured: RoundParts, *, is_shared: bool = False) -> float:
    """Seconds of a round by the recurrence, from these parts.

    `is_shared` lets copies and computation slow each other as much as they did in the free overlap: what lies beyond
    the longer part is a charge on it, in proportion to the other.
    """
    streamer = opened.streamer
    num_layers, num_streamed = streamer.num_layers, streamer.num_streamed_layers
    is_staged = isinstance(opened.link, StagedCopyEngine)
    disk_layers = [isinstance(layer, DiskSource) and is_staged for layer in streamer.layers]
    read_seconds = measured.disk_seconds / max(sum(disk_layers), 1)
    copy, compute = measured.link_seconds / num_streamed, measured.compute_seconds / num_layers
    surplus = max(0.0, measured.free_overlap_seconds - max(measured.link_seconds, measured.compute_seconds))
    is_compute_longer = measured.compute_seconds >= measured.link_seconds
    slower_compute = surplus / num_streamed if is_shared and is_compute_longer else 0.0
    slower_copy = surplus / num_streamed if is_shared and not is_compute_longer else 0.0
    is_resident = [isinstance(layer, ResidentLayer) for layer in streamer.layers]
    return round_seconds(
        PipelineParts(
            copy_seconds=tuple(None if resident else copy + slower_copy for resident in is_resident),
            compute_seconds=tuple(compute + (0.0 if resident else slower_compute) for resident in is_resident),
            num_slots=len(streamer.slots),
            between_passes_seconds=measured.draft_seconds + measured.head_seconds,
            read_seconds=tuple(read_seconds if is_read else None for is_read in disk_layers),
            num_stages=opened.link.num_stages if isinstance(opened.link, StagedCopyEngine) else 0,
        )
    )


def _time_draft(opened: OpenSession, num_repeats: int, params: SamplingParams) -> tuple[TokenTree, float]:
    """A tree on the present text, and the median seconds of growing it with the link at rest."""
    engine = opened.session.engine
    topology = engine.planner.topology(max_levels=1 << 20)
    if engine.drafter is None:
        return TokenTree.rooted(topology, root_token_id=engine.text[-1]), 0.0
    drafter, rng = engine.drafter, np.random.default_rng(0)
    trees: list[TokenTree] = []

    def grow() -> None:
        trees.append(finish(drafter.grow(engine.text, topology, params=params, rng=rng)))

    seconds = median_seconds(grow, num_repeats + 1, after=lambda: drafter.roll_back(len(engine.text) - 1))
    return trees[-1], seconds


def _time_compute(
    opened: OpenSession, tree: TokenTree, num_repeats: int, params: SamplingParams
) -> tuple[float, float, float]:
    """Median seconds of a pass over layers of zeros, of head, walk and compaction, and of a pass while copies run."""
    engine = opened.session.engine
    target = engine.target
    num_committed = target.cache.num_cached
    text = engine.text[: num_committed + 1]
    hidden = torch.empty(0)

    def run_pass() -> None:
        nonlocal hidden
        target.cache.truncate(num_committed)
        hidden = target.run_pass(verify_input(text, tree, num_cached=num_committed))

    def walk() -> None:
        logits = LazyLogits(target, hidden[-tree.topology.num_nodes :], tree.topology)
        verdict = verify(tree, logits.row, params, np.random.default_rng(0))
        target.cache.compact(num_committed, [num_committed + node for node in verdict.path])

    with layers_of_zeros(opened):
        compute_seconds = median_seconds(run_pass, num_repeats + 1)
        head_seconds = median_seconds(walk, num_repeats, before=run_pass)
        overlap_seconds = median_seconds(lambda: _beside_copies(opened, run_pass), num_repeats + 1)
    target.cache.truncate(num_committed)
    return compute_seconds, head_seconds, overlap_seconds


def _beside_copies(opened: OpenSession, run_pass: Callable[[], None]) -> None:
    """A pass over layers that are there while a bare loop reads every streamed one, until both have ended."""
    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(raw_link_seconds, opened, streamed_layouts(opened))
        run_pass()
        reading.result()


def time_copies(opened: OpenSession) -> tuple[float, float]:
    """Seconds of a pass's copies, and of the reads from a disk behind the link, with nothing computing."""
    timed = [run_copies(opened) for _ in range(3)][1:]  # the first began with slots that had been filled earlier
    if isinstance(opened.link, StagedCopyEngine):
        link_seconds = statistics.mean(item.link_busy_seconds for item in timed)
        return link_seconds, statistics.mean(item.disk_busy_seconds for item in timed)
    return statistics.mean(item.seconds for item in timed), 0.0
