"""How close plain decoding comes to the raw link, and whether memory is what was planned.

Alternates, in one run, the raw link (sequential O_DIRECT reads of the same layers with the same blocks and threads; an
emulated link's own rate) and whole passes of the real round loop without a draft. A turn begins and ends with a full
ring, so that exactly its passes' bytes cross the link, and is held against the raw link right before and right after
it, since a disk is never twice the same. Beside it stand a bare loop that reads the same bytes and does the same
products, one after the other, and both at once with neither waiting for the other, which nothing that shares cores and
memory with its disk can beat. Measures; prints nothing.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from offload.copying.staged_engine import StagedCopyEngine
from offload.memory import process_memory
from runtime.bench.bare_loop import bare_pass_seconds, free_overlap_seconds, raw_link_seconds, streamed_layouts
from runtime.calibration.timing import wait_for_full_ring
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import TokensAccepted
from runtime.sampling_params import SamplingParams

PROMPT_TOKENS = (1, 2, 3, 4)
"""Any tokens do: what they cost does not depend on what they mean."""


@dataclass(frozen=True, slots=True)
class StreamTurn:
    """One turn: passes, between two looks at the raw link."""

    raw_bytes_per_second: float
    """What a bare reading loop got, mean of before and after."""
    free_overlap_seconds: float
    """What the pass's reads and products take at once when neither waits for the other, mean of before and after."""
    bytes_per_second: float
    """What whole passes got."""
    seconds_per_pass: float
    """Mean of the turn's passes."""
    wait_seconds_per_pass: float
    """Of these, waiting for bytes; where it is near zero the processor is the bound, not the link."""

    @property
    def ratio(self) -> float:
        """Achieved over raw."""
        return self.bytes_per_second / self.raw_bytes_per_second

    @property
    def seconds_over_free_overlap(self) -> float:
        """Measured pass over the free overlap: 1 is perfect."""
        return self.seconds_per_pass / self.free_overlap_seconds


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What `overstory bench stream` shows."""

    turns: tuple[StreamTurn, ...]
    """In order."""
    bytes_per_pass: int
    """Weights that cross the link in every pass."""
    num_streamed_layers: int
    """Layers that cross it."""
    num_resident_layers: int
    """Layers that do not."""
    passes_per_turn: int
    """Timed passes in each turn."""
    peak_bytes: int
    """The process's largest resident size, less what it held before loading."""
    planned_bytes: int
    """What was planned that it would hold."""
    bare_seconds_per_pass: float
    """A loop that reads a layer's bytes, multiplies by its matrices, then reads the next; mean of two, at the end."""

    @property
    def ratio(self) -> float:
        """Median over the turns of achieved over raw."""
        return statistics.median(turn.ratio for turn in self.turns)

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "ratio": self.ratio,
            "bytes_per_second": statistics.median(turn.bytes_per_second for turn in self.turns),
            "raw_bytes_per_second": statistics.median(turn.raw_bytes_per_second for turn in self.turns),
            "seconds_per_pass": statistics.median(turn.seconds_per_pass for turn in self.turns),
            "seconds_over_bare_loop": statistics.median(turn.seconds_per_pass for turn in self.turns)
            / self.bare_seconds_per_pass,
            "seconds_over_free_overlap": statistics.median(turn.seconds_over_free_overlap for turn in self.turns),
            "peak_over_planned": self.peak_bytes / self.planned_bytes,
            **{**asdict(self), "turns": [{**asdict(turn), "ratio": turn.ratio} for turn in self.turns]},
        }


def run_stream_benchmark(
    opened: OpenSession, *, num_turns: int = 6, passes_per_turn: int = 2
) -> Iterator[StreamTurn | StreamReport]:
    """Yield each turn as it ends, and last the report. Raises OptionError if nothing streams."""
    if opened.streamer.num_streamed_layers == 0:
        raise OptionError("no layer streams here; give a smaller --device-memory, or a larger --target")
    if isinstance(opened.link, StagedCopyEngine):
        raise OptionError("layers stream over two links here; give --host-memory 0 or enough of it, or use bench round")
    turns = []
    placement = opened.placement
    _time_passes(opened, passes_per_turn)
    peak_bytes = process_memory().peak_bytes - opened.plan.baseline_bytes  # before the yardsticks take memory too
    raw_after, overlap_after = _yardsticks(opened)
    for _ in range(num_turns):
        raw_before, overlap_before, passes = raw_after, overlap_after, _time_passes(opened, passes_per_turn)
        raw_after, overlap_after = _yardsticks(opened)
        turn = StreamTurn((raw_before + raw_after) / 2, (overlap_before + overlap_after) / 2, *passes)
        turns.append(turn)
        yield turn
    yield StreamReport(
        turns=tuple(turns),
        bytes_per_pass=placement.streamed_bytes,
        num_streamed_layers=placement.num_disk_layers + placement.num_host_layers,
        num_resident_layers=placement.num_resident_layers,
        passes_per_turn=passes_per_turn,
        peak_bytes=peak_bytes,
        planned_bytes=placement.device_bytes + placement.host_bytes,
        bare_seconds_per_pass=(bare_pass_seconds(opened) + bare_pass_seconds(opened)) / 2,
    )


def _yardsticks(opened: OpenSession) -> tuple[float, float]:
    """The raw link's bytes per second, and the seconds of the free overlap."""
    return _raw_bytes_per_second(opened), free_overlap_seconds(opened)


def _raw_bytes_per_second(opened: OpenSession) -> float:
    """Weights per second over the emulated link, latency included, or as a bare reading loop gets them from files."""
    streamed = streamed_layouts(opened)
    num_bytes = sum(layout.payload_bytes for layout in streamed)
    return num_bytes / raw_link_seconds(opened, streamed)


def _time_passes(opened: OpenSession, num_passes: int) -> tuple[float, float, float]:
    """Bytes per second, seconds and waiting seconds per pass, from a full ring to a full ring."""
    engine = opened.session.engine
    engine.truncate(0)
    wait_seconds = 0.0
    num_rounds = 0
    with closing(engine.generate(PROMPT_TOKENS, SamplingParams(), np.random.default_rng(0))) as rounds:
        for event in rounds:
            if not isinstance(event, TokensAccepted):
                continue
            if num_rounds == 0:  # the prompt's own pass comes before
                wait_for_full_ring(opened)
                begun, bytes_before = time.perf_counter(), opened.link.bytes_copied
            else:
                wait_seconds += engine.target.last_pass.wait_seconds
            if num_rounds == num_passes:
                break
            num_rounds += 1
        wait_for_full_ring(opened)
        seconds = time.perf_counter() - begun
    return (opened.link.bytes_copied - bytes_before) / seconds, seconds / num_passes, wait_seconds / num_passes
