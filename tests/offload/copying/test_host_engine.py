"""The host engine: bytes, order, failures that stay with their own copy, and threads that end."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from offload.checkpoint.layer_layout import LayerLayout, SlabRange
from offload.copying.copy_engine import HostSource
from offload.copying.host_engine import HostCopyEngine
from offload.errors import LinkError, PassCancelledError
from offload.memory import allocate_slab

PAGE = 4096


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def make_file(path: Path, num_bytes: int, seed: int = 0) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    content = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator).numpy().tobytes()
    path.write_bytes(content)
    return content


def disk_source(*pieces: tuple[Path, int, int], phase_shift: int = 0) -> LayerLayout:
    """One range per (file, offset, bytes); `phase_shift` moves them out of phase, so that O_DIRECT is impossible."""
    ranges, cursor = [], 0
    for path, offset, num_bytes in pieces:
        slab_offset = cursor + offset % PAGE + phase_shift
        ranges.append(SlabRange(path, offset, num_bytes, slab_offset))
        cursor = -(-(slab_offset + num_bytes) // PAGE) * PAGE
    return LayerLayout((), tuple(ranges), cursor, sum(piece[2] for piece in pieces))


def wanted_bytes(source: LayerLayout, slot: torch.Tensor) -> list[bytes]:
    return [slot[piece.slab_offset : piece.slab_offset + piece.num_bytes].numpy().tobytes() for piece in source.ranges]


class Gate:
    """A block that lets a worker go on only when told to: makes 'in flight' a state that a test can look at."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def hold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        really_read = os.preadv

        def read(*args: Any) -> int:
            self.entered.set()
            self.opened.wait()
            return really_read(*args)

        monkeypatch.setattr(os, "preadv", read)


@pytest.mark.parametrize("direct", [None, False])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_ranges_of_several_files_arrive_in_one_slot(tmp_path: Path, direct: bool | None, num_threads: int) -> None:
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    content_a, content_b = make_file(first, 100_001), make_file(second, 50_000, seed=1)
    source = disk_source((first, 777, 70_000), (first, 90_000, 10_001), (second, 0, 50_000))
    with HostCopyEngine(num_threads=num_threads, block_bytes=2 * PAGE, direct=direct) as engine:
        for _ in range(2):
            slot = allocate_slab(source.slab_bytes)
            copy = engine.start(source, slot)
            copy.wait()
            assert copy.is_done and copy.num_bytes == 130_001
            assert wanted_bytes(source, slot) == [content_a[777:70_777], content_a[90_000:], content_b]
        assert engine.bytes_copied == 2 * 130_001


def test_platforms_without_preadv_seek_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv", raising=False)
    content = make_file(tmp_path / "a.bin", 100_000)
    source = disk_source((tmp_path / "a.bin", 3, 99_000))
    with HostCopyEngine(num_threads=3, block_bytes=PAGE) as engine:
        slot = allocate_slab(source.slab_bytes)
        engine.start(source, slot).wait()
        assert wanted_bytes(source, slot) == [content[3:99_003]]
        assert not engine.is_direct


def test_a_layout_out_of_phase_is_read_buffered(tmp_path: Path) -> None:
    content = make_file(tmp_path / "a.bin", 50_000)
    source = disk_source((tmp_path / "a.bin", 100, 40_000), phase_shift=64)
    assert not source.is_phase_aligned
    with HostCopyEngine(block_bytes=PAGE) as engine:
        slot = allocate_slab(source.slab_bytes)
        engine.start(source, slot).wait()
        assert wanted_bytes(source, slot) == [content[100:40_100]]
    with HostCopyEngine(block_bytes=PAGE, direct=True) as engine, pytest.raises(LinkError, match="choose buffered"):
        engine.start(source, allocate_slab(source.slab_bytes)).wait()


def test_a_slot_that_is_not_page_aligned_is_read_buffered(tmp_path: Path) -> None:
    content = make_file(tmp_path / "a.bin", 20_000)
    source = disk_source((tmp_path / "a.bin", 0, 20_000))
    slot = allocate_slab(8 * PAGE)[64:]
    with HostCopyEngine(block_bytes=PAGE) as engine:
        engine.start(source, slot).wait()
    assert wanted_bytes(source, slot) == [content]


def test_host_memory_is_copied_whole_with_what_lies_between_the_weights() -> None:
    slab = torch.arange(50_000).to(torch.uint8)
    slot = allocate_slab(60_000)
    with HostCopyEngine(num_threads=3, block_bytes=PAGE) as engine:
        copy = engine.start(HostSource(slab, payload_bytes=40_000), slot)
        copy.wait()
    assert torch.equal(slot[:50_000], slab) and not slot[50_000:].any()
    assert copy.num_bytes == engine.bytes_copied == 40_000


def test_an_empty_layer_arrives_at_once() -> None:
    with HostCopyEngine() as engine:
        copy = engine.start(LayerLayout((), (), 0, 0), allocate_slab(0))
        assert copy.is_done
        copy.wait()


