"""Whole rounds beside what the pipeline recurrence gives for their parts, each measured apart in the same run.

The parts: a copy of every layer with nothing computing, a pass of the same tree over layers of zeros that are already
there, the drafting of the tree alone, and head, walk and compaction alone. `pipeline_model` turns them into the seconds
of a round. Real rounds, text and all, are then timed on the same session; before and after every two of them the
copies are timed again, since a disk is never twice the same, and these rounds are held against the prediction from
those. Measures; prints nothing.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from offload.copy_engine import DiskSource
from offload.layer_streamer import LayerStreamer, ResidentLayer
from offload.pipeline_model import PipelineParts, round_seconds
from offload.staged_copy_engine import StagedCopyEngine
from runtime.assembly import OpenSession
from runtime.engine import verify_input
from runtime.errors import OptionError
from runtime.events import Event, PassVerified, TokensAccepted
from runtime.model.lazy_logits import LazyLogits
from runtime.sampling_params import SamplingParams
from runtime.speculation.token_tree import TokenTree
from runtime.speculation.verifier import verify

PROMPT_TOKENS = tuple(range(1, 33))
"""Any tokens do: what they cost does not depend on what they mean."""
NUM_REPEATS = 5
ROUNDS_PER_LOOK = 2
"""Measured rounds between two looks at the copies alone."""


@dataclass(frozen=True, slots=True)
class RoundParts:
    """What a round is made of, each measured with the rest at rest; seconds."""

    link_seconds: float
    """All copies of a pass over the link, one after the other."""
    disk_seconds: float
    """All reads of a pass from a disk behind the link; 0 without one."""
    compute_seconds: float
    """All layers of a pass over the tree."""
    draft_seconds: float
    """Growing the tree."""
    head_seconds: float
    """Head, walk and compaction."""
    predicted_seconds: float
    """A round, by the recurrence."""

    def describe(self) -> str:
        """One line for people."""
        return (
            f"apart: link {self.link_seconds:.3f} s, disk {self.disk_seconds:.3f} s, compute "
            f"{self.compute_seconds:.3f} s, draft {self.draft_seconds:.3f} s, head {self.head_seconds:.3f} s; "
            f"together a round should take {self.predicted_seconds:.3f} s"
        )


@dataclass(frozen=True, slots=True)
class MeasuredRound:
    """One real round."""

    seconds: float
    """From one round's tokens to the next one's."""
    pass_seconds: float
    """Of these, the pass."""
    draft_seconds: float
    """Of these, growing the tree."""
    num_tokens: int
    """Tokens emitted."""
    link_utilization: float
    """Share of the round in which the link carried bytes."""
    link_seconds: float
    """All copies of a pass with nothing computing, mean of the looks before and after."""
    disk_seconds: float
    """The same for reads from a disk behind the link; 0 without one."""

    def describe(self) -> str:
        """One line for people."""
        return (
            f"round: {self.seconds:.3f} s for {self.num_tokens} tokens, pass {self.pass_seconds:.3f} s, "
            f"draft {self.draft_seconds:.3f} s, link {100 * self.link_utilization:.0f} % busy"
        )


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What `overstory bench round` shows."""

    num_nodes: int
    """Nodes of the tree, root included."""
    num_levels: int
    """Levels, root included."""
    bytes_per_pass: int
    """Weights that cross the link in every pass."""
    parts: RoundParts
    """Measured apart, before the rounds and after them; the mean of both."""
    rounds: tuple[MeasuredRound, ...]
    """In order."""
    predictions: tuple[float, ...]
    """Seconds of each round by the recurrence, from the parts and the copies timed around it."""

    @property
    def round_seconds(self) -> float:
        """Median of the real rounds."""
        return statistics.median(item.seconds for item in self.rounds)

    @property
    def ratio(self) -> float:
        """Median of real round over predicted round."""
        pairs = zip(self.rounds, self.predictions, strict=True)
        return statistics.median(item.seconds / predicted for item, predicted in pairs)

    @property
    def pass_over_bound(self) -> float:
        """Median real pass over the longest of copies, reads and computation."""
        return statistics.median(
            item.pass_seconds / max(item.link_seconds, item.disk_seconds, self.parts.compute_seconds)
            for item in self.rounds
        )

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "ratio": self.ratio,
            "round_seconds": self.round_seconds,
            "predicted_seconds": statistics.median(self.predictions),
            "pass_over_bound": self.pass_over_bound,
            "link_utilization": statistics.median(item.link_utilization for item in self.rounds),
            "tokens_per_round": statistics.mean(item.num_tokens for item in self.rounds),
            **asdict(self),
        }


