"""Stages between a disk and a link: order, reading ahead, failures, and two links that work at the same time."""

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch

from offload.checkpoint.block_reader import FileBlock
from offload.checkpoint.layer_layout import LayerLayout, SlabRange
from offload.closing import Patience
from offload.copying import staged_engine
from offload.copying.copy_engine import CopySource, HostSource, PendingCopy
from offload.copying.emulated_link import EmulatedLink
from offload.copying.host_engine import HostCopyEngine
from offload.copying.staged_engine import StagedCopyEngine
from offload.errors import LinkError, PassCancelledError
from offload.layer_streamer import LayerStreamer, ResidentLayer, StreamedLayer
from offload.memory import allocate_slab
from offload.units import PAGE_BYTES, LinkSpeed
from tests.support.fakes import InstantEngine
from tests.support.pipeline_simulation import PipelineParts, round_seconds

SLAB_BYTES = 2 * PAGE_BYTES
SECOND_HALF = 100
"""What its bytes exceed the first half's by."""


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Layer i is a page of the byte i + 1, and one of that and SECOND_HALF."""
    path = tmp_path / "layers.bin"
    path.write_bytes(b"".join(bytes(layer_bytes(index).numpy()) for index in range(12)))
    return path


def layer_bytes(index: int) -> torch.Tensor:
    slab = allocate_slab(SLAB_BYTES).fill_(index + 1)
    slab[PAGE_BYTES:] += SECOND_HALF
    return slab


def disk_layer(file: Path, index: int) -> LayerLayout:
    piece = SlabRange(file, index * SLAB_BYTES, SLAB_BYTES, 0)
    return LayerLayout((), (piece,), SLAB_BYTES, SLAB_BYTES)


def host_layer(index: int) -> HostSource:
    return HostSource(layer_bytes(index), SLAB_BYTES)


def make_layers(file: Path, kinds: str) -> list[StreamedLayer]:
    """d: from disk, h: from host memory, r: resident."""
    make = {
        "d": lambda index: disk_layer(file, index),
        "h": host_layer,
        "r": lambda index: ResidentLayer(host_layer(index).slab),
    }
    return [make[kind](index) for index, kind in enumerate(kinds)]


def stages(num_stages: int = 2, *, num_pieces: int = 1) -> list[torch.Tensor]:
    """Stages through which a layer passes in one piece or in two."""
    return [allocate_slab(SLAB_BYTES // num_pieces) for _ in range(num_stages)]


class Recorder(HostCopyEngine):
    """Remembers which sources it was asked for."""

    def __init__(self) -> None:
        super().__init__(num_threads=1)
        self.started: list[CopySource] = []

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        self.started.append(source)
        return super().start(source, slot)


def run_passes(streamer: LayerStreamer, num_passes: int = 1, compute_seconds: float = 0.0) -> tuple[float, float]:
    """Check every layer's bytes; seconds per pass and computing seconds per layer of all but the first pass.

    A computation is a sleep, which a busy machine makes longer: what it really took is what the model is asked for.
    """
    begun = slept = 0.0
    for number in range(num_passes):
        if number == 1:
            begun, slept = time.perf_counter(), 0.0
        streamer.begin_pass()
        for index in range(streamer.num_layers):
            slab = streamer.acquire(index)
            assert torch.equal(slab[:SLAB_BYTES], layer_bytes(index))
            computed = time.perf_counter()
            time.sleep(compute_seconds)
            slept += time.perf_counter() - computed
            streamer.release(index)
        streamer.end_pass()
    num_timed = max(1, num_passes - 1)
    return (time.perf_counter() - begun) / num_timed, slept / num_timed / streamer.num_layers


@pytest.mark.parametrize("kinds", ["d", "dd", "dhdh", "hhdhhd", "rdrh", "dddddd", "hhhh"])
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_every_layer_arrives_in_order_pass_after_pass(file: Path, kinds: str, num_stages: int) -> None:
    for num_pieces in (1, 2):
        reader, link = HostCopyEngine(num_threads=2), HostCopyEngine(num_threads=2)
        with (
            StagedCopyEngine(reader, link, stages(num_stages, num_pieces=num_pieces)) as engine,
            LayerStreamer(make_layers(file, kinds), engine, num_slots=2, disk=engine.reader) as streamer,
        ):
            run_passes(streamer, 4)
            assert engine.bytes_copied >= 4 * SLAB_BYTES * (len(kinds) - kinds.count("r"))
            assert reader.bytes_copied >= 4 * SLAB_BYTES * kinds.count("d")


def test_reads_run_ahead_of_the_ring_along_the_cycle(file: Path) -> None:
    """While the link is busy with the first layers, the stages already take the next ones from disk."""
    reader = Recorder()
    layers = make_layers(file, "dhhhhd")
    with StagedCopyEngine(reader, HostCopyEngine(num_threads=1), stages(3)) as engine:
        engine.look_ahead([layer for layer in layers if not isinstance(layer, ResidentLayer)])
        assert not isinstance(layers[0], ResidentLayer)
        engine.start(layers[0], allocate_slab(SLAB_BYTES)).wait()
        deadline = time.perf_counter() + 60
        while len(reader.started) < 3 and time.perf_counter() < deadline:
            time.sleep(0.001)
        assert reader.started[:3] == [layers[0], layers[5], layers[0]]


def test_nothing_is_read_twice_in_undisturbed_passes(file: Path) -> None:
    reader = Recorder()
    layers = make_layers(file, "dhdhd")
    with (
        StagedCopyEngine(reader, HostCopyEngine(num_threads=1), stages(2)) as engine,
        LayerStreamer(layers, engine, num_slots=2) as streamer,
    ):
        run_passes(streamer, 5)
    wanted = list(islice(cycle([layers[0], layers[2], layers[4]]), len(reader.started)))
    assert reader.started == wanted
    assert 15 <= len(reader.started) <= 15 + 5  # two slots and two stages ahead at most


@pytest.mark.parametrize("num_pieces", [1, 2])
@pytest.mark.parametrize("stop_at", range(6))
def test_an_aborted_pass_begins_anew_at_the_first_layer(file: Path, stop_at: int, num_pieces: int) -> None:
    halves = stages(3 - num_pieces, num_pieces=num_pieces)
    with (
        StagedCopyEngine(HostCopyEngine(num_threads=1), HostCopyEngine(num_threads=1), halves) as engine,
        LayerStreamer(make_layers(file, "dhddhd"), engine, num_slots=2) as streamer,
    ):
        for _ in range(3):
            streamer.begin_pass()
            for index in range(stop_at):
                streamer.acquire(index)
                streamer.release(index)
            streamer.abort_pass()
            run_passes(streamer, 2)


class FailingOnce(HostCopyEngine):
    """Fails the read with the given number."""

    def __init__(self, number: int) -> None:
        super().__init__(num_threads=1)
        self.number = number

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        self.number -= 1
        if self.number == -1:
            missing = SlabRange(Path("/no/such/file"), 0, 1, 0)
            source = LayerLayout((), (missing,), source.slab_bytes, 1)
        return super().start(source, slot)


@pytest.mark.parametrize("num_pieces", [1, 2])
@pytest.mark.parametrize("number", [0, 1, 4, 7])
def test_a_failed_read_fails_its_pass_and_the_next_pass_works(file: Path, number: int, num_pieces: int) -> None:
    """In the middle of a layer too, of which some pieces have been sent by then."""
    halves = stages(2, num_pieces=num_pieces)
    with (
        StagedCopyEngine(FailingOnce(number), HostCopyEngine(num_threads=1), halves) as engine,
        LayerStreamer(make_layers(file, "dhdd"), engine, num_slots=2) as streamer,
    ):
        with pytest.raises(LinkError, match="/no/such/file"):
            run_passes(streamer, 5)
        streamer.abort_pass()
        run_passes(streamer, 3)


@pytest.mark.parametrize("number", range(6))
def test_a_link_that_fails_in_the_middle_of_a_layer_fails_its_pass(file: Path, number: int) -> None:
    link = InstantEngine()
    link.failing = {number}
    with (
        StagedCopyEngine(HostCopyEngine(num_threads=1), link, stages(2, num_pieces=2)) as engine,
        LayerStreamer(make_layers(file, "dhdd"), engine, num_slots=2) as streamer,
    ):
        with pytest.raises(LinkError, match=r"The copy failed"):
            run_passes(streamer, 1)
        streamer.abort_pass()
        run_passes(streamer, 3)


class HeldLink(InstantEngine):
    """Fills slots as it is told, but every copy counts as under way until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_let_go = threading.Event()

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        return HeldCopy(super().start(source, slot), self.is_let_go)