def test_blocks_are_read_in_the_order_of_the_file_and_of_the_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file(tmp_path / "a.bin", 40 * PAGE)
    sources = [disk_source((tmp_path / "a.bin", begin * PAGE, 10 * PAGE)) for begin in (0, 10, 20, 30)]
    really_read, offsets = os.preadv, []

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        offsets.append(offset)
        return really_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)
    with HostCopyEngine(num_threads=1, block_bytes=PAGE) as engine:
        copies = [engine.start(source, allocate_slab(source.slab_bytes)) for source in sources]
        for copy in copies:
            copy.wait()
    assert offsets == [index * PAGE for index in range(40)]


def test_a_failing_block_fails_its_own_copy_only_and_the_threads_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_file(tmp_path / "a.bin", 30 * PAGE)
    sources = [disk_source((tmp_path / "a.bin", begin * PAGE, 10 * PAGE)) for begin in (0, 10, 20)]
    really_read = os.preadv

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 15 * PAGE:
            raise OSError(errno.EIO, "Input/output error")
        return really_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)
    with HostCopyEngine(num_threads=2, block_bytes=PAGE) as engine:
        slots = [allocate_slab(source.slab_bytes) for source in sources]
        copies = [engine.start(source, slot) for source, slot in zip(sources, slots, strict=True)]
        copies[0].wait()
        with pytest.raises(LinkError, match=r"a.bin failed at byte 61440 \(Input/output error\)") as caught:
            copies[1].wait()
        assert isinstance(caught.value.__cause__, LinkError)
        assert isinstance(caught.value.__cause__.__cause__, OSError)
        copies[2].wait()
        assert wanted_bytes(sources[2], slots[2]) == [content[20 * PAGE :]]
        assert copies[1].is_done and engine.bytes_copied == 20 * PAGE
        with pytest.raises(LinkError):
            copies[1].wait()
        monkeypatch.setattr(os, "preadv", really_read)
        engine.start(sources[1], slots[1]).wait()
        assert wanted_bytes(sources[1], slots[1]) == [content[10 * PAGE : 20 * PAGE]]


def test_a_fault_of_our_own_in_a_block_reaches_the_waiter_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_file(tmp_path / "a.bin", PAGE)
    source = disk_source((tmp_path / "a.bin", 0, PAGE))

    def fail(*args: Any) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(os, "preadv", fail)
    with HostCopyEngine() as engine, pytest.raises(LinkError, match="a bug") as caught:
        engine.start(source, allocate_slab(PAGE)).wait()
    assert isinstance(caught.value.__cause__, ValueError)


def test_missing_replaced_and_shortened_files_show_when_the_copy_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    source = disk_source((path, 0, 2 * PAGE))
    slot = allocate_slab(source.slab_bytes)
    with HostCopyEngine(block_bytes=PAGE) as engine:
        missing = engine.start(source, slot)
        with pytest.raises(LinkError, match=r"a.bin cannot be opened \(No such file or directory\)"):
            missing.wait()
        make_file(path, PAGE + 1)
        with pytest.raises(LinkError, match=r"a.bin ends at byte 4097, expected at least 8192"):
            engine.start(source, slot).wait()
        make_file(path, 2 * PAGE)
        with pytest.raises(LinkError, match="was replaced or changed while a model streams from it"):
            engine.start(source, slot).wait()


def test_waiting_ends_when_the_pass_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_file(tmp_path / "a.bin", PAGE)
    source = disk_source((tmp_path / "a.bin", 0, PAGE))
    slot, cancel, gate = allocate_slab(PAGE), threading.Event(), Gate()
    gate.hold(monkeypatch)
    with HostCopyEngine() as engine:
        copy = engine.start(source, slot)
        cancel.set()
        with pytest.raises(PassCancelledError):
            copy.wait(cancel)
        assert not copy.is_done
        gate.opened.set()
        copy.wait()
        copy.wait(cancel)  # what has arrived is not taken back
        assert wanted_bytes(source, slot) == [content]


def test_an_abandoned_copy_drops_what_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_file(tmp_path / "a.bin", 10 * PAGE)
    source = disk_source((tmp_path / "a.bin", 0, 10 * PAGE))
    slot, gate = allocate_slab(source.slab_bytes), Gate()
    gate.hold(monkeypatch)
    with HostCopyEngine(num_threads=1, block_bytes=PAGE) as engine:
        copy = engine.start(source, slot)
        gate.entered.wait()
        copy.abandon()
        assert not copy.is_done
        gate.opened.set()
        copy.wait()
        assert copy.is_done and engine.bytes_copied == 0
        assert not slot[PAGE:].any()


