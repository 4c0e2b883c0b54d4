"""Three ways to read a file, one content; and every way in which a file can disappoint."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offload.checkpoint.block_reader import FileBlock, SourceFile, split_range
from offload.checkpoint.layer_layout import SlabRange
from offload.errors import LinkError
from offload.memory import allocate_slab

CONTENT = bytes(range(251)) * 200  # 50,200 bytes: no power of two divides the period
WAYS = ["direct", "buffered", "seeking"]


def open_file(path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> SourceFile:
    if way == "seeking":
        monkeypatch.delattr(os, "preadv", raising=False)
    file = SourceFile(path, direct=False if way == "buffered" else None)
    if way == "direct" and not file.is_direct:
        file.close()
        pytest.skip("this file system has no O_DIRECT")
    assert file.is_direct == (way == "direct")
    return file


def slab_view(slab: torch.Tensor) -> memoryview:
    return memoryview(slab.numpy().data)


def read_range(file: SourceFile, offset: int, num_bytes: int, *, block_bytes: int = 8192) -> tuple[torch.Tensor, int]:
    """The slab after reading the range block by block, and where the range lies in it."""
    piece = SlabRange(file.path, offset, num_bytes, slab_offset=4096 + offset % 4096)
    slab = allocate_slab(4096 * 16)
    slab.fill_(0xEE)
    for block in split_range(piece, file, slab_view(slab), block_bytes=block_bytes, is_direct=file.is_direct):
        block.transfer()
    return slab, piece.slab_offset


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("offset", "num_bytes"),
    [
        (0, 1),
        (0, 50_200),
        (1, 50_199),
        (4096, 4096),
        (4095, 2),
        (777, 20_000),
        (8192, 8192),
        (50_199, 1),
        (45_056, 5144),
    ],
)
def test_every_way_delivers_the_bytes_of_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, way: str, offset: int, num_bytes: int
) -> None:
    file = open_file(path, way, monkeypatch)
    slab, begin = read_range(file, offset, num_bytes)
    assert slab[begin : begin + num_bytes].numpy().tobytes() == CONTENT[offset : offset + num_bytes]
    if way != "direct":
        assert (slab[:begin] == 0xEE).all() and (slab[begin + num_bytes :] == 0xEE).all()
    else:  # whole pages, and nothing outside them
        assert (slab[: begin // 4096 * 4096] == 0xEE).all()
        assert (slab[-(-(begin + num_bytes) // 4096) * 4096 :] == 0xEE).all()
    file.close()


@pytest.mark.parametrize("way", WAYS)
def test_reads_that_return_less_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    file = open_file(path, way, monkeypatch)
    calls = []
    if way != "seeking":
        whole_read = os.preadv

        def short_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            calls.append(offset)
            return whole_read(descriptor, [buffers[0][:4096]], offset)

        monkeypatch.setattr(os, "preadv", short_read)
    slab, begin = read_range(file, 4096, 30_000, block_bytes=16_384)
    assert slab[begin : begin + 30_000].numpy().tobytes() == CONTENT[4096:34_096]
    assert len(calls) in (0, 8)
    file.close()


def test_a_short_direct_read_that_ends_inside_a_page_starts_again_at_the_page(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_file(path, "direct", monkeypatch)
    whole_read, offsets = os.preadv, []

    def ragged_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        offsets.append(offset)
        return min(5000, whole_read(descriptor, buffers, offset))

    monkeypatch.setattr(os, "preadv", ragged_read)
    slab, begin = read_range(file, 0, 12_288, block_bytes=16_384)
    assert slab[begin : begin + 12_288].numpy().tobytes() == CONTENT[:12_288]
    assert offsets == [0, 4096, 8192]
    file.close()


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="this system cannot say what its page cache holds")
@pytest.mark.parametrize(
    ("num_cached", "from_disk"),
    [
        (20_480, []),
        (8192, [8192]),
        (10_000, [8192]),  # the next read has to start at a page
        (0, [0]),
        (None, [0]),
    ],
)
def test_what_the_page_cache_holds_is_not_read_from_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch, num_cached: int | None, from_disk: list[int]
) -> None:
    """Nor is the disk waited for: a read that would have to fails, and None stands for a kernel without the flag."""
    open_file(path, "direct", monkeypatch).close()
    file = SourceFile(path, cached_first=True)
    whole_read, offsets = os.preadv, []

    def read(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if descriptor == file._direct_descriptor:
            offsets.append(offset)
            return whole_read(descriptor, buffers, offset)
        assert flags == os.RWF_NOWAIT
        if num_cached is None:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        if offset >= num_cached:
            raise BlockingIOError(errno.EAGAIN, "would have to wait")
        return whole_read(descriptor, [buffers[0][: num_cached - offset]], offset)

    monkeypatch.setattr(os, "preadv", read)
    slab, begin = read_range(file, 0, 20_480, block_bytes=32_768)
    assert slab[begin : begin + 20_480].numpy().tobytes() == CONTENT[:20_480]
    assert offsets == from_disk
    file.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_ends_early_is_an_error_with_both_sizes(
    path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    file = open_file(path, way, monkeypatch)
    os.truncate(path, 10_000)
    with pytest.raises(LinkError, match=r"weights.bin ends at byte 10000, expected at least 16384"):
        read_range(file, 0, 50_000)
    file.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_the_first_direct_read_is_read_buffered(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    file = open_file(path, "direct", monkeypatch)
    refuse_direct_reads(monkeypatch, file, code)
    slab, begin = read_range(file, 777, 20_000)
    assert slab[begin : begin + 20_000].numpy().tobytes() == CONTENT[777:20_777]
    assert not file.is_direct
    file.close()


def test_demanded_direct_reads_are_never_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file(path, "direct", monkeypatch).close()
    file = SourceFile(path, direct=True)
    refuse_direct_reads(monkeypatch, file, errno.EINVAL)
    with pytest.raises(LinkError, match="cannot be read with O_DIRECT where it is stored; choose buffered reads"):
        read_range(file, 0, 100)
    file.close()
    monkeypatch.delattr(os, "O_DIRECT")
    with pytest.raises(LinkError, match="cannot be read with O_DIRECT"):
        SourceFile(path, direct=True)


def refuse_direct_reads(monkeypatch: pytest.MonkeyPatch, file: SourceFile, code: int) -> None:
    whole_read = os.preadv

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if descriptor == file._direct_descriptor:
            raise OSError(code, os.strerror(code))
        return whole_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)


def test_a_file_system_that_refuses_to_open_direct_is_read_buffered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = os.open

    def refuse(name: Any, flags: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return really_open(name, flags)

    monkeypatch.setattr(os, "open", refuse)
    file = SourceFile(path)
    assert not file.is_direct
    slab, begin = read_range(file, 0, 50_200)
    assert slab[begin : begin + 50_200].numpy().tobytes() == CONTENT
    file.close()


def test_an_unreadable_disk_is_named_with_the_place_and_the_cause(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_file(path, "buffered", monkeypatch)

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    block = FileBlock(file, 4096, slab_view(allocate_slab(4096)), wanted_bytes=10, is_direct=False)
    with pytest.raises(LinkError, match=r"weights.bin failed at byte 4096 \(Input/output error\)") as caught:
        block.transfer()
    assert isinstance(caught.value.__cause__, OSError)
    file.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda path: os.truncate(path, 100), "was replaced or changed"),
        (lambda path: os.utime(path, ns=(1, 1)), "was replaced or changed"),
        (lambda path: (path.rename(path.with_name("old")), path.write_bytes(CONTENT)), "was replaced or changed"),
        (lambda path: path.unlink(), "is gone"),
    ],
)
def test_a_file_that_changes_while_it_is_open_is_noticed(
    path: Path, change: Callable[[Path], object], complaint: str
) -> None:
    file = SourceFile(path)
    file.check_unchanged()
    change(path)
    with pytest.raises(LinkError, match=complaint):
        file.check_unchanged()
    file.close()


def test_without_preadv_every_thread_has_its_own_place_in_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_file(path, "seeking", monkeypatch)
    faults: list[int] = []

    def read_often(offset: int) -> None:
        for _ in range(50):
            slab, begin = read_range(file, offset, 9000, block_bytes=4096)
            if slab[begin : begin + 9000].numpy().tobytes() != CONTENT[offset : offset + 9000]:
                faults.append(offset)

    threads = [threading.Thread(target=read_often, args=(offset,)) for offset in (0, 10_000, 41_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(file._thread_files) == 3
    file.close()


def test_direct_blocks_are_whole_pages(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses any other; what lies between the wanted bytes and the page ends comes along."""
    file = open_file(path, "direct", monkeypatch)
    piece = SlabRange(path, 5000, 30_000, slab_offset=5000 % 4096)
    slab = allocate_slab(40_960)
    blocks = list(split_range(piece, file, slab_view(slab), block_bytes=8192, is_direct=True))
    assert [block.file_offset for block in blocks] == [4096, 12_288, 20_480, 28_672]
    assert [len(block.destination) for block in blocks] == [8192] * 4
    assert [block.wanted_bytes for block in blocks] == [8192, 8192, 8192, 6328]
    file.close()