class HeldCopy:
    def __init__(self, copy: PendingCopy, is_let_go: threading.Event) -> None:
        self._copy, self._is_let_go = copy, is_let_go

    @property
    def is_done(self) -> bool:
        return self._is_let_go.is_set()

    def wait(self, cancel: threading.Event | None = None) -> None:
        while not self._is_let_go.wait(0.001):
            if cancel is not None and cancel.is_set():
                raise PassCancelledError("cancelled")
        self._copy.wait(cancel)

    def abandon(self) -> None:
        self._copy.abandon()


def test_a_layer_is_done_only_when_none_of_its_pieces_is_under_way_any_more(file: Path) -> None:
    """One that was given up after its first piece, too: the slot must not be filled anew before."""
    link = HeldLink()
    engine = StagedCopyEngine(HostCopyEngine(num_threads=1), link, stages(1, num_pieces=2))
    copy = engine.start(disk_layer(file, 0), allocate_slab(SLAB_BYTES))
    while link.num_started == 0:
        time.sleep(0.001)
    copy.abandon()
    with pytest.raises(PassCancelledError):
        copy.wait(Patience(0.05))
    assert not copy.is_done and link.num_started == 1
    link.is_let_go.set()
    link.listener()
    copy.wait()
    assert copy.is_done and link.num_started == 1
    engine.close()


