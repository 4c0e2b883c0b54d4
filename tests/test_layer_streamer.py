"""The ring against the pipeline recurrence on a virtual clock, and against everything that can interrupt it."""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fakes import ExclusiveLink, InstantEngine, PoisoningEngine, VirtualClock

from offload import layer_streamer
from offload.copy_engine import CopyEngine, CopySource, DiskSource, HostSource, PendingCopy
from offload.emulated_link import EmulatedLink
from offload.errors import LinkError, PassCancelledError
from offload.host_copy_engine import HostCopyEngine
from offload.layer_layout import LayerLayout, SlabRange
from offload.layer_streamer import LayerStreamer, PassStatistics, ResidentLayer, SlotState, StreamedLayer
from offload.pipeline_model import PipelineParts, simulate
from offload.units import LinkSpec

SLAB_BYTES = 64


def numbered_slab(layer_index: int) -> torch.Tensor:
    return torch.full((SLAB_BYTES,), layer_index + 1, dtype=torch.uint8)


def make_layers(is_resident: Sequence[bool]) -> list[StreamedLayer]:
    """Layer i is full of the byte i + 1, and carries i + 1 weight bytes."""
    return [
        ResidentLayer(numbered_slab(index)) if resident else HostSource(numbered_slab(index), num_bytes=index + 1)
        for index, resident in enumerate(is_resident)
    ]


def check_slab(slab: torch.Tensor, layer_index: int) -> None:
    assert torch.equal(slab[:SLAB_BYTES], numbered_slab(layer_index)), f"layer {layer_index} was overwritten"


def run_pass(streamer: LayerStreamer, *, use: Callable[[int], None] = lambda index: None) -> PassStatistics:
    streamer.begin_pass()
    for index in range(streamer.num_layers):
        slab = streamer.acquire(index)
        check_slab(slab, index)
        use(index)
        check_slab(slab, index)
        streamer.release(index)
    return streamer.end_pass()


@dataclass(frozen=True, slots=True)
class Scenario:
    parts: PipelineParts
    num_passes: int

    @property
    def is_resident(self) -> list[bool]:
        return [seconds is None for seconds in self.parts.copy_seconds]


def random_scenario(seed: int) -> Scenario:
    rng = random.Random(seed)
    num_layers = rng.randint(1, 12)
    resident_share = rng.choice([0.0, 0.0, 0.3, 0.8, 1.0])
    copy_scale, compute_scale = rng.choice([(1, 1), (10, 1), (1, 10)])
    parts = PipelineParts(
        copy_seconds=tuple(
            None if rng.random() < resident_share else copy_scale * rng.random() for _ in range(num_layers)
        ),
        compute_seconds=tuple(rng.choice([0.0, compute_scale * rng.random()]) for _ in range(num_layers)),
        num_slots=rng.randint(2, 6),
        between_passes_seconds=rng.choice([0.0, rng.random(), 30.0]),
    )
    return Scenario(parts, num_passes=rng.randint(1, 5))


def drive(streamer: LayerStreamer, scenario: Scenario, clock: VirtualClock) -> list[list[tuple[float, float]]]:
    """(compute_start, computed) of every layer in every pass, as they really happened on the clock."""
    passes = []
    for pass_index in range(scenario.num_passes):
        if pass_index > 0:
            clock.compute(scenario.parts.between_passes_seconds)
        times: list[float] = []

        def use(index: int, times: list[float] = times) -> None:
            times.append(clock.now)
            clock.compute(scenario.parts.compute_seconds[index])
            times.append(clock.now)

        run_pass(streamer, use=use)
        passes.append(list(zip(times[::2], times[1::2], strict=True)))
    return passes


@pytest.mark.parametrize("seed", range(300))
def test_the_schedule_is_exactly_that_of_the_pipeline_model(seed: int) -> None:
    scenario = random_scenario(seed)
    parts = scenario.parts
    clock = VirtualClock()
    link = ExclusiveLink(clock, {i + 1: tau for i, tau in enumerate(parts.copy_seconds) if tau is not None})
    with LayerStreamer(
        make_layers(scenario.is_resident), PoisoningEngine(link), num_slots=parts.num_slots, clock=clock
    ) as streamer:
        happened = drive(streamer, scenario, clock)
    predicted = simulate(parts, scenario.num_passes).passes
    assert happened == [[(timing.compute_start, timing.computed) for timing in layers] for layers in predicted]
    copies = [
        (timing.copy_start, timing.copied)
        for layers in predicted
        for timing, resident in zip(layers, scenario.is_resident, strict=True)
        if not resident
    ]
    assert link.intervals[: len(copies)] == copies


