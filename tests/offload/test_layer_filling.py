"""Layers are read to where they stay, in order, beside whoever already waits for them."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from offload.checkpoint.layer_layout import LayerLayout, SlabRange
from offload.copying.copy_engine import HostSource
from offload.copying.host_engine import HostCopyEngine
from offload.errors import BudgetError, LinkError, PassCancelledError
from offload.layer_filling import LayerFilling, LayerHome
from offload.layer_streamer import LayerStreamer, ResidentLayer, StreamedLayer
from offload.memory import allocate_slab
from offload.pinning.pinned_memory import HostPinner
from offload.units import PAGE_BYTES
from tests.support.fakes import GatedLoader, InstantEngine, PoisoningEngine
from tests.support.numbered_layers import run_pass

NUM_LAYERS = 5


@pytest.fixture
def homes(tmp_path: Path) -> list[LayerHome]:
    """Layer i is a page of the byte i + 1."""
    file = tmp_path / "layers.bin"
    file.write_bytes(b"".join(bytes([index + 1]) * PAGE_BYTES for index in range(NUM_LAYERS)))
    layouts = [
        LayerLayout((), (SlabRange(file, index * PAGE_BYTES, PAGE_BYTES, 0),), PAGE_BYTES, PAGE_BYTES - 1)
        for index in range(NUM_LAYERS)
    ]
    return [LayerHome(index, layout, allocate_slab(PAGE_BYTES)) for index, layout in enumerate(layouts)]


@pytest.fixture
def gate() -> Iterator[GatedLoader]:
    with GatedLoader(HostCopyEngine(num_threads=1)) as loader:
        yield loader


def is_full(home: LayerHome) -> bool:
    return int(home.slab[0]) == int(home.slab[PAGE_BYTES - 1]) == home.index + 1


def test_every_home_holds_its_layer_and_every_step_is_one_layer(homes: list[LayerHome]) -> None:
    with LayerFilling(homes, HostCopyEngine(), HostPinner()) as filling:
        assert list(filling.steps()) == [PAGE_BYTES - 1] * NUM_LAYERS
        assert filling.is_done and filling.num_coming_bytes == 0
        assert all(map(is_full, homes))


def test_a_layer_is_there_as_soon_as_it_was_read_and_not_before(homes: list[LayerHome], gate: GatedLoader) -> None:
    with LayerFilling(homes, gate, HostPinner()) as filling:
        for index in range(NUM_LAYERS):
            assert not filling.has(index) and not filling.is_done
            assert filling.num_coming_bytes == (NUM_LAYERS - index) * (PAGE_BYTES - 1)
            gate.let(1)
            filling.wait(index)
            assert filling.has(index) and is_full(homes[index])
        assert filling.has(NUM_LAYERS), "a layer that was never to come"


def test_a_wait_ends_when_it_is_cancelled(homes: list[LayerHome], gate: GatedLoader) -> None:
    cancel = threading.Event()
    with LayerFilling(homes, gate, HostPinner()) as filling:
        threading.Timer(0.05, cancel.set).start()
        with pytest.raises(PassCancelledError):
            filling.wait(3, cancel)


@pytest.mark.parametrize("num_read", [0, 1, 3])
def test_closing_in_the_middle_ends_the_reading_at_once(
    num_read: int, homes: list[LayerHome], gate: GatedLoader
) -> None:
    before = set(threading.enumerate())
    filling = LayerFilling(homes, gate, HostPinner())
    gate.let(num_read)
    for index in range(num_read):
        filling.wait(index)
    filling.close()
    filling.close()
    assert set(threading.enumerate()) <= before
    assert [filling.has(index) for index in range(NUM_LAYERS)] == [index < num_read for index in range(NUM_LAYERS)]


def test_a_file_that_cannot_be_read_fails_who_waits_and_the_next_to_ask_reads_on(homes: list[LayerHome]) -> None:
    """What was read before stays; nothing of it is read again."""
    file = homes[0].layout.ranges[0].file
    kept = file.rename(file.with_name("kept"))
    with LayerFilling(homes, HostCopyEngine(), HostPinner()) as filling:
        with pytest.raises(LinkError, match="cannot be opened"):
            list(filling.steps())
        with pytest.raises(LinkError, match="cannot be opened"):
            filling.wait(2)
        kept.rename(file)
        filling.wait(2)
        assert is_full(homes[2])
        filling.wait(NUM_LAYERS - 1)
        assert all(map(is_full, homes))


def test_memory_that_runs_out_on_the_way_to_the_device_is_told_as_such(
    homes: list[LayerHome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(engine: object, targets: object) -> Iterator[torch.Tensor]:
        raise torch.OutOfMemoryError("sim: out of memory")
        yield

    monkeypatch.setattr("offload.layer_filling.read_ahead", refuse)
    with (
        LayerFilling(homes, HostCopyEngine(), HostPinner()) as filling,
        pytest.raises(BudgetError, match="the layers on their way to the device"),
    ):
        filling.wait(0)


class SlowPinner(HostPinner):
    """Is done with a slab when it is told so."""

    def __init__(self) -> None:
        self.waiting: list[object] = []

    def filled(self, slab: torch.Tensor, *, then: object = None) -> None:
        self.waiting.append(then)


def test_a_slab_that_is_being_pinned_is_not_there_yet(homes: list[LayerHome]) -> None:
    """A copy from memory that the driver works on would be slow, and block who asked for it."""
    pinned = [LayerHome(home.index, home.layout, home.slab, is_to_pin=home.index != 1) for home in homes]
    pinner = SlowPinner()
    with LayerFilling(pinned, HostCopyEngine(), pinner) as filling:
        filling.wait(1)
        while len(pinner.waiting) < NUM_LAYERS - 1:
            filling.wait(1)
        assert not filling.is_done and not filling.has(0)
        for then in pinner.waiting:
            assert callable(then)
            then()
        assert filling.is_done


def test_how_long_the_rest_will_take_follows_from_what_came(homes: list[LayerHome], gate: GatedLoader) -> None:
    with LayerFilling(homes, gate, HostPinner()) as filling:
        assert filling.seconds_left == 0.0
        gate.let(1)
        filling.wait(0)
        assert filling.seconds_left > 0.0
        gate.let(NUM_LAYERS)
        list(filling.steps())
        assert filling.seconds_left == 0.0


def test_homes_may_be_none() -> None:
    with LayerFilling([], HostCopyEngine(), HostPinner()) as filling:
        assert filling.is_done and list(filling.steps()) == []


IS_RESIDENT = [False, True, False, False, True]


def layers_of(homes: list[LayerHome]) -> list[StreamedLayer]:
    pairs = zip(homes, IS_RESIDENT, strict=True)
    return [ResidentLayer(home.slab) if stays else HostSource(home.slab, home.index + 1) for home, stays in pairs]


@pytest.mark.parametrize("num_before", range(NUM_LAYERS + 1))
def test_a_pass_follows_at_the_heels_of_the_reading(num_before: int, homes: list[LayerHome], gate: GatedLoader) -> None:
    """Each layer is let only when the pass has used the one before: it waits for every one, and reads none again."""
    engine = InstantEngine()
    with (
        LayerFilling(homes, gate, HostPinner()) as filling,
        LayerStreamer(layers_of(homes), PoisoningEngine(engine), num_slots=2, filling=filling) as streamer,
    ):
        gate.let(num_before)
        for index in range(num_before):
            filling.wait(index)
        assert engine.cycle == []
        timer = threading.Timer(0.02, gate.let, (NUM_LAYERS - num_before,))
        timer.start()
        first = run_pass(streamer)
        timer.join()
        assert first.is_loading == (num_before < NUM_LAYERS)
        assert first.bytes_streamed == 1 + 3 + 4
        assert not run_pass(streamer).is_loading
        assert len(engine.cycle) == IS_RESIDENT.count(False)


def test_what_is_not_there_is_not_read_ahead_and_what_came_is_copied_at_once(
    homes: list[LayerHome], gate: GatedLoader
) -> None:
    engine = InstantEngine()
    with (
        LayerFilling(homes, gate, HostPinner()) as filling,
        LayerStreamer(layers_of(homes), engine, num_slots=2, filling=filling) as streamer,
    ):
        streamer.begin_pass()
        assert engine.num_started == 0
        gate.let(3)
        filling.wait(2)
        streamer.acquire(0)
        assert engine.num_started == 2, "the copy behind it began as well"
        streamer.release(0)
        assert engine.num_started == 2, "layer 3 has not come"
        gate.let(2)
        for index in range(1, NUM_LAYERS):
            streamer.acquire(index)
            streamer.release(index)
        streamer.end_pass()


def test_a_pass_that_is_cancelled_while_it_waits_leaves_the_reading_be(
    homes: list[LayerHome], gate: GatedLoader
) -> None:
    with (
        LayerFilling(homes, gate, HostPinner()) as filling,
        LayerStreamer(layers_of(homes), InstantEngine(), num_slots=2, filling=filling) as streamer,
    ):
        gate.let(1)
        streamer.begin_pass()
        streamer.acquire(0)
        streamer.release(0)
        threading.Timer(0.05, streamer.cancel).start()
        with pytest.raises(PassCancelledError):
            streamer.acquire(1)
        streamer.abort_pass()
        assert run_cancelled(streamer, at=0) == 0
        gate.let(NUM_LAYERS)
        assert run_pass(streamer).bytes_streamed == 1 + 3 + 4


def run_cancelled(streamer: LayerStreamer, *, at: int) -> int:
    streamer.begin_pass()
    streamer.cancel()
    with pytest.raises(PassCancelledError):
        streamer.acquire(at)
    streamer.abort_pass()
    return at


def test_a_disk_that_fails_in_the_background_fails_the_pass_and_the_next_one_reads_on(homes: list[LayerHome]) -> None:
    file = homes[0].layout.ranges[0].file
    kept = file.rename(file.with_name("kept"))
    with (
        LayerFilling(homes, HostCopyEngine(), HostPinner()) as filling,
        LayerStreamer(layers_of(homes), InstantEngine(), num_slots=2, filling=filling) as streamer,
    ):
        with pytest.raises(LinkError, match="cannot be opened"):
            list(filling.steps())
        for _ in range(2):
            with pytest.raises(LinkError, match="cannot be opened"):
                run_pass(streamer)
            streamer.abort_pass()
        kept.rename(file)
        assert run_pass(streamer).bytes_streamed == 1 + 3 + 4
        assert filling.is_done