class Refusing(HostCopyEngine):
    """Raises at the reads with the given numbers, before anything has begun."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(num_threads=1)
        self.numbers = set(numbers)
        self.num_started = 0

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        self.num_started += 1
        if self.num_started - 1 in self.numbers:
            raise ValueError("refused")
        return super().start(source, slot)


def test_a_reader_that_refuses_to_begin_costs_no_stage(file: Path) -> None:
    """Each refusal kept a stage for good, so that the third one waited for ever."""
    with (
        StagedCopyEngine(Refusing(0, 1, 2), HostCopyEngine(num_threads=1), stages(2)) as engine,
        LayerStreamer(make_layers(file, "dhd"), engine, num_slots=2) as streamer,
    ):
        for _ in range(3):
            with pytest.raises(LinkError, match="refused"):
                run_passes(streamer, 1)
            streamer.abort_pass()
        run_passes(streamer, 3)


class Stuck(HostCopyEngine):
    """Reads that do not end before they are let go, as from a disk that has stopped to answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, patience_seconds: float = 30.0) -> None:
        self.release_reads = threading.Event()
        self.num_stuck = 0
        transfer = FileBlock.transfer

        def stuck_transfer(block: FileBlock) -> None:
            self.num_stuck += 1
            self.release_reads.wait()
            transfer(block)

        monkeypatch.setattr(FileBlock, "transfer", stuck_transfer)
        super().__init__(num_threads=1, patience_seconds=patience_seconds)


