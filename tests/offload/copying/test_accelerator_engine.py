"""Copies and kernels meet only through events: shown on a device that runs its streams in the worst order allowed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import Mock

import pytest
import torch

from offload.checkpoint.layer_layout import LayerLayout, SlabMove
from offload.copying import accelerator_engine
from offload.copying.accelerator_engine import DEFAULT_CHUNK_BYTES, Accelerator, AcceleratorCopyEngine
from offload.copying.copy_engine import HostSource
from offload.errors import LinkError, PassCancelledError
from offload.layer_streamer import LayerStreamer, ResidentLayer, StreamedLayer
from tests.support.fake_accelerator import POISON, FakeAccelerator

SLAB_BYTES = 64
CHUNK_BYTES = 24
NUM_LAYERS = 7
RESIDENT = 3
TEMPERS = ["copies_first", "kernels_first", "random"]


def slab_of(layer: int) -> torch.Tensor:
    return torch.full((SLAB_BYTES,), layer + 1, dtype=torch.uint8)


def engine_on(accelerator: FakeAccelerator) -> AcceleratorCopyEngine:
    return AcceleratorCopyEngine(accelerator, chunk_bytes=CHUNK_BYTES, pause=lambda: None)


def open_streamer(
    accelerator: FakeAccelerator, engine: AcceleratorCopyEngine, *, num_slots: int = 2, is_pinned: bool = True
) -> LayerStreamer:
    layers: list[StreamedLayer] = []
    for index in range(NUM_LAYERS):
        slab = accelerator.pin(slab_of(index)) if is_pinned else slab_of(index)
        layers.append(ResidentLayer(slab) if index == RESIDENT else HostSource(slab, payload_bytes=index + 1))
    return LayerStreamer(layers, engine, num_slots=num_slots, allocate_slot=accelerator.slot)


def run_passes(accelerator: FakeAccelerator, streamer: LayerStreamer, num_passes: int) -> list[tuple[int, bytes]]:
    """(layer, bytes that its kernel saw) of every kernel; kernels run when the device does, not when launched."""
    seen: list[tuple[int, bytes]] = []
    for _ in range(num_passes):
        streamer.begin_pass()
        for index in range(streamer.num_layers):
            slab = streamer.acquire(index)

            def kernel(index: int = index, slab: torch.Tensor = slab) -> None:
                seen.append((index, slab[:SLAB_BYTES].numpy().tobytes()))

            accelerator.compute_stream.launch(kernel, seconds=1e-5)
            streamer.release(index)
        streamer.end_pass()
    accelerator.finish()
    return seen


def expected(num_passes: int) -> list[tuple[int, bytes]]:
    return [(index, slab_of(index).numpy().tobytes()) for index in range(NUM_LAYERS)] * num_passes


@pytest.mark.parametrize("temper", TEMPERS)
@pytest.mark.parametrize("num_slots", [2, 3, 9])
def test_every_kernel_sees_its_own_layer(temper: str, num_slots: int) -> None:
    for seed in range(6 if temper == "random" else 1):
        accelerator = FakeAccelerator(temper, seed=seed)
        with engine_on(accelerator) as engine, open_streamer(accelerator, engine, num_slots=num_slots) as streamer:
            assert run_passes(accelerator, streamer, 4) == expected(4)
        assert accelerator.num_synchronous_copies == 0


@pytest.mark.parametrize(("lost", "temper"), [("copy", "copies_first"), ("compute", "kernels_first")])
def test_an_engine_without_one_of_the_waits_is_caught(lost: str, temper: str) -> None:
    """The fake is worth something: a copy that does not wait overwrites, a kernel that does not wait reads poison."""
    accelerator = FakeAccelerator(temper)
    accelerator.ignores_waits_of = lost
    with engine_on(accelerator) as engine, open_streamer(accelerator, engine) as streamer:
        assert run_passes(accelerator, streamer, 2) != expected(2)


def test_a_random_device_catches_either_missing_wait() -> None:
    for lost in ("copy", "compute"):
        accelerator = FakeAccelerator("random", seed=1)
        accelerator.ignores_waits_of = lost
        with engine_on(accelerator) as engine, open_streamer(accelerator, engine) as streamer:
            assert run_passes(accelerator, streamer, 4) != expected(4)


def test_streams_and_events_are_created_once() -> None:
    accelerator = FakeAccelerator()
    with engine_on(accelerator) as engine, open_streamer(accelerator, engine) as streamer:
        run_passes(accelerator, streamer, 3)
        num_events = accelerator.num_events
        run_passes(accelerator, streamer, 20)
        assert accelerator.num_events == num_events
    assert len(accelerator.copy_streams) == 1


def test_layers_are_copied_in_chunks() -> None:
    accelerator = FakeAccelerator()
    with engine_on(accelerator) as engine:
        engine.start(HostSource(accelerator.pin(slab_of(0)), 10), accelerator.slot(SLAB_BYTES)).wait()
        accelerator.finish()
    assert accelerator.copy_sizes == [24, 24, 16]


def test_a_draft_steps_upload_waits_for_little_of_a_layer_and_layers_hardly_longer_for_it() -> None:
    """Arithmetic: at 25 GB/s and 2 us for each copy of its own that a device begins, on a layer of 70B in NF4."""
    num_bytes, bytes_per_second, call_seconds = 441e6, 25e9, 2e-6
    assert DEFAULT_CHUNK_BYTES / bytes_per_second < 0.5e-3
    num_extra = num_bytes / DEFAULT_CHUNK_BYTES - 1
    assert num_extra * call_seconds < 0.01 * num_bytes / bytes_per_second


def test_pieces_of_a_layer_go_where_the_device_wants_them() -> None:
    accelerator = FakeAccelerator()
    slab, slot = torch.arange(SLAB_BYTES, dtype=torch.uint8), accelerator.slot(SLAB_BYTES)
    moves = (SlabMove(3, 0, 30), SlabMove(40, 32, 5))
    with engine_on(accelerator) as engine:
        engine.start(HostSource(accelerator.pin(slab), 35, moves), slot).wait()
        accelerator.finish()
    assert accelerator.copy_sizes == [24, 6, 5]
    assert slot[:30].tolist() == list(range(3, 33)) and slot[32:37].tolist() == list(range(40, 45))


def test_pageable_slabs_are_correct_though_synchronous() -> None:
    accelerator = FakeAccelerator("copies_first")
    with engine_on(accelerator) as engine, open_streamer(accelerator, engine, is_pinned=False) as streamer:
        assert run_passes(accelerator, streamer, 2) == expected(2)
    assert accelerator.num_synchronous_copies > 0


@pytest.mark.parametrize("temper", TEMPERS)
def test_the_host_is_never_more_than_one_ring_ahead(temper: str) -> None:
    """Otherwise a pass would be enqueued whole, and neither progress nor a cancellation would mean anything."""
    accelerator = FakeAccelerator(temper)
    with engine_on(accelerator) as engine, open_streamer(accelerator, engine, num_slots=2) as streamer:
        num_run = 0

        def kernel() -> None:
            nonlocal num_run
            num_run += 1

        streamer.begin_pass()
        for index in range(NUM_LAYERS):
            streamer.acquire(index)
            accelerator.compute_stream.launch(kernel)
            streamer.release(index)
            assert index + 1 - num_run <= 4  # two slots, the resident layer between them, and the one just launched
        streamer.end_pass()
        accelerator.finish()


def test_a_wait_for_the_device_can_be_cancelled() -> None:
    accelerator = FakeAccelerator()
    accelerator.step = lambda: None  # type: ignore[method-assign] # a device that has stopped
    engine = engine_on(accelerator)
    first, second = (
        engine.start(HostSource(accelerator.pin(slab_of(i)), 1), accelerator.slot(SLAB_BYTES)) for i in range(2)
    )
    first.wait()
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(PassCancelledError):
        second.wait(cancel)


def test_a_refused_copy_fails_its_pass_and_the_next_one_works() -> None:
    accelerator = FakeAccelerator()
    with engine_on(accelerator) as engine, open_streamer(accelerator, engine) as streamer:
        accelerator.fails_at_copy = 4
        with pytest.raises(LinkError, match="the device refuses the copy"):
            run_passes(accelerator, streamer, 1)
        streamer.abort_pass()
        accelerator.finish()
        assert run_passes(accelerator, streamer, 2) == expected(2)


def test_an_aborted_pass_leaves_a_correct_next_one() -> None:
    for seed in range(8):
        accelerator = FakeAccelerator("random", seed=seed)
        with engine_on(accelerator) as engine, open_streamer(accelerator, engine) as streamer:
            streamer.begin_pass()
            for index in range(seed % NUM_LAYERS):
                streamer.acquire(index)
                streamer.release(index)
            streamer.abort_pass()
            assert run_passes(accelerator, streamer, 2) == expected(2)


def test_busy_seconds_are_the_devices_own() -> None:
    accelerator = FakeAccelerator(bytes_per_second=1000.0)
    with engine_on(accelerator) as engine, open_streamer(accelerator, engine) as streamer:
        run_passes(accelerator, streamer, 2)
        copied = sum(accelerator.copy_sizes)
        assert engine.busy_seconds == pytest.approx(copied / 1000.0, rel=1e-3)  # kernels share the fake's clock
        layers_bytes = sum(index + 1 for index in range(NUM_LAYERS) if index != RESIDENT)
        assert engine.bytes_copied == 2 * layers_bytes + 1 + 2  # the ring has begun the third pass


def test_a_device_without_timers_is_timed_by_the_host() -> None:
    accelerator = FakeAccelerator(bytes_per_second=1000.0)
    accelerator.can_time = False
    engine = AcceleratorCopyEngine(accelerator, clock=lambda: accelerator.now, pause=lambda: None)
    slab = accelerator.pin(slab_of(0))
    copies = [engine.start(HostSource(slab, 1), accelerator.slot(SLAB_BYTES)) for _ in range(3)]
    for copy in copies:
        while not copy.is_done:
            pass
    assert engine.busy_seconds == pytest.approx(3 * SLAB_BYTES / 1000.0)
    engine.close()


def test_closing_waits_for_the_device_and_is_idempotent() -> None:
    accelerator = FakeAccelerator()
    engine = engine_on(accelerator)
    slot = accelerator.slot(SLAB_BYTES)
    engine.start(HostSource(accelerator.pin(slab_of(4)), 1), slot)
    engine.close()
    engine.close()
    assert torch.equal(slot, slab_of(4))
    with pytest.raises(RuntimeError, match="closed"):
        engine.start(HostSource(slab_of(0), 1), slot)


def test_closing_gives_up_on_a_device_that_does_not_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And frees nothing that it may still read; it waited for ever."""
    monkeypatch.setattr(accelerator_engine, "_never_freed", [])
    accelerator = FakeAccelerator()
    accelerator.step = lambda: None  # type: ignore[method-assign] # a device that has stopped
    engine = AcceleratorCopyEngine(accelerator, pause=lambda: None, patience_seconds=0.05)
    slab = accelerator.pin(slab_of(0))
    engine.start(HostSource(slab, 1), accelerator.slot(SLAB_BYTES))
    engine.close()
    assert "the device has not finished its copies for 0.05 s" in caplog.text
    assert [transfer.reads is slab for transfer in accelerator_engine._never_freed] == [True]
    engine.close()