@pytest.mark.parametrize("seed", range(60))
def test_an_emulated_link_follows_the_pipeline_model_too(seed: int) -> None:
    """With the real EmulatedLink, each layer's tau is latency + bytes / bandwidth."""
    link_spec = LinkSpec(bytes_per_second=7.0, latency_seconds=0.3)
    drawn = random_scenario(seed)
    copy_seconds = tuple(
        None if tau is None else link_spec.copy_seconds(index + 1) for index, tau in enumerate(drawn.parts.copy_seconds)
    )
    parts = PipelineParts(
        copy_seconds, drawn.parts.compute_seconds, drawn.parts.num_slots, drawn.parts.between_passes_seconds
    )
    scenario = Scenario(parts, drawn.num_passes)
    clock = VirtualClock()
    engine = EmulatedLink(InstantEngine(), link_spec, clock=clock, wait=clock.wait_until)
    with LayerStreamer(
        make_layers(scenario.is_resident), PoisoningEngine(engine), num_slots=parts.num_slots, clock=clock
    ) as streamer:
        happened = drive(streamer, scenario, clock)
    predicted = simulate(parts, scenario.num_passes).passes
    assert happened == [[(timing.compute_start, timing.computed) for timing in layers] for layers in predicted]


def test_statistics_tell_waiting_link_and_bytes_apart() -> None:
    """Three layers of 2 s on the link and 1 s of computation; the second pass finds two slots filled while drafting."""
    clock = VirtualClock()
    link = ExclusiveLink(clock, {1: 2.0, 2: 2.0, 4: 2.0})
    layers = make_layers([False, False, True, False])
    with LayerStreamer(layers, link, num_slots=2, clock=clock) as streamer:
        engine_busy = iter([6.0, 10.0])  # what the link itself would count at each end of a pass
        ends = []
        for _ in range(2):
            streamer.begin_pass()
            for index in range(4):
                streamer.acquire(index)
                clock.compute(1.0)
                if index == 3:
                    link.busy_seconds = next(engine_busy)
                streamer.release(index)
            ends.append(streamer.end_pass())
            clock.compute(10.0)
    first, second = ends
    assert (first.seconds, first.wait_seconds, first.link_busy_seconds) == (7.0, 3.0, 6.0)
    assert (second.seconds, second.wait_seconds, second.link_busy_seconds) == (4.0, 0.0, 4.0)
    assert (first.bytes_streamed, first.num_layers, first.num_streamed_layers) == (7, 4, 3)


@pytest.mark.parametrize(("num_layers", "num_slots"), [(1, 2), (1, 5), (2, 2), (3, 4), (5, 2), (7, 3)])
def test_any_number_of_layers_goes_through_any_ring(num_layers: int, num_slots: int) -> None:
    engine = PoisoningEngine(InstantEngine())
    with LayerStreamer(make_layers([False] * num_layers), engine, num_slots=num_slots) as streamer:
        assert len({slot.data_ptr() for slot in streamer.slots}) == num_slots
        for _ in range(4):
            assert run_pass(streamer).bytes_streamed == num_layers * (num_layers + 1) // 2


def test_all_resident_needs_no_slot_and_no_copy() -> None:
    engine = InstantEngine()
    with LayerStreamer(make_layers([True] * 3), engine, num_slots=0) as streamer:
        assert streamer.ring_bytes == 0 and streamer.slots == ()
        assert run_pass(streamer).bytes_streamed == 0
    assert engine.num_started == 0


def test_no_layers_make_an_empty_pass() -> None:
    with LayerStreamer([], InstantEngine(), num_slots=2) as streamer:
        assert run_pass(streamer).num_layers == 0


def test_copies_are_never_more_than_one_ring_ahead() -> None:
    engine = InstantEngine()
    with LayerStreamer(make_layers([False] * 10), engine, num_slots=3) as streamer:
        assert engine.num_started == 0
        streamer.prefetch()
        assert engine.num_started == 3
        streamer.begin_pass()
        for index in range(10):
            streamer.acquire(index)
            assert engine.num_started == index + 3
            streamer.release(index)
            assert engine.num_started == index + 4
        streamer.end_pass()
        streamer.begin_pass()
        assert engine.num_started == 13


