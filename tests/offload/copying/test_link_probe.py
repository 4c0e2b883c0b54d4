"""The yardstick reads exactly the pages of the ranges, with every thread, and says whether the page cache helped."""

import os
import threading
from pathlib import Path

import pytest

from offload.checkpoint.layer_layout import SlabRange
from offload.copying.link_probe import measure_raw_link
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
    assert raw.num_bytes == 8192 + 4096 + 1696  # the last page ends with the file
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
    with pytest.raises(LinkError, match="hold no bytes to measure"):
        measure_raw_link([SlabRange(path, 0, 4096, 0)], block_bytes=4096)