def test_the_thread_that_waits_for_a_device_does_so_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has none would open a context on the first card, hundreds of megabytes large."""
    happened: list[object] = []

    @contextmanager
    def entered(index: int | None) -> Iterator[None]:
        happened.append(index)
        yield
        happened.append("left")

    monkeypatch.setattr(torch.accelerator, "device_index", entered)
    Accelerator(torch.device("xpu", 1)).block(Mock(synchronize=lambda: happened.append("waited")))
    assert happened == [1, "waited", "left"]


@pytest.mark.parametrize("temper", TEMPERS)
def test_a_layer_in_parts_is_one_layer_to_the_computation(temper: str) -> None:
    """Its slot is waited for before the first part, the kernels wait for the last, and events are recycled."""
    for seed in range(4 if temper == "random" else 1):
        accelerator = FakeAccelerator(temper, seed=seed)
        with engine_on(accelerator) as engine:
            slots = [accelerator.slot(SLAB_BYTES) for _ in range(2)]
            seen: list[tuple[int, bytes]] = []

            def use(index: int, slot: torch.Tensor, seen: list[tuple[int, bytes]] = seen) -> None:
                seen.append((index, slot.numpy().tobytes()))

            num_events = 0
            for number in range(4 * NUM_LAYERS):
                index, slot = number % NUM_LAYERS, slots[number % 2]
                slab = accelerator.pin(slab_of(index))
                parts = [HostSource(slab[begin : begin + 16], 4, slot_offset=begin) for begin in range(0, 64, 16)]
                for copy in [engine.start(part, slot) for part in parts]:
                    copy.wait()
                accelerator.compute_stream.launch(partial(use, index, slot), seconds=1e-5)
                engine.release(slot)
                if number == NUM_LAYERS:
                    num_events = accelerator.num_events
            accelerator.finish()
            assert seen == [(index, slab_of(index).numpy().tobytes()) for index in range(NUM_LAYERS)] * 4
            assert accelerator.num_events <= num_events + 4  # how many are in flight differs a little


def test_files_do_not_go_straight_to_a_device() -> None:
    engine = engine_on(FakeAccelerator())
    with pytest.raises(TypeError, match="StagedCopyEngine"):
        engine.start(LayerLayout((), (), 0, 0), torch.empty(0, dtype=torch.uint8))


def test_chunks_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="chunks of 0"):
        AcceleratorCopyEngine(FakeAccelerator(), chunk_bytes=0)


def test_poison_is_what_an_untouched_slot_holds() -> None:
    assert int(FakeAccelerator().slot(4)[0]) == POISON
