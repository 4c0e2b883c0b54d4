"""How close plain decoding comes to the raw link, and whether memory is what the accounting says.

Alternates, in one run, the raw link (sequential O_DIRECT reads of the same layers with the same blocks and threads)
and whole passes of the real round loop without a draft; a turn is held against the raw link right before and right
after it, since a disk is never twice the same. The first pass of each turn is not timed: it starts from a ring that
filled while nothing computed. Measures; prints nothing.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from offload.copy_engine import DiskSource
from offload.layer_layout import SlabRange
from offload.link_probe import measure_raw_link
from offload.memory_budget import process_memory
from runtime.assembly import OpenSession
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
    """What the accounting says it would hold."""

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
            "peak_over_planned": self.peak_bytes / self.planned_bytes,
            **{**asdict(self), "turns": [{**asdict(turn), "ratio": turn.ratio} for turn in self.turns]},
        }


def run_stream_benchmark(
    opened: OpenSession, *, num_turns: int = 5, passes_per_turn: int = 3
) -> Iterator[StreamTurn | StreamReport]:
    """Yield each turn as it ends, and last the report. Raises OptionError if nothing streams from disk."""
    sources = [layer for layer in opened.streamer.layers if isinstance(layer, DiskSource)]
    if not sources:
        raise OptionError("no layer streams from disk here; give a smaller --device-memory, or a larger --target")
    ranges = [piece for source in sources for piece in source.layout.ranges]
    turns = []
    raw_after = _raw_bytes_per_second(opened, ranges)
    for _ in range(num_turns):
        raw_before, passes = raw_after, _time_passes(opened, passes_per_turn)
        raw_after = _raw_bytes_per_second(opened, ranges)
        turn = StreamTurn((raw_before + raw_after) / 2, *passes)
        turns.append(turn)
        yield turn
    accounting = opened.accounting
    yield StreamReport(
        turns=tuple(turns),
        bytes_per_pass=accounting.streamed_bytes_per_pass,
        num_streamed_layers=accounting.num_disk_layers + accounting.num_host_layers,
        num_resident_layers=accounting.num_resident_layers,
        passes_per_turn=passes_per_turn,
        peak_bytes=process_memory().peak_bytes - accounting.baseline_bytes,
        planned_bytes=accounting.device_bytes + accounting.host_bytes,
    )


def _raw_bytes_per_second(opened: OpenSession, ranges: Sequence[SlabRange]) -> float:
    reader = opened.reader
    return measure_raw_link(ranges, block_bytes=reader.block_bytes, num_threads=reader.num_threads).bytes_per_second


def _time_passes(opened: OpenSession, num_passes: int) -> tuple[float, float, float]:
    """Bytes per second, seconds and waiting seconds per pass, of `num_passes` passes behind an untimed one."""
    engine = opened.session.engine
    engine.truncate(0)
    marks: list[tuple[float, int]] = []
    wait_seconds = 0.0
    with closing(engine.generate(PROMPT_TOKENS, SamplingParams(), np.random.default_rng(0))) as rounds:
        for event in rounds:
            if not isinstance(event, TokensAccepted):
                continue
            wait_seconds += engine.target.last_pass.wait_seconds if marks else 0.0
            marks.append((time.perf_counter(), opened.link.bytes_copied))
            if len(marks) > num_passes:
                break
    (start, start_bytes), (end, end_bytes) = marks[0], marks[-1]
    seconds = end - start
    return (end_bytes - start_bytes) / seconds, seconds / num_passes, wait_seconds / num_passes
