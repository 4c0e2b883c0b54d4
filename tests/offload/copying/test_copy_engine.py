"""What every engine is: usable wherever a CopyEngine is asked for."""

from pathlib import Path

import pytest

from offload.checkpoint.layer_layout import LayerLayout, SlabRange
from offload.copying.accelerator_engine import AcceleratorCopyEngine
from offload.copying.copy_engine import CopyEngine, HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.host_engine import HostCopyEngine
from offload.copying.staged_engine import StagedCopyEngine
from offload.memory import allocate_slab
from offload.units import PAGE_BYTES, LinkSpeed
from tests.support.fake_accelerator import FakeAccelerator
from tests.support.fakes import InstantEngine

KINDS = ["host", "accelerator", "emulated", "staged", "instant"]


def open_engine(kind: str) -> CopyEngine:
    if kind == "accelerator":
        return AcceleratorCopyEngine(FakeAccelerator(), pause=lambda: None)
    if kind == "emulated":
        return EmulatedLink(HostCopyEngine(num_threads=1), LinkSpeed(1e12))
    if kind == "staged":
        return StagedCopyEngine(HostCopyEngine(num_threads=1), HostCopyEngine(num_threads=1), [allocate_slab(1)])
    return InstantEngine() if kind == "instant" else HostCopyEngine(num_threads=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_copies_host_memory_and_counts_its_weights(kind: str) -> None:
    engine = open_engine(kind)
    slab, slot = allocate_slab(PAGE_BYTES).fill_(7), allocate_slab(PAGE_BYTES)
    source = HostSource(slab, payload_bytes=100)
    engine.look_ahead([source])
    for _ in range(2):
        copy = engine.start(source, slot)
        copy.wait()
        while not copy.is_done:
            pass
        engine.release(slot)
    assert bytes(slot.numpy()) == bytes(slab.numpy())
    assert engine.bytes_copied == 200
    assert engine.busy_seconds >= 0
    engine.close()
    engine.close()


def test_a_source_says_what_it_carries_and_what_it_takes() -> None:
    layout = LayerLayout((), (SlabRange(Path("x"), 8, 100, 8),), PAGE_BYTES, 100)
    assert (layout.payload_bytes, layout.slab_bytes) == (100, PAGE_BYTES)
    host = HostSource(allocate_slab(PAGE_BYTES), payload_bytes=90)
    assert (host.payload_bytes, host.slab_bytes) == (90, PAGE_BYTES)