def test_slots_show_what_they_are_doing() -> None:
    clock = VirtualClock()
    link = ExclusiveLink(clock, {1: 2.0, 2: 2.0, 3: 2.0})
    streamer = LayerStreamer(make_layers([False] * 3), link, num_slots=2, clock=clock)
    assert [status.state for status in streamer.slot_states] == [SlotState.FREE] * 2
    streamer.begin_pass()
    streamer.acquire(0)
    assert [(status.state, status.layer_index) for status in streamer.slot_states] == [
        (SlotState.IN_USE, 0),
        (SlotState.COPYING, 1),
    ]
    clock.compute(5.0)
    streamer.release(0)
    assert [(status.state, status.layer_index) for status in streamer.slot_states] == [
        (SlotState.COPYING, 2),
        (SlotState.READY, 1),
    ]
    streamer.close()
    assert streamer.slot_states == ()


def test_a_slot_used_after_its_release_is_poisoned() -> None:
    """This is what keeps the other tests honest: late reads see 0xFF, which is NaN, and not the old bytes."""
    clock = VirtualClock()
    engine = PoisoningEngine(ExclusiveLink(clock, {i: 1.0 for i in range(1, 4)}))
    with LayerStreamer(make_layers([False] * 3), engine, num_slots=2, clock=clock) as streamer:
        streamer.begin_pass()
        slab = streamer.acquire(0)
        engine.release(slab)
        assert torch.isnan(slab.view(torch.bfloat16)).all()


@pytest.mark.parametrize(
    ("misuse", "complaint"),
    [
        (lambda s: s.acquire(0), "no pass has begun"),
        (lambda s: s.end_pass(), "no pass has begun"),
        (lambda s: s.release(0), "layer 0 is not acquired"),
        (lambda s: (s.begin_pass(), s.begin_pass()), "the pass before has not ended"),
        (lambda s: (s.begin_pass(), s.acquire(1)), "layer 1 was asked for, but layer 0 of 3 is next"),
        (lambda s: (s.begin_pass(), s.acquire(0), s.acquire(0)), "layer 0 was asked for, but layer 1 of 3 is next"),
        (lambda s: (s.begin_pass(), s.acquire(0), s.release(0), s.release(0)), "layer 0 is not acquired"),
        (lambda s: (s.begin_pass(), s.acquire(0), s.acquire(1), s.acquire(2)), "every slot is in use"),
        (lambda s: (s.begin_pass(), s.acquire(0), s.release(0), s.end_pass()), "layer 1 was never asked for"),
        (lambda s: (s.begin_pass(), s.acquire(0), s.end_pass()), r"layers \[0\] are not released"),
        (lambda s: (s.close(), s.begin_pass()), "the streamer is closed"),
    ],
)
def test_misuse_is_a_runtime_error_that_says_which(misuse: Callable[[LayerStreamer], object], complaint: str) -> None:
    with LayerStreamer(make_layers([False] * 3), InstantEngine(), num_slots=2) as streamer:
        with pytest.raises(RuntimeError, match=complaint):
            misuse(streamer)
        streamer.abort_pass()


def test_a_ring_of_one_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="ring of 1 slots"):
        LayerStreamer(make_layers([False]), InstantEngine(), num_slots=1)


@pytest.mark.parametrize("has_released", [False, True])
@pytest.mark.parametrize("aborted_at", range(7))
@pytest.mark.parametrize("num_slots", [2, 3])
def test_after_an_abort_at_any_layer_the_next_passes_are_correct(
    num_slots: int, aborted_at: int, has_released: bool
) -> None:
    clock = VirtualClock()
    engine = PoisoningEngine(ExclusiveLink(clock, {i: 1.0 for i in range(1, 8)}))
    layers = make_layers([False, False, True, False, True, False, False])
    with LayerStreamer(layers, engine, num_slots=num_slots, clock=clock) as streamer:
        run_pass(streamer)
        streamer.begin_pass()
        for index in range(aborted_at + 1):
            check_slab(streamer.acquire(index), index)
            if index < aborted_at or has_released:
                streamer.release(index)
        streamer.abort_pass()
        assert [status.state for status in streamer.slot_states] == [SlotState.FREE] * num_slots
        streamer.abort_pass()
        for _ in range(3):
            run_pass(streamer)