def test_closing_fails_what_is_queued_and_joins_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_file(tmp_path / "a.bin", 10 * PAGE)
    source = disk_source((tmp_path / "a.bin", 0, 10 * PAGE))
    gate = Gate()
    gate.hold(monkeypatch)
    engine = HostCopyEngine(num_threads=1, block_bytes=PAGE)
    copy = engine.start(source, allocate_slab(source.slab_bytes))
    gate.entered.wait()
    closer = threading.Thread(target=engine.close)
    closer.start()
    gate.opened.set()
    closer.join()
    with pytest.raises(LinkError, match="closed before the copy was complete"):
        copy.wait()
    engine.close()
    with pytest.raises(RuntimeError, match="the copy engine is closed"):
        engine.start(source, allocate_slab(source.slab_bytes))


def test_closing_gives_up_on_a_disk_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread keeps the memory that it writes to, and ends when the read does."""
    make_file(tmp_path / "a.bin", PAGE)
    source, gate = disk_source((tmp_path / "a.bin", 0, PAGE)), Gate()
    gate.hold(monkeypatch)
    engine = HostCopyEngine(num_threads=1, patience_seconds=0.05)
    copy = engine.start(source, allocate_slab(source.slab_bytes))
    gate.entered.wait()
    engine.close()
    assert not copy.is_done
    gate.opened.set()
    copy.abandon()
    copy.wait()
    engine.close()
    assert not engine._files and not any(thread.is_alive() for thread in engine._threads)


def test_a_disk_that_stops_answering_fails_what_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass waited for ever for a disk that hung, though an error was promised."""
    content = make_file(tmp_path / "a.bin", PAGE)
    source = disk_source((tmp_path / "a.bin", 0, PAGE))
    gate = Gate()
    gate.hold(monkeypatch)
    with HostCopyEngine(patience_seconds=0.1) as engine:
        slot = allocate_slab(PAGE)
        copy = engine.start(source, slot)
        for waited in (copy, engine.start(source, allocate_slab(PAGE))):
            with pytest.raises(LinkError, match=r"No bytes of a layer have come for 0\.1 seconds; check"):
                waited.wait()
        assert not copy.is_done
        gate.opened.set()
        while not copy.is_done:
            time.sleep(0.001)
        copy.wait()
        assert wanted_bytes(source, slot) == [content]


def test_time_in_which_nobody_waits_is_no_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped for a minute and goes on finds its clock far ahead, and its reads not yet done."""
    make_file(tmp_path / "a.bin", PAGE)
    source = disk_source((tmp_path / "a.bin", 0, PAGE))
    now = [0.0]
    gate = Gate()
    gate.hold(monkeypatch)
    with HostCopyEngine(clock=lambda: now[0]) as engine:
        copy = engine.start(source, allocate_slab(PAGE))
        now[0] = 60.0
        already = threading.Event()
        already.set()
        with pytest.raises(PassCancelledError):
            copy.wait(already)
        gate.opened.set()
        copy.wait()


def test_threads_that_cannot_be_started_are_one_sentence_and_none_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "copy-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    before = threading.active_count()
    with pytest.raises(LinkError, match=r"Only 2 of 6 threads that read could be started \(can't start"):
        HostCopyEngine()
    assert threading.active_count() == before


def test_busy_time_is_that_with_any_copy_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_file(tmp_path / "a.bin", 2 * PAGE)
    source = disk_source((tmp_path / "a.bin", 0, PAGE))
    now = [0.0]
    gate = Gate()
    gate.hold(monkeypatch)
    with HostCopyEngine(num_threads=1, clock=lambda: now[0]) as engine:
        now[0] = 5.0
        assert engine.busy_seconds == 0.0
        copies = [engine.start(source, allocate_slab(PAGE)) for _ in range(2)]
        now[0] = 7.0
        assert engine.busy_seconds == 2.0
        gate.opened.set()
        for copy in copies:
            copy.wait()
        now[0] = 100.0
        assert engine.busy_seconds == 2.0


@pytest.mark.parametrize(("num_threads", "block_bytes"), [(0, PAGE), (1, 0), (1, PAGE + 1), (1, 1000)])
def test_senseless_settings_are_refused(num_threads: int, block_bytes: int) -> None:
    with pytest.raises(ValueError, match="need 1 or more, in whole pages"):
        HostCopyEngine(num_threads=num_threads, block_bytes=block_bytes)


class Dies(BaseException):
    """What ends a thread: not even an Exception."""


def test_a_copy_thread_that_dies_fails_its_copy_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_file(tmp_path / "a.bin", 5 * PAGE)
    source = disk_source((tmp_path / "a.bin", 0, 5 * PAGE))
    really_read = os.preadv
    lives = [3]

    def read(*args: Any) -> int:
        lives[0] -= 1
        if lives[0] >= 0:
            raise Dies("shot")
        return really_read(*args)

    monkeypatch.setattr(os, "preadv", read)
    with HostCopyEngine(num_threads=1, block_bytes=PAGE) as engine:
        slot = allocate_slab(source.slab_bytes)
        for _ in range(3):
            with pytest.raises(LinkError, match="shot") as raised:
                engine.start(source, slot).wait()
            assert isinstance(raised.value.__cause__, Dies)
        engine.start(source, slot).wait()
        assert wanted_bytes(source, slot) == [content]