def run_round_benchmark(
    opened: OpenSession, *, num_rounds: int = 12, num_repeats: int = NUM_REPEATS
) -> Iterator[RoundParts | MeasuredRound | RoundReport]:
    """Yield the parts, each real round, the parts again, and last the report. Raises OptionError if nothing streams."""
    if opened.streamer.num_streamed_layers == 0:
        raise OptionError("no layer streams here; give a smaller --device-memory, or a larger --target")
    before = _measure_parts(opened, num_repeats)
    yield before
    rounds = []
    for measured in _measure_rounds(opened, num_rounds):
        rounds.append(measured)
        yield measured
    after = _measure_parts(opened, num_repeats)
    yield after
    topology = opened.session.engine.planner.topology(max_levels=1 << 20)
    parts = RoundParts(**{name: (value + getattr(after, name)) / 2 for name, value in asdict(before).items()})
    yield RoundReport(
        num_nodes=topology.num_nodes,
        num_levels=len(topology.level_slices),
        bytes_per_pass=opened.accounting.streamed_bytes_per_pass,
        parts=parts,
        rounds=tuple(rounds),
        predictions=tuple(
            _predict(opened, replace(parts, link_seconds=item.link_seconds, disk_seconds=item.disk_seconds))
            for item in rounds
        ),
    )


def _measure_rounds(opened: OpenSession, num_rounds: int) -> Iterator[MeasuredRound]:
    """Real rounds, two by two, between looks at the copies alone; raises OptionError if the text ends before."""
    engine = opened.session.engine
    engine.truncate(0)
    with closing(engine.generate(PROMPT_TOKENS, SamplingParams(), np.random.default_rng(0))) as events:
        rounds = _time_rounds(events)
        try:
            next(rounds)  # carries the prompt
            copies_after = _time_copies(opened)
            while num_rounds > 0:
                copies_before = copies_after
                next(rounds)  # starts from a ring that the looks have filled, and leaves one as a round finds it
                group = [next(rounds) for _ in range(min(num_rounds, ROUNDS_PER_LOOK))]
                copies_after = _time_copies(opened)
                link_seconds, disk_seconds = map(statistics.mean, zip(copies_before, copies_after, strict=True))
                for measured in group:
                    yield replace(measured, link_seconds=link_seconds, disk_seconds=disk_seconds)
                num_rounds -= len(group)
        except StopIteration:
            raise OptionError(
                "the text ended before the rounds did; give a larger --context or fewer --rounds"
            ) from None


def _time_rounds(events: Iterator[Event]) -> Iterator[MeasuredRound]:
    """Each round from being asked for to its tokens; copies alone are not known here."""
    begun = time.perf_counter()
    verified: PassVerified | None = None
    for event in events:
        if isinstance(event, PassVerified):
            verified = event
        if isinstance(event, TokensAccepted) and verified is not None:
            seconds = time.perf_counter() - begun
            yield MeasuredRound(
                seconds=seconds,
                pass_seconds=verified.seconds,
                draft_seconds=verified.draft_seconds,
                num_tokens=verified.num_accepted,
                link_utilization=verified.link_busy_seconds / seconds,
                link_seconds=0.0,
                disk_seconds=0.0,
            )
            begun = time.perf_counter()


def _measure_parts(opened: OpenSession, num_repeats: int) -> RoundParts:
    engine = opened.session.engine
    if not engine.text:
        engine.set_text(PROMPT_TOKENS)
    tree, draft_seconds = _time_draft(opened, num_repeats)
    compute_seconds, head_seconds = _time_compute(opened, tree, num_repeats)
    parts = RoundParts(*_time_copies(opened), compute_seconds, draft_seconds, head_seconds, predicted_seconds=0.0)
    return replace(parts, predicted_seconds=_predict(opened, parts))


