"""Whole rounds beside what the pipeline recurrence gives for their parts, each measured apart in the same run.

The parts: a copy of every layer with nothing computing, a pass of the same tree over layers of zeros that are already
there, the drafting of the tree alone, and head, walk and compaction alone. `pipeline_model` turns them into the seconds
of a round. Real rounds, text and all, are then timed on the same session; before and after every two of them the
copies are timed again, since a disk is never twice the same, and these rounds are held against the prediction from
those. Measures; prints nothing.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from runtime.bench.round_parts import GREEDY, PROMPT_TOKENS, RoundParts, measure_parts, predict_round, time_copies
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Event, Round, TokensAccepted
from runtime.sampling_params import SamplingParams

NUM_REPEATS = 5
ROUNDS_PER_LOOK = 2
"""Measured rounds between two looks at the copies alone."""


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
    placing_seconds: float = 0.0
    """Part of `draft_seconds`: choosing the children from the draft's logits."""
    walk_seconds: float = 0.0
    """Fetching the target's logits where the walk goes, and judging children by them."""

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
    shared_predictions: tuple[float, ...]
    """The same, with copies and computation slowing each other as in the free overlap."""

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
    def shared_ratio(self) -> float:
        """Median of real round over the round predicted where copies and computation share the cores."""
        pairs = zip(self.rounds, self.shared_predictions, strict=True)
        return statistics.median(item.seconds / predicted for item, predicted in pairs)

    @property
    def verification_share(self) -> float:
        """Median share of a round in which children are chosen and judged: neither a forward nor a copy."""
        return statistics.median((item.placing_seconds + item.walk_seconds) / item.seconds for item in self.rounds)

    @property
    def pass_over_bound(self) -> float:
        """Median real pass over the longest of copies, reads and computation."""
        return statistics.median(
            item.pass_seconds / max(item.link_seconds, item.disk_seconds, self.parts.compute_seconds)
            for item in self.rounds
        )

    @property
    def pass_over_free_overlap(self) -> float:
        """Median real pass over copies and computation at once, neither waiting for the other."""
        return statistics.median(item.pass_seconds for item in self.rounds) / self.parts.free_overlap_seconds

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "ratio": self.ratio,
            "shared_ratio": self.shared_ratio,
            "round_seconds": self.round_seconds,
            "predicted_seconds": statistics.median(self.predictions),
            "verification_share": self.verification_share,
            "pass_over_bound": self.pass_over_bound,
            "pass_over_free_overlap": self.pass_over_free_overlap,
            "link_utilization": statistics.median(item.link_utilization for item in self.rounds),
            "tokens_per_round": statistics.mean(item.num_tokens for item in self.rounds),
            **asdict(self),
        }


def run_round_benchmark(
    opened: OpenSession,
    *,
    num_rounds: int = 12,
    num_repeats: int = NUM_REPEATS,
    params: SamplingParams = GREEDY,
) -> Iterator[RoundParts | MeasuredRound | RoundReport]:
    """Yield the parts, each real round, the parts again, and last the report. Raises OptionError if nothing streams."""
    if opened.streamer.num_streamed_layers == 0:
        raise OptionError("no layer streams here; give a smaller --device-memory, or a larger --target")
    before = measure_parts(opened, num_repeats, params=params)
    yield before
    rounds = []
    for measured in _measure_rounds(opened, num_rounds, params):
        rounds.append(measured)
        yield measured
    after = measure_parts(opened, num_repeats, params=params)
    yield after
    topology = opened.session.engine.planner.topology(max_levels=1 << 20)
    parts = RoundParts(**{name: (value + getattr(after, name)) / 2 for name, value in asdict(before).items()})
    near = [replace(parts, link_seconds=item.link_seconds, disk_seconds=item.disk_seconds) for item in rounds]
    yield RoundReport(
        num_nodes=topology.num_nodes,
        num_levels=len(topology.level_slices),
        bytes_per_pass=opened.placement.streamed_bytes,
        parts=parts,
        rounds=tuple(rounds),
        predictions=tuple(predict_round(opened, measured) for measured in near),
        shared_predictions=tuple(predict_round(opened, measured, is_shared=True) for measured in near),
    )


def _measure_rounds(opened: OpenSession, num_rounds: int, params: SamplingParams) -> Iterator[MeasuredRound]:
    """Real rounds, two by two, between looks at the copies alone; raises OptionError if the text ends before."""
    engine = opened.session.engine
    engine.truncate(0)
    with closing(engine.generate(PROMPT_TOKENS, params, np.random.default_rng(params.seed))) as events:
        rounds = _time_rounds(events)
        try:
            next(rounds)  # carries the prompt
            copies_after = time_copies(opened)
            while num_rounds > 0:
                copies_before = copies_after
                next(rounds)  # starts from a ring that the looks have filled, and leaves one as a round finds it
                group = [next(rounds) for _ in range(min(num_rounds, ROUNDS_PER_LOOK))]
                copies_after = time_copies(opened)
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
    done: Round | None = None
    for event in events:
        if isinstance(event, Round):
            done = event
        if isinstance(event, TokensAccepted) and done is not None:
            seconds = time.perf_counter() - begun
            yield MeasuredRound(
                seconds=seconds,
                pass_seconds=done.pass_statistics.seconds,
                draft_seconds=done.draft_seconds,
                num_tokens=done.num_emitted,
                link_utilization=done.pass_statistics.link_busy_seconds / seconds,
                link_seconds=0.0,
                disk_seconds=0.0,
                placing_seconds=done.placing_seconds,
                walk_seconds=done.walk_seconds,
            )
            begun = time.perf_counter()
