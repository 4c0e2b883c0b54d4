"""The ring against the pipeline recurrence on a virtual clock, its order, its states and its misuse."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings, strategies
from hypothesis.strategies import DrawFn

from offload.copying.emulated_link import EmulatedLink
from offload.layer_streamer import LayerStreamer
from offload.pass_statistics import PassStatistics
from offload.units import LinkSpeed
from tests.support.fakes import ExclusiveLink, InstantEngine, PoisoningEngine, VirtualClock
from tests.support.numbered_layers import make_layers, run_pass
from tests.support.pipeline_simulation import PipelineParts, simulate


@dataclass(frozen=True, slots=True)
class Scenario:
    parts: PipelineParts
    num_passes: int

    @property
    def is_resident(self) -> list[bool]:
        return [seconds is None for seconds in self.parts.copy_seconds]


SECONDS = strategies.integers(0, 640).map(lambda ticks: ticks / 64)


@strategies.composite
def scenarios(draw: DrawFn) -> Scenario:
    """Any pipeline of up to 12 layers; fast links and slow ones, and times whose sums are exact."""
    copy_seconds = draw(strategies.lists(strategies.none() | SECONDS, min_size=1, max_size=12))
    num_layers = len(copy_seconds)
    parts = PipelineParts(
        copy_seconds=tuple(copy_seconds),
        compute_seconds=tuple(draw(strategies.lists(SECONDS, min_size=num_layers, max_size=num_layers))),
        num_slots=draw(strategies.integers(2, 6)),
        between_passes_seconds=draw(SECONDS | strategies.just(30.0)),
    )
    return Scenario(parts, num_passes=draw(strategies.integers(1, 5)))


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


@given(scenarios())
@settings(max_examples=300)
def test_the_schedule_is_exactly_that_of_the_pipeline_model(scenario: Scenario) -> None:
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


@given(scenarios())
@settings(max_examples=60)
def test_an_emulated_link_follows_the_pipeline_model_too(drawn: Scenario) -> None:
    """With the real EmulatedLink, each layer's tau is latency + bytes / bandwidth."""
    link_spec = LinkSpeed(bytes_per_second=7.0, latency_seconds=0.3)
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
    assert first == PassStatistics(
        seconds=7.0,
        wait_seconds=3.0,
        link_busy_seconds=6.0,
        bytes_streamed=7,
        num_layers=4,
        num_streamed_layers=3,
        compute_seconds=4.0,
    )
    assert (second.seconds, second.wait_seconds, second.link_busy_seconds) == (4.0, 0.0, 4.0)


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


def test_slots_show_what_they_hold_and_whether_all_of_it_has_arrived() -> None:
    clock = VirtualClock()
    link = ExclusiveLink(clock, {1: 2.0, 2: 2.0, 3: 2.0})
    streamer = LayerStreamer(make_layers([False] * 3), link, num_slots=2, clock=clock)
    assert (streamer.layers_in_slots, streamer.is_full) == ((), False)
    streamer.begin_pass()
    streamer.acquire(0)
    clock.compute(5.0)
    assert (streamer.layers_in_slots, streamer.is_full) == ((0, 1), False)  # one is in use
    streamer.release(0)
    assert (streamer.layers_in_slots, streamer.is_full) == ((2, 1), False)  # one is on its way
    clock.compute(5.0)
    assert streamer.is_full
    streamer.close()
    assert streamer.layers_in_slots == ()


def test_the_engine_is_told_of_every_release() -> None:
    """Nothing else keeps an accelerator's next copy behind the computation."""
    engine = InstantEngine()
    with LayerStreamer(make_layers([False, True, False, False]), engine, num_slots=2) as streamer:
        run_pass(streamer)
        assert engine.num_released == 3
        run_pass(streamer)
        assert engine.num_released == 6


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
