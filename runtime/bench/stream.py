"""How close plain decoding comes to the raw link, and whether memory is what was planned.

Alternates, in one run, the raw link and whole passes of the real round loop without a draft. A turn begins and ends
with a full ring, so that exactly its passes' bytes cross the link, and is held against the raw link right before and
right after it, since a disk is never twice the same. The yardsticks share no streaming code: a raw link (sequential
O_DIRECT reads of the same layers with the same blocks and threads, bare copies to an accelerator, an emulated link's
own rate); a bare loop that reads a layer, multiplies by its matrices and reads the next, as anybody could write in an
hour; and reading and multiplying everything at once with neither waiting for the other, which nothing that shares cores
and memory with its disk can beat.
"""

import statistics
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.accelerator_engine import DEFAULT_CHUNK_BYTES
from offload.copying.copy_engine import HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.rates import measure_raw_link
from offload.copying.staged_engine import StagedCopyEngine
from offload.formats.weight_format import EXACT, DenseWeight, StoredWeight, UpcastScratch
from offload.layer_streamer import ResidentLayer
from offload.memory import peak_memory_bytes
from runtime.bench.figures import Report
from runtime.calibration.timing import wait_for_full_ring
from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import TokensAccepted

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
        """Achieved over raw bytes per second."""
        return self.bytes_per_second / self.raw_bytes_per_second

    @property
    def seconds_over_free_overlap(self) -> float:
        """Measured pass over the free overlap: 1 is perfect."""
        return self.seconds_per_pass / self.free_overlap_seconds


@dataclass(frozen=True, slots=True)
class StreamReport(Report):
    """What `overstory bench stream` ends with."""

    turns: tuple[StreamTurn, ...]
    bytes_per_pass: int
    """Weights that cross the link in every pass."""
    num_streamed_layers: int
    num_resident_layers: int
    passes_per_turn: int
    """Timed passes in each turn."""
    peak_bytes: int
    """The process's largest resident size, less what it held before loading."""
    planned_bytes: int
    """What was planned that it would hold."""
    bare_seconds_per_pass: float
    """A loop that reads a layer's bytes, multiplies by its matrices, then reads the next; mean of two, at the end."""

    def to_record(self) -> dict[str, Any]:
        """Return the medians over the turns, and all figures."""
        names = ("ratio", "bytes_per_second", "raw_bytes_per_second", "seconds_per_pass", "seconds_over_free_overlap")
        medians = {name: statistics.median(getattr(turn, name) for turn in self.turns) for name in names}
        return {
            **medians,
            "seconds_over_bare_loop": medians["seconds_per_pass"] / self.bare_seconds_per_pass,
            "peak_over_planned": self.peak_bytes / self.planned_bytes,
            **Report.to_record(self),
        }


def run_stream(
    opened: OpenSession, *, num_turns: int = 6, passes_per_turn: int = 2
) -> Generator[str, None, StreamReport]:
    """Measure turns of passes between looks at the yardsticks. Raises OptionError if nothing streams."""
    check_streaming(opened)
    if isinstance(opened.link, StagedCopyEngine):
        raise OptionError("layers stream over two links here; give --host-memory 0 or enough of it, or use bench round")
    turns = []
    placement = opened.placement
    _time_passes(opened, passes_per_turn)
    peak_bytes = peak_memory_bytes() - opened.plan.baseline_bytes  # before the yardsticks take memory too
    raw_after, overlap_after = _yardsticks(opened)
    for _ in range(num_turns):
        raw_before, overlap_before, passes = raw_after, overlap_after, _time_passes(opened, passes_per_turn)
        raw_after, overlap_after = _yardsticks(opened)
        turn = StreamTurn((raw_before + raw_after) / 2, (overlap_before + overlap_after) / 2, *passes)
        turns.append(turn)
        over_free_overlap = turn.seconds_over_free_overlap
        yield f"turn: {100 * turn.ratio:.1f} % of the raw link, {over_free_overlap:.3f} of a free overlap's time"
    return StreamReport(
        turns=tuple(turns),
        bytes_per_pass=placement.streamed_bytes,
        num_streamed_layers=placement.num_disk_layers + placement.num_host_layers,
        num_resident_layers=placement.num_resident_layers,
        passes_per_turn=passes_per_turn,
        peak_bytes=peak_bytes,
        planned_bytes=placement.device_bytes + placement.host_bytes,
        bare_seconds_per_pass=(bare_pass_seconds(opened) + bare_pass_seconds(opened)) / 2,
    )


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


def _yardsticks(opened: OpenSession) -> tuple[float, float]:
    """The raw link's bytes per second, latency included, and the seconds of the free overlap."""
    streamed = streamed_layouts(opened)
    num_bytes = sum(layout.payload_bytes for layout in streamed)
    return num_bytes / raw_link_seconds(opened, streamed), free_overlap_seconds(opened)


def check_streaming(opened: OpenSession) -> None:
    """Raise OptionError if every layer stays on the device, so that there is nothing to measure."""
    if opened.streamer.num_streamed_layers == 0:
        raise OptionError("no layer streams here; give a smaller --device-memory, or a larger --target")


