"""Times the parts of a round one by one: over layers that are there already, copies alone, medians.

Shared by the benchmarks and the calibration, so that they mean the same.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from offload.layer_streamer import LayerStreamer, ResidentLayer
from offload.pass_statistics import PassStatistics
from runtime.engine.loading import OpenSession


def median_seconds(
    action: Callable[[], object],
    num_repeats: int,
    *,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> float:
    """Return the median over the repeats, the first one left out where there are several."""
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


@contextmanager
def layers_of_zeros(opened: OpenSession) -> Iterator[None]:
    """Let the target find its layers there already, all in one slab of zeros, as long as the context lasts."""
    plan = opened.plan
    # Written, or every page would be the same page of zeros, which no processor ever reads from memory.
    zeros = torch.empty(max(plan.residency.layer_bytes), dtype=torch.uint8, device=plan.device).fill_(0)
    layers = [ResidentLayer(zeros)] * opened.streamer.num_layers
    with (
        LayerStreamer(layers, opened.reader, num_slots=2) as ring,
        opened.session.engine.target.streaming_from(ring),
    ):
        yield


def run_copies(opened: OpenSession) -> PassStatistics:
    """Run a pass's copies through the session's own ring, with nothing computing."""
    streamer = opened.streamer
    streamer.begin_pass()
    for index in range(streamer.num_layers):
        streamer.acquire(index)
        streamer.release(index)
    return streamer.end_pass()


def wait_for_full_ring(opened: OpenSession) -> None:
    """Wait until every slot holds a layer, so that nothing crosses the link any more."""
    while not opened.streamer.is_full:
        time.sleep(0.0005)
