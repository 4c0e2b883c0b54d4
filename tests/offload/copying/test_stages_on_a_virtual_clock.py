"""Stages against the pipeline recurrence on a virtual clock: what the planner prices is what the engine does."""

import threading
from dataclasses import dataclass

import torch
from hypothesis import given, settings, strategies
from hypothesis.strategies import DrawFn

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import CopySource, HostSource, PendingCopy
from offload.copying.staged_engine import StagedCopyEngine
from offload.layer_streamer import LayerStreamer, ResidentLayer, StreamedLayer
from offload.memory import allocate_slab
from offload.units import PAGE_BYTES
from tests.support.fakes import ExclusiveLink, VirtualClock
from tests.support.pipeline_simulation import PipelineParts, simulate

SLAB_BYTES = 4 * PAGE_BYTES
SLAB = allocate_slab(SLAB_BYTES)
SECONDS = strategies.integers(0, 640).map(lambda ticks: ticks / 64)


def payload_bytes(index: int) -> int:
    """Of layer i; a quarter, a half and the whole of any of the layers are different numbers."""
    return 4 * (1000 + index)


@dataclass(slots=True)
class SteppedCopy:
    """Waiting for it lets the virtual time pass until all of it is on the link, and then until it has arrived."""

    copy: PendingCopy
    clock: VirtualClock
    is_queued: threading.Event

    @property
    def is_done(self) -> bool:
        return self.copy.is_done

    def wait(self, cancel: threading.Event | None = None) -> None:
        while not self.is_queued.is_set():
            self.clock.go_to_next()
        self.copy.wait(cancel)

    def abandon(self) -> None:
        self.copy.abandon()


class SteppedStages(StagedCopyEngine):
    """Moves on in whoever says that something has changed, instead of in a thread."""

    clock: VirtualClock

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        copy = super().start(source, slot)
        return SteppedCopy(copy, self.clock, copy._left_queue) if hasattr(copy, "_left_queue") else copy

    def _notice(self) -> None:
        self._changed.set()
        while self._changed.is_set() and self._lock.acquire(blocking=False):  # else from within a step
            try:
                self._changed.clear()
                self._move_on()
            finally:
                self._lock.release()

    def _begin_thread(self) -> threading.Thread:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        return thread


@dataclass(frozen=True, slots=True)
class Scenario:
    parts: PipelineParts
    pieces: int
    num_passes: int


@strategies.composite
def scenarios(draw: DrawFn) -> Scenario:
    """Up to ten layers, the first of which comes from disk, in 1, 2 or 4 pieces each; times whose sums are exact."""
    kinds = ["d", *draw(strategies.lists(strategies.sampled_from("dhr"), max_size=9))]
    pieces = draw(strategies.sampled_from([1, 2, 4]))
    seconds = strategies.lists(SECONDS, min_size=len(kinds), max_size=len(kinds))
    parts = PipelineParts(
        copy_seconds=tuple(None if kind == "r" else tau for kind, tau in zip(kinds, draw(seconds), strict=True)),
        compute_seconds=tuple(draw(seconds)),
        num_slots=draw(strategies.integers(2, 4)),
        between_passes_seconds=draw(SECONDS | strategies.just(30.0)),
        read_seconds=tuple(delta if kind == "d" else None for kind, delta in zip(kinds, draw(seconds), strict=True)),
        # With more stages than pieces in a pass, the model would hold a piece twice.
        num_stages=draw(strategies.integers(1, min(4, pieces * kinds.count("d")))),
        num_pieces=(pieces,) * len(kinds),
    )
    return Scenario(parts, pieces, num_passes=draw(strategies.integers(1, 4)))


@given(scenarios())
@settings(max_examples=150, deadline=None)
def test_stages_and_pieces_follow_the_pipeline_model_exactly(scenario: Scenario) -> None:
    parts, pieces = scenario.parts, scenario.pieces
    clock = VirtualClock()
    on_link, on_disk = {}, {}
    layers: list[StreamedLayer] = []
    for index, (tau, delta) in enumerate(zip(parts.copy_seconds, parts.read_seconds, strict=True)):
        payload = payload_bytes(index)
        if tau is None:
            layers.append(ResidentLayer(SLAB))
        elif delta is None:
            layers.append(HostSource(SLAB, payload))
            on_link[payload] = tau
        else:
            layers.append(LayerLayout((), (), SLAB_BYTES, payload))
            on_link[payload // pieces], on_disk[payload // pieces] = tau / pieces, delta / pieces
    SteppedStages.clock = clock
    stages = [allocate_slab(SLAB_BYTES // pieces) for _ in range(parts.num_stages)]
    happened = []
    with (
        SteppedStages(ExclusiveLink(clock, on_disk), ExclusiveLink(clock, on_link), stages) as engine,
        LayerStreamer(layers, engine, num_slots=parts.num_slots, clock=clock) as streamer,
    ):
        for number in range(scenario.num_passes):
            clock.compute(parts.between_passes_seconds if number else 0.0)
            streamer.begin_pass()
            times = []
            for index, seconds in enumerate(parts.compute_seconds):
                streamer.acquire(index)
                times.append((clock.now, clock.now + seconds))
                clock.compute(seconds)
                streamer.release(index)
            streamer.end_pass()
            happened.append(times)
        streamer.abort_pass()
    predicted = simulate(parts, scenario.num_passes).passes
    assert happened == [[(timing.compute_start, timing.computed) for timing in layers] for layers in predicted]
