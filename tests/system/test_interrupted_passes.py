"""Whatever ends a pass early, an abort, a copy that fails or hangs or a cancellation, the passes after it are right."""

import threading

import pytest
import torch

from offload import layer_streamer
from offload.copying.copy_engine import CopySource, PendingCopy
from offload.errors import LinkError, PassCancelledError
from offload.layer_streamer import LayerStreamer
from tests.support.fakes import ExclusiveLink, InstantEngine, PoisoningEngine, VirtualClock
from tests.support.numbered_layers import check_slab, make_layers, run_pass


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
        assert streamer.layers_in_slots == ()
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


@pytest.mark.parametrize("is_resident", [[False] * 4, [True] * 4, [True, False, False, True]])
def test_the_layers_that_are_done_are_counted_in_a_pass_and_only_there(is_resident: list[bool]) -> None:
    with LayerStreamer(make_layers(is_resident), InstantEngine(), num_slots=2) as streamer:
        assert streamer.num_done_layers is None
        for _ in range(2):
            done: list[int | None] = []
            run_pass(streamer, use=lambda _, done=done: done.append(streamer.num_done_layers))
            assert done == [0, 1, 2, 3]
            assert streamer.num_done_layers is None
        streamer.begin_pass()
        streamer.acquire(0)
        streamer.abort_pass()
        assert streamer.num_done_layers is None