def streamed_layouts(opened: OpenSession) -> list[LayerLayout]:
    """Return the layouts of the layers that cross the link in every pass."""
    layouts = opened.plan.target.slabs.layouts
    pairs = zip(layouts, opened.streamer.layers, strict=True)
    return [layout for layout, layer in pairs if not isinstance(layer, ResidentLayer)]


def raw_link_seconds(opened: OpenSession, layouts: Sequence[LayerLayout]) -> float:
    """Return the seconds that the link alone needs for these layers: an emulated one's by its figures, else measured.

    A bare loop copies layers that wait in host memory to an accelerator, and reads the others from their files.
    """
    if isinstance(opened.link, EmulatedLink):
        return sum(opened.link.link.copy_seconds(layout.payload_bytes) for layout in layouts)
    slabs = _host_slabs(opened, layouts)
    if slabs and opened.plan.device.type != "cpu":
        return _copy_seconds(slabs, opened.plan.device)
    ranges = [piece for layout in layouts for piece in layout.ranges]
    reader = opened.reader
    return measure_raw_link(ranges, block_bytes=reader.block_bytes, num_threads=reader.num_threads).seconds


def _host_slabs(opened: OpenSession, layouts: Sequence[LayerLayout]) -> list[torch.Tensor]:
    """What these layers are copied from, if all of them wait in host memory; else nothing."""
    sources = dict(zip(map(id, opened.plan.target.slabs.layouts), opened.streamer.layers, strict=True))
    wanted = [sources[id(layout)] for layout in layouts]
    slabs = [source.slab for source in wanted if isinstance(source, HostSource)]
    return slabs if len(slabs) == len(wanted) else []


def _copy_seconds(slabs: Sequence[torch.Tensor], device: torch.device) -> float:
    """Seconds of copying them one after another to one place on the device, beside whatever else it does."""
    place = torch.empty(max(map(torch.Tensor.numel, slabs)), dtype=torch.uint8, device=device)
    stream = torch.Stream(device)
    begun = time.perf_counter()
    with stream:
        for slab in slabs:
            for begin in range(0, slab.numel(), DEFAULT_CHUNK_BYTES):  # a driver takes no copy from two registrations
                piece = slab[begin : begin + DEFAULT_CHUNK_BYTES]
                place[begin : begin + piece.numel()].copy_(piece, non_blocking=True)
    stream.synchronize()
    return time.perf_counter() - begun


def bare_pass_seconds(opened: OpenSession) -> float:
    """Return the seconds of reading and multiplying in turn, layer after layer; residents are only multiplied."""
    streamed = set(map(id, streamed_layouts(opened)))
    products = _LayerProducts(opened)
    seconds = 0.0
    for index, layout in enumerate(opened.plan.target.slabs.layouts):
        if id(layout) in streamed:
            seconds += raw_link_seconds(opened, [layout])
        seconds += products.seconds(index)
    return seconds


def free_overlap_seconds(opened: OpenSession) -> float:
    """Return the seconds of reading every streamed layer while every layer's products are done, neither waiting.

    Where a disk and the products share cores and memory, no streaming can be faster. An emulated link takes no part of
    either: there it is the longer of the two.
    """
    products, num_layers = _LayerProducts(opened), opened.streamer.num_layers
    streamed = streamed_layouts(opened)
    if isinstance(opened.link, EmulatedLink):
        return max(raw_link_seconds(opened, streamed), sum(map(products.seconds, range(num_layers))))
    with ThreadPoolExecutor(1) as beside:
        begun = time.perf_counter()
        reading = beside.submit(raw_link_seconds, opened, streamed)
        for index in range(num_layers):
            products.seconds(index)
        reading.result()
        return time.perf_counter() - begun


class _LayerProducts:
    """One row times every matrix of a layer, with the model's own kernels, on zeros that lie in memory once."""

    def __init__(self, opened: OpenSession) -> None:
        plan = opened.plan
        self._plan = plan
        self._slab = torch.zeros(max(plan.residency.layer_bytes), dtype=torch.uint8, device=plan.device)
        self._scratch = UpcastScratch(plan.dtype, plan.device)

    def seconds(self, index: int) -> float:
        """Do layer `index`'s products; the seconds that they took."""
        plan, matrices = self._plan, self._matrices(index)
        begun = time.perf_counter()
        for matrix, num_columns in matrices:
            matrix.linear(torch.ones(1, num_columns, dtype=plan.dtype, device=plan.device), None, self._scratch)
        if plan.device.type != "cpu":
            torch.accelerator.current_stream(plan.device).synchronize()
        return time.perf_counter() - begun

    def _matrices(self, index: int) -> list[tuple[StoredWeight, int]]:
        """The layer's matrices as the model would bind them, and the columns of each."""
        target = self._plan.target
        views, formats = target.slabs.views(index, self._slab), target.formats[index]
        found: list[tuple[StoredWeight, int]] = []
        for name, shape in target.linears[index].items():
            if name in formats:
                parts = {suffix: views[f"{name}{suffix}"] for suffix in formats[name].part_suffixes}
                found.append((formats[name].bind(parts, EXACT), shape[1]))
            else:
                found.append((DenseWeight(views[name]), shape[1]))
        return found