@pytest.mark.parametrize("failing_copy", range(9))
def test_a_failed_prefetch_surfaces_at_its_own_layer_and_the_next_pass_tries_again(failing_copy: int) -> None:
    """Copies 0..4 belong to the first pass, 5..8 to the second, whichever pass they were started in."""
    engine = InstantEngine()
    engine.failing = {failing_copy}
    with LayerStreamer(make_layers([False] * 5), PoisoningEngine(engine), num_slots=2) as streamer:
        asked: list[int] = []
        with pytest.raises(LinkError) as caught:
            for _ in range(2):
                asked.clear()
                run_pass(streamer, use=asked.append)
        assert isinstance(caught.value.__cause__, OSError)
        assert len(asked) == failing_copy % 5
        streamer.abort_pass()
        for _ in range(2):
            run_pass(streamer)


class StuckEngine(InstantEngine):
    """Its copies never arrive: waiting for one ends only with a cancellation, or when it is abandoned."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def start(self, source: object, slot: torch.Tensor) -> "StuckCopy":
        return StuckCopy(self.waiting)


class StuckCopy:
    num_bytes = 1
    is_done = False

    def __init__(self, waiting: threading.Event) -> None:
        self._waiting = waiting
        self._is_abandoned = False

    def wait(self, cancel: threading.Event | None = None) -> None:
        if not self._is_abandoned:
            assert cancel is not None
            self._waiting.set()
            cancel.wait()
            raise PassCancelledError("cancelled")

    def abandon(self) -> None:
        self._is_abandoned = True


def test_cancel_from_another_thread_wakes_the_waiting_acquire() -> None:
    engine = StuckEngine()
    with LayerStreamer(make_layers([False] * 3), engine, num_slots=2) as streamer:
        streamer.begin_pass()

        def cancel_once_it_waits() -> None:
            engine.waiting.wait()
            streamer.cancel()

        canceller = threading.Thread(target=cancel_once_it_waits)
        canceller.start()
        with pytest.raises(PassCancelledError):
            streamer.acquire(0)
        canceller.join()
        streamer.abort_pass()


class HeldEngine(InstantEngine):
    """Its copies go on writing, abandoned or not, until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def start(self, source: CopySource, slot: torch.Tensor) -> "HeldCopy":
        return HeldCopy(self.let_go, super().start(source, slot))


class HeldCopy:
    def __init__(self, let_go: threading.Event, copy: PendingCopy) -> None:
        self._let_go = let_go
        self._copy = copy
        self.num_bytes = copy.num_bytes

    @property
    def is_done(self) -> bool:
        return self._let_go.is_set()

    def wait(self, cancel: threading.Event | None = None) -> None:
        while not self._let_go.wait(0.001):
            if cancel is not None and cancel.is_set():
                raise PassCancelledError("cancelled")
        self._copy.wait()

    def abandon(self) -> None:
        self._copy.abandon()


def test_a_copy_that_does_not_end_holds_nobody_up_for_good() -> None:
    """A disk that has stopped to answer: every pass is refused with a sentence, until it answers again."""
    engine = HeldEngine()
    with LayerStreamer(make_layers([False] * 3), engine, num_slots=2, patience_seconds=0.02) as streamer:
        streamer.begin_pass()
        streamer.cancel()
        with pytest.raises(PassCancelledError):
            streamer.acquire(0)
        with pytest.raises(LinkError, match=r"0.02 seconds.*disk"):
            streamer.abort_pass()
        for _ in range(2):
            with pytest.raises(LinkError, match="not wanted any more"):
                streamer.begin_pass()
        engine.let_go.set()
        run_pass(streamer)
        run_pass(streamer)


def test_slots_that_are_still_written_to_outlive_the_ring() -> None:
    engine = HeldEngine()
    streamer = LayerStreamer(make_layers([False] * 3), engine, num_slots=2, patience_seconds=0.02)
    slots = streamer.slots
    streamer.begin_pass()
    streamer.close()
    assert streamer.slots == ()
    assert all(any(kept is slot for kept in layer_streamer._never_freed) for slot in slots)
    layer_streamer._never_freed.clear()
    engine.let_go.set()


def test_a_cancelled_pass_fails_at_its_next_layer_even_if_that_is_resident() -> None:
    with LayerStreamer(make_layers([True] * 3), InstantEngine(), num_slots=0) as streamer:
        streamer.begin_pass()
        streamer.acquire(0)
        streamer.cancel()
        with pytest.raises(PassCancelledError, match="before layer 1"):
            streamer.acquire(1)
        streamer.abort_pass()
        run_pass(streamer)


