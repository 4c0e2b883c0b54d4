"""How close plain decoding comes to the raw link, and whether memory is what was planned.

Turns of passes of the real round loop, each from a full ring to a full ring, alternate with two yardsticks that do
without the ring, since a disk is never twice the same: the raw link (sequential O_DIRECT reads with the same blocks and
threads, bare copies to an accelerator, an emulated link's own rate), and the same beside a pass over layers that are
there already, neither waiting for the other, which nothing that shares cores and memory with its disk can beat.
"""

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import torch

from offload.copying.copy_engine import HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.rates import measure_raw_link
from offload.copying.staged_engine import StagedCopyEngine
from offload.layer_streamer import ResidentLayer
from offload.memory import peak_memory_bytes
from runtime.calibration.probes import layers_of_zeros, wait_for_full_ring
from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.errors import OptionError
from runtime.events import Round
from runtime.model.streamed_model import chain_input

PROMPT_TOKENS = (1, 2, 3, 4)
"""Any tokens do: what they cost does not depend on what they mean."""


def run_stream(
    opened: OpenSession, *, num_turns: int = 6, passes_per_turn: int = 2
) -> Generator[str, None, dict[str, Any]]:
    """Measure turns of passes between looks at the yardsticks; return medians over the turns, and all figures.

    Raises OptionError if nothing streams.
    """
    check_streaming(opened)
    if isinstance(opened.link, StagedCopyEngine):
        raise OptionError("layers stream over two links here; give --host-memory 0 or enough of it, or use bench round")
    turns = []
    placement = opened.placement
    _time_passes(opened, passes_per_turn)
    peak_bytes = peak_memory_bytes() - opened.plan.baseline_bytes  # before the yardsticks take memory too
    after = _yardsticks(opened)
    for _ in range(num_turns):
        before, passes = after, _time_passes(opened, passes_per_turn)
        after = _yardsticks(opened)
        raw_rate, overlap_seconds = map(statistics.mean, zip(before, after, strict=True))
        turn = {
            "ratio": passes["bytes_per_second"] / raw_rate,
            "seconds_over_free_overlap": passes["seconds_per_pass"] / overlap_seconds,  # 1 is perfect
            "raw_bytes_per_second": raw_rate,
            "free_overlap_seconds": overlap_seconds,
            **passes,
        }
        turns.append(turn)
        share, over_overlap = 100 * turn["ratio"], turn["seconds_over_free_overlap"]
        yield f"turn: {share:.1f} % of the raw link, {over_overlap:.3f} of a free overlap's time"
    names = ("ratio", "bytes_per_second", "raw_bytes_per_second", "seconds_per_pass", "seconds_over_free_overlap")
    planned_bytes = placement.device_bytes + placement.host_bytes
    return {
        **{name: statistics.median(turn[name] for turn in turns) for name in names},
        "peak_over_planned": peak_bytes / planned_bytes,
        "turns": turns,
        "bytes_per_pass": placement.streamed_bytes,
        "num_streamed_layers": placement.num_disk_layers + placement.num_host_layers,
        "num_resident_layers": placement.num_resident_layers,
        "passes_per_turn": passes_per_turn,
        "peak_bytes": peak_bytes,  # the process's largest resident size, less what it held before loading
        "planned_bytes": planned_bytes,
    }


def _time_passes(opened: OpenSession, num_passes: int) -> dict[str, float]:
    """Time passes from a full ring to a full ring."""
    engine = opened.session.engine
    engine.truncate(0)
    with closing(engine.generate(PROMPT_TOKENS, SamplingParams(), np.random.default_rng(0))) as events:
        rounds = (event for event in events if isinstance(event, Round))
        next(rounds)  # the prompt's own pass comes before
        wait_for_full_ring(opened)
        begun, bytes_before = time.perf_counter(), opened.link.bytes_copied
        waits = [next(rounds).pass_statistics.wait_seconds for _ in range(num_passes)]
        wait_for_full_ring(opened)
        seconds = time.perf_counter() - begun
    return {
        "bytes_per_second": (opened.link.bytes_copied - bytes_before) / seconds,
        "seconds_per_pass": seconds / num_passes,
        # Waiting for bytes; where it is near zero the processor is the bound, not the link.
        "wait_seconds_per_pass": statistics.mean(waits),
    }


def _yardsticks(opened: OpenSession) -> tuple[float, float]:
    """Return the raw link's bytes per second, latency included, and the seconds of the free overlap."""
    raw_rate = opened.placement.streamed_bytes / raw_link_seconds(opened)
    target = opened.session.engine.target

    def run_pass() -> None:
        target.cache.truncate(0)
        target.run_pass(chain_input(PROMPT_TOKENS[:1], num_cached=0))

    opened.session.engine.truncate(0)
    with layers_of_zeros(opened):
        run_pass()
        overlap_seconds = free_overlap_seconds(opened, run_pass)
    target.cache.truncate(0)
    return raw_rate, overlap_seconds


def check_streaming(opened: OpenSession) -> None:
    """Raise OptionError if every layer stays on the device, so that there is nothing to measure."""
    if opened.streamer.num_streamed_layers == 0:
        raise OptionError("no layer streams here; give a smaller --device-memory, or a larger --target")


def raw_link_seconds(opened: OpenSession) -> float:
    """Return the seconds that the link alone needs for the streamed layers: an emulated one's by its figures.

    A bare loop copies layers that wait in host memory to an accelerator, and reads the others from their files.
    """
    pairs = zip(opened.plan.target.layouts, opened.streamer.layers, strict=True)
    layouts = [layout for layout, layer in pairs if not isinstance(layer, ResidentLayer)]
    if isinstance(opened.link, EmulatedLink):
        return sum(opened.link.link.copy_seconds(layout.payload_bytes) for layout in layouts)
    slabs = [layer.slab for layer in opened.streamer.layers if isinstance(layer, HostSource)]
    if len(slabs) == len(layouts) and opened.plan.device.type != "cpu":
        return _copy_seconds(slabs, opened.plan.device)
    ranges = [piece for layout in layouts for piece in layout.ranges]
    reader = opened.reader
    return measure_raw_link(ranges, block_bytes=reader.block_bytes, num_threads=reader.num_threads).seconds


def _copy_seconds(slabs: Sequence[torch.Tensor], device: torch.device) -> float:
    """Return the seconds of copying them one after another to one place on the device, beside what else it does."""
    place = torch.empty(max(map(torch.Tensor.numel, slabs)), dtype=torch.uint8, device=device)
    stream = torch.Stream(device)
    begun = time.perf_counter()
    with stream:
        for slab in slabs:
            place[: slab.numel()].copy_(slab, non_blocking=True)
    stream.synchronize()
    return time.perf_counter() - begun


def free_overlap_seconds(opened: OpenSession, run_pass: Callable[[], object]) -> float:
    """Return the seconds until every streamed layer is read and `run_pass`, which waits for no layer, has computed.

    Where a disk and the computation share cores and memory, no streaming can be faster. An emulated link takes no part
    of either: there it is the longer of the two.
    """
    with ThreadPoolExecutor(1) as beside:
        begun = time.perf_counter()
        reading = beside.submit(raw_link_seconds, opened)
        run_pass()
        link_seconds = reading.result()
        return max(link_seconds, time.perf_counter() - begun)
