"""Measure how fast a disk and a link are, by the simplest possible loops: the yardsticks for streamed passes.

A file's disk: threads take the next block of the given ranges, in order, and read it into a buffer of their own, with
O_DIRECT where the file system allows it. The link to a device (or, on the CPU, from memory to memory): one buffer
copied over and over. Neither goes through the copy engines, on purpose, and nothing is kept of what is read.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import cycle, takewhile
from pathlib import Path

import torch

from offload.checkpoint.block_reader import FileBlock, SourceFile
from offload.checkpoint.layer_layout import SlabRange
from offload.copying.host_engine import DEFAULT_BLOCK_BYTES, DEFAULT_NUM_THREADS
from offload.device import wait_for_device
from offload.errors import LinkError
from offload.memory import allocate_read_slab
from offload.units import PAGE_BYTES, round_up_to_page

COPY_BYTES = 64 << 20
"""Large enough that starting a copy costs nothing beside it."""
_NUM_COPIES = 8


@dataclass(frozen=True, slots=True)
class RawLink:
    """What the reading loop measured."""

    num_bytes: int
    seconds: float
    """From before the first read to after the last."""
    is_direct: bool
    """Whether every read bypassed the page cache; if not, the rate may be memory's."""

    @property
    def bytes_per_second(self) -> float:
        return self.num_bytes / self.seconds


def measure_raw_link(
    ranges: Sequence[SlabRange],
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    num_threads: int = DEFAULT_NUM_THREADS,
    max_seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> RawLink:
    """Read the ranges' pages in order: once, or with `max_seconds` over and over until the time is up.

    Raises LinkError if a file cannot be read, or there is nothing to read.
    """
    try:
        with ExitStack() as opened:
            files = {path: opened.enter_context(closing(SourceFile(path))) for path in {item.file for item in ranges}}
            blocks = list(_blocks(ranges, files, block_bytes))
            buffers = [memoryview(allocate_read_slab(block_bytes).numpy().data) for _ in range(num_threads)]
            began = clock()
            end = began + (max_seconds or 0.0)
            queue = iter(blocks) if max_seconds is None else takewhile(lambda _: clock() < end, cycle(blocks))
            num_bytes = _read_all(queue, buffers)
            seconds = max(clock() - began, 1e-9)
            is_direct = all(file.is_direct for file in files.values())
    except OSError as error:
        raise LinkError(f"Measuring the link failed ({error}); check that the files can be read.") from error
    if num_bytes == 0:
        raise LinkError("The files hold no bytes to measure the link with; check that they are complete.")
    return RawLink(num_bytes, seconds, is_direct)


def _blocks(
    ranges: Sequence[SlabRange], files: Mapping[Path, SourceFile], block_bytes: int
) -> Iterator[tuple[SourceFile, int, int]]:
    """Yield (file, offset of a page, bytes that are wanted from there on), in order."""
    for piece in ranges:
        end = piece.file_offset + piece.num_bytes
        for offset in range(piece.file_offset // PAGE_BYTES * PAGE_BYTES, end, block_bytes):
            yield files[piece.file], offset, min(block_bytes, end - offset)


def _read_all(queue: Iterator[tuple[SourceFile, int, int]], buffers: Sequence[memoryview]) -> int:
    """Return the bytes that as many threads as there are buffers read together."""
    lock = threading.Lock()

    def read_blocks(buffer: memoryview) -> int:
        num_bytes = 0
        while True:
            with lock:
                file, offset, wanted = next(queue, (None, 0, 0))
            if file is None:
                return num_bytes
            FileBlock(file, offset, buffer[: round_up_to_page(wanted)], wanted, is_direct=True).transfer()
            num_bytes += wanted

    with ThreadPoolExecutor(len(buffers)) as threads:
        return sum(threads.map(read_blocks, buffers))


def measure_copy_rate(
    device: torch.device,
    *,
    is_pinned: bool = False,
    num_bytes: int = COPY_BYTES,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the bytes per second of copies from host memory, pinned or pageable, to `device`.

    Raises RuntimeError where memory cannot be had.
    """
    source = torch.full((num_bytes,), 1, dtype=torch.uint8)  # written, or every page would be the same page of zeros
    if is_pinned:
        source = source.pin_memory()
    target = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target.copy_(source, non_blocking=is_pinned)
    wait_for_device(device)
    began = clock()
    for _ in range(_NUM_COPIES):
        target.copy_(source, non_blocking=is_pinned)
    wait_for_device(device)
    return _NUM_COPIES * num_bytes / max(clock() - began, 1e-9)