def test_a_cancellation_outside_a_pass_or_too_late_for_it_is_forgotten() -> None:
    with LayerStreamer(make_layers([False] * 3), InstantEngine(), num_slots=2) as streamer:
        streamer.cancel()
        run_pass(streamer)
        run_pass(streamer, use=lambda index: streamer.cancel() if index == 2 else None)
        run_pass(streamer)


def write_layers(folder: Path, rng: random.Random, *, num_layers: int) -> tuple[list[DiskSource], list[bytes]]:
    """Disk layers of one or two ranges in a file without any alignment, and the bytes that each must show."""
    content = rng.randbytes(num_layers * 40_000 + 1234)
    path = folder / "weights.bin"
    path.write_bytes(content)
    sources, expected = [], []
    for index in range(num_layers):
        begin = 777 + index * 40_000
        pieces = [(begin, 20_000), (begin + 30_000, 9_000)][: rng.randint(1, 2)]
        ranges, cursor = [], 0
        for file_offset, num_bytes in pieces:
            slab_offset = cursor + file_offset % 4096
            ranges.append(SlabRange(path, file_offset, num_bytes, slab_offset))
            cursor = -(-(slab_offset + num_bytes) // 4096) * 4096
        payload = sum(piece.num_bytes for piece in ranges)
        sources.append(DiskSource(LayerLayout((), tuple(ranges), cursor, payload)))
        expected.append(b"".join(content[offset : offset + size] for offset, size in pieces))
    return sources, expected


def layer_bytes(source: DiskSource, slab: torch.Tensor) -> bytes:
    return b"".join(
        slab[piece.slab_offset : piece.slab_offset + piece.num_bytes].numpy().tobytes()
        for piece in source.layout.ranges
    )


@pytest.mark.parametrize("direct", [None, False])
def test_real_files_arrive_as_they_are(tmp_path: Path, direct: bool | None) -> None:
    sources, expected = write_layers(tmp_path, random.Random(0), num_layers=9)
    with (
        HostCopyEngine(num_threads=3, block_bytes=8192, direct=direct) as engine,
        LayerStreamer(sources, PoisoningEngine(engine), num_slots=3) as streamer,
    ):
        for _ in range(5):
            streamer.begin_pass()
            for index, source in enumerate(sources):
                assert layer_bytes(source, streamer.acquire(index)) == expected[index]
                streamer.release(index)
            assert streamer.end_pass().bytes_streamed == sum(map(len, expected))


def soak(streamer: LayerStreamer, rng: random.Random, check: Callable[[int, torch.Tensor], None]) -> int:
    """Short passes, some cancelled from another thread, some aborted; how many were complete."""
    num_complete = 0
    for _ in range(200):
        streamer.begin_pass()
        canceller = threading.Thread(target=streamer.cancel)
        started_at, aborted_at = rng.randint(0, 20), rng.randint(0, 40)
        try:
            for index in range(streamer.num_layers):
                if index == started_at:
                    canceller.start()
                if index == aborted_at:
                    raise PassCancelledError("by the caller")
                check(index, streamer.acquire(index))
                streamer.release(index)
            streamer.end_pass()
            num_complete += 1
        except PassCancelledError:
            streamer.abort_pass()
        if canceller.ident is not None:
            canceller.join()
    return num_complete


def test_a_soak_of_cancelled_passes_leaves_nothing_behind(tmp_path: Path) -> None:
    threads_before = threading.active_count()
    rng = random.Random(9)
    sources, expected = write_layers(tmp_path, rng, num_layers=6)

    def check(index: int, slab: torch.Tensor) -> None:
        assert layer_bytes(sources[index], slab) == expected[index]

    base = HostCopyEngine(num_threads=3, block_bytes=8192, direct=False)
    engine: CopyEngine = EmulatedLink(PoisoningEngine(base), LinkSpec(bytes_per_second=1e9, latency_seconds=1e-5))
    with LayerStreamer(sources, engine, num_slots=2) as streamer:
        num_complete = soak(streamer, rng, check)
        assert 0 < num_complete < 200
        streamer.begin_pass()
        for index in range(streamer.num_layers):
            check(index, streamer.acquire(index))
            streamer.release(index)
        streamer.end_pass()
    engine.close()
    assert threading.active_count() == threads_before
    assert not base._queue and base._num_in_flight == 0
