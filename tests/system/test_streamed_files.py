"""Layers from real files go through the ring as they are, however passes end."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offload.checkpoint.layer_layout import LayerLayout, SlabRange
from offload.copying.copy_engine import CopyEngine
from offload.copying.emulated_link import EmulatedLink
from offload.copying.host_engine import HostCopyEngine
from offload.errors import PassCancelledError
from offload.layer_streamer import LayerStreamer
from offload.units import LinkSpeed
from tests.support.fakes import PoisoningEngine


def write_layers(folder: Path, rng: random.Random, *, num_layers: int) -> tuple[list[LayerLayout], list[bytes]]:
    """Disk layers of one or two ranges in a file without any alignment, and the bytes that each must show."""
    content = rng.randbytes(num_layers * 40_000 + 1234)
    path = folder / "weights.bin"
    path.write_bytes(content)
    sources, expected = [], []
    for index in range(num_layers):
        begin = 777 + index * 40_000
        pieces = [(begin, 20_000), (begin + 30_000, 9_000)][: rng.randint(1, 2)]
        ranges, cursor = [], 0
        for file_offset, num_bytes in pieces:
            slab_offset = cursor + file_offset % 4096
            ranges.append(SlabRange(path, file_offset, num_bytes, slab_offset))
            cursor = -(-(slab_offset + num_bytes) // 4096) * 4096
        payload = sum(piece.num_bytes for piece in ranges)
        sources.append(LayerLayout((), tuple(ranges), cursor, payload))
        expected.append(b"".join(content[offset : offset + size] for offset, size in pieces))
    return sources, expected


def layer_bytes(source: LayerLayout, slab: torch.Tensor) -> bytes:
    return b"".join(
        slab[piece.slab_offset : piece.slab_offset + piece.num_bytes].numpy().tobytes() for piece in source.ranges
    )


@pytest.mark.parametrize("direct", [None, False])
def test_real_files_arrive_as_they_are(tmp_path: Path, direct: bool | None) -> None:
    sources, expected = write_layers(tmp_path, random.Random(0), num_layers=9)
    with (
        HostCopyEngine(num_threads=3, block_bytes=8192, direct=direct) as engine,
        LayerStreamer(sources, PoisoningEngine(engine), num_slots=3) as streamer,
    ):
        for _ in range(5):
            streamer.begin_pass()
            for index, source in enumerate(sources):
                assert layer_bytes(source, streamer.acquire(index)) == expected[index]
                streamer.release(index)
            assert streamer.end_pass().bytes_streamed == sum(map(len, expected))


def soak(streamer: LayerStreamer, rng: random.Random, check: Callable[[int, torch.Tensor], None]) -> int:
    """Short passes, some cancelled from another thread, some aborted; how many were complete."""
    num_complete = 0
    for _ in range(200):
        streamer.begin_pass()
        canceller = threading.Thread(target=streamer.cancel)
        started_at, aborted_at = rng.randint(0, 20), rng.randint(0, 40)
        try:
            for index in range(streamer.num_layers):
                if index == started_at:
                    canceller.start()
                if index == aborted_at:
                    raise PassCancelledError("by the caller")
                check(index, streamer.acquire(index))
                streamer.release(index)
            streamer.end_pass()
            num_complete += 1
        except PassCancelledError:
            streamer.abort_pass()
        if canceller.ident is not None:
            canceller.join()
    return num_complete


def test_a_soak_of_cancelled_passes_leaves_nothing_behind(tmp_path: Path) -> None:
    threads_before = threading.active_count()
    rng = random.Random(9)
    sources, expected = write_layers(tmp_path, rng, num_layers=6)

    def check(index: int, slab: torch.Tensor) -> None:
        assert layer_bytes(sources[index], slab) == expected[index]

    base = HostCopyEngine(num_threads=3, block_bytes=8192, direct=False)
    engine: CopyEngine = EmulatedLink(PoisoningEngine(base), LinkSpeed(bytes_per_second=1e9, latency_seconds=1e-5))
    with LayerStreamer(sources, engine, num_slots=2) as streamer:
        num_complete = soak(streamer, rng, check)
        assert 0 < num_complete < 200
        streamer.begin_pass()
        for index in range(streamer.num_layers):
            check(index, streamer.acquire(index))
            streamer.release(index)
        streamer.end_pass()
    engine.close()
    assert threading.active_count() == threads_before
    assert not base._queue and base._num_in_flight == 0
