"""The yardstick reads exactly the pages of the ranges, with every thread, and says whether the page cache helped."""

import os
import threading
from pathlib import Path

import pytest
import torch

from offload.checkpoint.layer_layout import SlabRange
from offload.copying.rates import measure_copy_rate, measure_raw_link
from offload.errors import LinkError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(100_000))
    return path


def test_one_round_reads_the_pages_of_every_range_once(path: Path) -> None:
    ranges = [SlabRange(path, 100, 5000, 100), SlabRange(path, 20_480, 4096, 0), SlabRange(path, 98_304, 1696, 0)]
    clock = iter([10.0, 12.0])
    raw = measure_raw_link(ranges, block_bytes=4096, num_threads=3, clock=lambda: next(clock))
    assert raw.num_bytes == 5100 + 4096 + 1696  # from the first page of each on; the last one ends with the file
    assert (raw.seconds, raw.bytes_per_second) == (2.0, raw.num_bytes / 2.0)


def test_a_time_limit_reads_the_ranges_over_and_over(path: Path) -> None:
    ticks = iter(float(tick) for tick in range(1000))
    lock = threading.Lock()

    def clock() -> float:
        with lock:
            return next(ticks)

    raw = measure_raw_link(
        [SlabRange(path, 0, 8192, 0)], block_bytes=4096, num_threads=1, max_seconds=10.0, clock=clock
    )
    assert raw.num_bytes == 9 * 4096  # one look at the clock before each block
    assert raw.seconds == 11.0


def test_without_direct_reads_it_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    raw = measure_raw_link([SlabRange(path, 0, 100_000, 0)], block_bytes=16_384, num_threads=2)
    assert (raw.num_bytes, raw.is_direct) == (100_000, False)


def test_a_refused_direct_read_falls_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def refuse(name: str, flags: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(22, "Invalid argument")
        return really_open(name, flags)

    monkeypatch.setattr(os, "open", refuse)
    raw = measure_raw_link([SlabRange(path, 0, 100_000, 0)], block_bytes=16_384, num_threads=2)
    assert (raw.num_bytes, raw.is_direct) == (100_000, False)


def test_nothing_to_read_and_nothing_there_are_link_errors(tmp_path: Path, path: Path) -> None:
    with pytest.raises(LinkError, match="hold no bytes to measure"):
        measure_raw_link([])
    with pytest.raises(LinkError, match="Measuring the link failed"):
        measure_raw_link([SlabRange(tmp_path / "absent", 0, 10, 0)])
    path.write_bytes(b"")
    with pytest.raises(LinkError, match="ends at byte 0, expected at least 4096"):
        measure_raw_link([SlabRange(path, 0, 4096, 0)], block_bytes=4096)


def test_the_rate_is_bytes_over_the_time_of_all_copies():
    times = iter([10.0, 12.0])
    assert measure_copy_rate(torch.device("cpu"), num_bytes=1000, clock=lambda: next(times)) == 8 * 1000 / 2.0


def test_the_device_has_finished_before_either_look_at_the_clock(monkeypatch):
    """A clock read while copies are still queued measures how fast they are queued."""
    events = []
    times = iter([0.0, 1.0])

    def clock():
        events.append("clock")
        return next(times)

    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append(device.type))
    measure_copy_rate(torch.device("meta"), num_bytes=64, clock=clock)
    assert events == ["meta", "clock", "meta", "clock"]


def test_a_clock_that_stands_still_is_no_division_by_zero():
    assert measure_copy_rate(torch.device("cpu"), num_bytes=8, clock=lambda: 1.0) == 8 * 8 / 1e-9


@pytest.mark.skipif(torch.accelerator.is_available(), reason="with an accelerator, memory can be pinned")
def test_pinning_without_an_accelerator_is_an_error_of_torch():
    with pytest.raises(RuntimeError):
        measure_copy_rate(torch.device("cpu"), is_pinned=True, num_bytes=8)