def _predict(opened: OpenSession, measured: RoundParts) -> float:
    """Seconds of a round by the recurrence, from these parts."""
    streamer = opened.streamer
    num_layers, num_streamed = streamer.num_layers, streamer.num_streamed_layers
    is_staged = isinstance(opened.link, StagedCopyEngine)
    disk_layers = [isinstance(layer, DiskSource) and is_staged for layer in streamer.layers]
    return round_seconds(
        PipelineParts(
            copy_seconds=tuple(
                None if isinstance(layer, ResidentLayer) else measured.link_seconds / num_streamed
                for layer in streamer.layers
            ),
            compute_seconds=(measured.compute_seconds / num_layers,) * num_layers,
            num_slots=len(streamer.slots),
            between_passes_seconds=measured.draft_seconds + measured.head_seconds,
            read_seconds=tuple(
                measured.disk_seconds / sum(disk_layers) if is_read else None for is_read in disk_layers
            ),
            num_stages=opened.link.num_stages if isinstance(opened.link, StagedCopyEngine) else 0,
        )
    )


def _time_draft(opened: OpenSession, num_repeats: int) -> tuple[TokenTree, float]:
    """A tree on the present text, and the median seconds of growing it with the link at rest."""
    engine = opened.session.engine
    topology = engine.planner.topology(max_levels=1 << 20)
    if engine.drafter is None:
        return TokenTree.rooted(topology, root_token_id=engine.text[-1]), 0.0
    drafter, params, rng = engine.drafter, SamplingParams(), np.random.default_rng(0)
    tree: TokenTree | None = None

    def grow() -> None:
        nonlocal tree
        *_, last = drafter.grow(engine.text, topology, params=params, rng=rng)
        assert isinstance(last, TokenTree)
        tree = last

    seconds = _median_seconds(grow, num_repeats + 1, after=lambda: drafter.roll_back(len(engine.text) - 1))
    assert tree is not None
    return tree, seconds


def _time_compute(opened: OpenSession, tree: TokenTree, num_repeats: int) -> tuple[float, float]:
    """Median seconds of a pass over layers of zeros that are there, and of head, walk and compaction."""
    engine, plan = opened.session.engine, opened.plan
    target = engine.target
    zeros = torch.zeros(max(plan.residency.layer_bytes), dtype=torch.uint8, device=plan.device)
    num_committed = target.cache.num_cached
    text = engine.text[: num_committed + 1]
    hidden = torch.empty(0)

    def run_pass() -> None:
        nonlocal hidden
        target.cache.truncate(num_committed)
        hidden = target.run_pass(verify_input(text, tree, num_cached=num_committed))

    def walk() -> None:
        logits = LazyLogits(target, hidden[-tree.topology.num_nodes :], tree.topology)
        verdict = verify(tree, logits.row, SamplingParams(), np.random.default_rng(0))
        target.cache.compact(num_committed, [num_committed + node for node in verdict.path])

    layers = [ResidentLayer(zeros)] * opened.streamer.num_layers
    with LayerStreamer(layers, opened.reader, num_slots=2) as ring, target.streaming_from(ring):
        compute_seconds = _median_seconds(run_pass, num_repeats + 1)
        head_seconds = _median_seconds(walk, num_repeats, before=run_pass)
    target.cache.truncate(num_committed)
    return compute_seconds, head_seconds


def _time_copies(opened: OpenSession) -> tuple[float, float]:
    """Seconds of a pass's copies, and of the reads from a disk behind the link, with nothing computing."""
    streamer, passes = opened.streamer, []
    for _ in range(3):
        streamer.begin_pass()
        for index in range(streamer.num_layers):
            streamer.acquire(index)
            streamer.release(index)
        passes.append(streamer.end_pass())
    timed = passes[1:]  # the first began with slots that had been filled earlier
    if isinstance(opened.link, StagedCopyEngine):
        link_seconds = statistics.mean(item.link_busy_seconds for item in timed)
        return link_seconds, statistics.mean(item.disk_busy_seconds for item in timed)
    return statistics.mean(item.seconds for item in timed), 0.0


def _median_seconds(
    action: Callable[[], object],
    num_repeats: int,
    *,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> float:
    """Median over the repeats, the first one left out where there are several."""
    seconds = []
    for _ in range(num_repeats):
        if before is not None:
            before()
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
        if after is not None:
            after()
    return statistics.median(seconds[1:] or seconds)