def test_a_disk_that_does_not_answer_holds_up_no_cancelled_pass(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages wait for it, and nobody else: host layers go on, and once it answers, so does everything."""
    reader = Stuck(monkeypatch)
    layers = make_layers(file, "hdhd")
    with (
        StagedCopyEngine(reader, HostCopyEngine(num_threads=1), stages(2)) as engine,
        LayerStreamer(layers, engine, num_slots=2) as streamer,
    ):
        for _ in range(4):
            canceller = threading.Timer(0.05, streamer.cancel)
            canceller.start()
            streamer.begin_pass()
            assert int(streamer.acquire(0)[0]) == 1
            streamer.release(0)
            with pytest.raises(PassCancelledError):
                streamer.acquire(1)
            begun = time.perf_counter()
            streamer.abort_pass()
            assert time.perf_counter() - begun < 20  # of the thirty that the streamer would wait
            canceller.join()
        assert reader.num_stuck == 1
        reader.release_reads.set()
        run_passes(streamer, 3)


def test_a_disk_that_stops_answering_fails_the_copy_that_needs_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Stuck(monkeypatch, patience_seconds=0.1)
    layers = make_layers(file, "hd")
    with (
        StagedCopyEngine(reader, HostCopyEngine(num_threads=1), stages(2)) as engine,
        LayerStreamer(layers, engine, num_slots=2) as streamer,
    ):
        for _ in range(4):  # more often than there are stages
            streamer.begin_pass()
            streamer.acquire(0)
            streamer.release(0)
            with pytest.raises(LinkError, match="No bytes of a layer have come"):
                streamer.acquire(1)
            streamer.abort_pass()
        reader.release_reads.set()
        while reader._num_in_flight:
            time.sleep(0.001)
        run_passes(streamer, 3)


class Dies(BaseException):
    """What ends a thread."""


def test_the_thread_that_feeds_the_link_may_die_and_the_next_pass_works(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        StagedCopyEngine(HostCopyEngine(num_threads=1), HostCopyEngine(num_threads=1), stages(2)) as engine,
        LayerStreamer(make_layers(file, "dhd"), engine, num_slots=2) as streamer,
    ):
        run_passes(streamer, 2)

        def die() -> None:
            if engine._queue:  # else nobody waits for it, and another thread takes its place unnoticed
                monkeypatch.undo()
                raise Dies("shot")

        monkeypatch.setattr(engine, "_send", die)
        with pytest.raises(LinkError, match="shot") as raised:
            run_passes(streamer, 3)
        assert isinstance(raised.value.__cause__, Dies)
        streamer.abort_pass()
        run_passes(streamer, 3)


def test_a_wait_for_a_stage_can_be_cancelled(file: Path) -> None:
    engine = StagedCopyEngine(
        EmulatedLink(HostCopyEngine(num_threads=1), LinkSpeed(1.0)), HostCopyEngine(num_threads=1), stages(1)
    )
    copy = engine.start(disk_layer(file, 0), allocate_slab(SLAB_BYTES))
    cancel = threading.Event()
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(PassCancelledError):
        copy.wait(cancel)
    copy.abandon()
    copy.wait()
    assert copy.is_done
    engine.close()


def test_closing_fails_what_is_queued(file: Path) -> None:
    engine = StagedCopyEngine(
        EmulatedLink(HostCopyEngine(num_threads=1), LinkSpeed(1.0)), HostCopyEngine(num_threads=1), stages(1)
    )
    copy = engine.start(disk_layer(file, 0), allocate_slab(SLAB_BYTES))
    engine.close()
    with pytest.raises(LinkError, match="closed"):
        copy.wait()
    with pytest.raises(RuntimeError, match="closed"):
        engine.start(disk_layer(file, 0), allocate_slab(SLAB_BYTES))


def test_pageable_memory_may_need_a_stage_too(file: Path) -> None:
    """Where a driver pins only a part, the rest goes through a pinned stage that threads fill."""
    pinned, pageable = host_layer(0), host_layer(1)
    link = InstantEngine()
    reader = Recorder()
    with (
        StagedCopyEngine(reader, link, stages(), needs_stage=lambda source: source is pageable) as engine,
        LayerStreamer([pinned, pageable], engine, num_slots=2) as streamer,
    ):
        run_passes(streamer, 3)
    assert set(map(id, reader.started)) == {id(pageable)}


def real_round(
    layers: Sequence[StreamedLayer], disk: LinkSpeed, link: LinkSpeed, compute: float
) -> tuple[float, float]:
    reader = EmulatedLink(HostCopyEngine(num_threads=1), disk)
    with (
        StagedCopyEngine(reader, EmulatedLink(HostCopyEngine(num_threads=1), link), stages(2)) as engine,
        LayerStreamer(layers, engine, num_slots=2, disk=reader) as streamer,
    ):
        return run_passes(streamer, 5, compute)


def test_nobody_looks_again_and_again_whether_a_copy_is_done(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a wait of a millisecond takes up to 15.6; engines say when something is done."""
    monkeypatch.setattr(staged_engine, "_LISTEN_SECONDS", 3600.0)
    reader = EmulatedLink(HostCopyEngine(num_threads=1), LinkSpeed(SLAB_BYTES / 0.004))
    link = EmulatedLink(HostCopyEngine(num_threads=1), LinkSpeed(SLAB_BYTES / 0.002))
    with (
        StagedCopyEngine(reader, link, stages(2, num_pieces=2)) as engine,
        LayerStreamer(make_layers(file, "dhdd"), engine, num_slots=2) as streamer,
    ):
        run_passes(streamer, 3)
        streamer.begin_pass()
        streamer.abort_pass()
        run_passes(streamer, 2)


@pytest.mark.parametrize(
    ("disk_seconds", "link_seconds", "compute_seconds"),
    [(0.030, 0.010, 0.002), (0.015, 0.020, 0.002), (0.020, 0.010, 0.015)],
)
def test_a_pass_costs_the_slower_link_not_the_sum(
    file: Path, disk_seconds: float, link_seconds: float, compute_seconds: float
) -> None:
    """Six host and four disk layers: the model says max, and a real run with two emulated links agrees.

    Within 5 % on a quiet machine, where one run is enough; on a busy one, whose threads wake up late, it is still far
    from the sum.
    """
    kinds = "hdhhdhdhhd"
    disk, link = LinkSpeed(SLAB_BYTES / disk_seconds), LinkSpeed(SLAB_BYTES / link_seconds)

    def predict(compute_seconds: float) -> PipelineParts:
        return PipelineParts(
            copy_seconds=(link_seconds,) * len(kinds),
            compute_seconds=(compute_seconds,) * len(kinds),
            num_slots=2,
            read_seconds=tuple(disk_seconds if kind == "d" else None for kind in kinds),
            num_stages=2,
        )

    predicted = round_seconds(predict(compute_seconds))
    assert predicted <= 1.05 * max(4 * disk_seconds, 10 * link_seconds, 10 * compute_seconds)
    assert predicted < 0.75 * predict(compute_seconds).no_overlap_seconds
    ratios: list[float] = []
    while len(ratios) < 8 and min(ratios, default=2.0) > 1.05:
        seconds, compute = real_round(make_layers(file, kinds), disk, link, compute_seconds)
        ratios.append(seconds / round_seconds(predict(compute)))
    assert 0.95 < min(ratios) < 1.2
