"""A busy or hanging driver holds nobody up, and whatever ends, no slab is unmapped before it is unregistered."""

import gc
import mmap
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from offload.errors import LinkError
from offload.pinning import pinned_memory
from offload.pinning.pinned_memory import PinnedMemory, wait_until_unpinned
from tests.support.fake_driver import OUT_OF_MEMORY, FakeDriver, at_call
from tests.support.pinned_slabs import CHUNK, pin


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """For drivers that wait; set at the end in any case, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def test_filled_returns_while_the_driver_is_busy(release: threading.Event) -> None:
    driver = FakeDriver(before_call=lambda _: release.wait())
    with PinnedMemory(driver, None) as memory:
        slabs = [memory.allocate(CHUNK) for _ in range(3)]
        for slab in slabs:
            memory.filled(slab)
        assert not any(memory.is_pinned(slab) for slab in slabs) and memory.pinned_bytes == 0
        release.set()
        memory.finish()
        assert all(memory.is_pinned(slab) for slab in slabs)


def test_a_driver_that_does_not_answer_ends_the_wait_with_a_sentence(release: threading.Event) -> None:
    """And one that is slow but answers does not, however many slabs there are."""
    driver = FakeDriver(before_call=lambda call: time.sleep(0.03) if call < 6 else release.wait())
    with PinnedMemory(driver, None, patience_seconds=0.1) as memory:
        assert all(memory.is_pinned(slab) for slab in pin(memory, *[CHUNK] * 5))
        memory.filled(memory.allocate(CHUNK))
        with pytest.raises(LinkError, match=r"0.1 seconds without an answer; check that the device works"):
            memory.finish()
        release.set()
        memory.finish()


class TracedMapping(mmap.mmap):
    """An anonymous mapping that can be watched."""


def trace_mappings(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    """Let the driver's list of events also say when a slab is unmapped."""

    def allocate(num_bytes: int, *, huge_pages: bool) -> torch.Tensor:
        mapping = TracedMapping(-1, num_bytes)
        slab = torch.frombuffer(mapping, dtype=torch.uint8)
        weakref.finalize(mapping, driver.events.append, ("unmap", slab.data_ptr(), num_bytes))
        return slab

    monkeypatch.setattr(pinned_memory, "allocate_slab", allocate)


def test_every_slab_is_unregistered_before_its_mapping_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if nobody but the owner holds the slabs any more."""
    driver = FakeDriver()
    trace_mappings(monkeypatch, driver)
    memory = PinnedMemory(driver, None)
    addresses = [slab.data_ptr() for slab in pin(memory, 2 * CHUNK, CHUNK)]
    gc.collect()
    assert "unmap" not in [what for what, _, _ in driver.events]
    memory.close()
    gc.collect()
    assert [what for what, _, _ in driver.events] == ["register"] * 2 + ["unregister"] * 2 + ["unmap"] * 2
    assert sorted(address for what, address, _ in driver.events if what == "unmap") == sorted(addresses)


def test_a_slab_outlives_the_close_of_its_owner_as_pageable_memory() -> None:
    driver = FakeDriver()
    memory = PinnedMemory(driver, None)
    (slab,) = pin(memory, CHUNK)
    memory.close()
    assert bool((slab == 1).all()) and not memory.is_pinned(slab) and memory.pinned_bytes == 0
    assert driver.ranges == {}


def test_what_the_driver_will_not_let_go_stays_mapped_for_good(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Were the address used again, a copy from it would read the pages that were pinned before."""
    monkeypatch.setattr(pinned_memory, "_never_unmapped", [])
    driver = FakeDriver()
    trace_mappings(monkeypatch, driver)
    memory = PinnedMemory(driver, None)
    pin(memory, CHUNK)
    driver.unregister_code = OUT_OF_MEMORY
    memory.close()
    gc.collect()
    assert [what for what, _, _ in driver.events] == ["register"]
    assert "would not unpin 16384 bytes (error 2, out of memory)" in caplog.text


def test_closing_again_does_nothing() -> None:
    driver = FakeDriver()
    memory = PinnedMemory(driver, None)
    pin(memory, CHUNK)
    memory.close()
    num_events = len(driver.events)
    memory.close()
    memory.finish()
    assert len(driver.events) == num_events


def test_closing_in_the_middle_drops_the_queue_and_undoes_the_slab_in_hand(release: threading.Event) -> None:
    has_begun = threading.Event()

    def wait_in_second_call() -> None:
        has_begun.set()
        release.wait()

    driver = FakeDriver(before_call=at_call(2, wait_in_second_call))
    memory = PinnedMemory(driver, None)
    for size in (CHUNK, CHUNK, CHUNK):
        memory.filled(memory.allocate(size))
    assert has_begun.wait(60)
    closer = threading.Thread(target=memory.close)
    closer.start()
    while not memory._is_closing:
        pass
    release.set()
    closer.join(60)
    assert not closer.is_alive()
    assert driver.num_register_calls == 2 and driver.ranges == {} and memory.refused is None


def test_a_hanging_driver_can_be_left_alone(
    release: threading.Event, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned_memory, "CLOSING_SECONDS", 0.05)
    driver = FakeDriver(before_call=at_call(2, release.wait))
    memory = PinnedMemory(driver, None, patience_seconds=0.05)
    slabs = [memory.allocate(CHUNK) for _ in range(3)]
    for slab in slabs:
        memory.filled(slab)
    with pytest.raises(LinkError, match="without an answer"):
        memory.finish()
    assert memory.is_pinned(slabs[0]) and not memory.is_pinned(slabs[1])
    memory.close()
    assert caplog.text == "" and memory._slabs  # nothing is unmapped while the driver may still pin it
    wait_until_unpinned()
    assert "has not answered" in caplog.text
    release.set()
    wait_until_unpinned()
    assert driver.ranges == {} and not memory._slabs and not memory._thread.is_alive()


class SlowDriver(FakeDriver):
    """Takes its time to let go of each slab."""

    def __init__(self, unregister_seconds: float) -> None:
        super().__init__()
        self.unregister_seconds = unregister_seconds

    def unregister(self, address: int) -> int:
        time.sleep(self.unregister_seconds)
        return super().unregister(address)


def test_closing_takes_no_longer_than_a_second_however_much_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred gigabytes take the driver 5 to 15 seconds, which a command that has answered need not spend."""
    assert pinned_memory.CLOSING_SECONDS <= 1.0
    driver = SlowDriver(1.0)
    trace_mappings(monkeypatch, driver)
    memory = PinnedMemory(driver, None)
    pin(memory, *[CHUNK] * 6)
    memory.close()
    assert len(driver.ranges) >= 3  # of six seconds; a busy machine may have made two of them out of the half
    gc.collect()
    assert "unmap" not in [what for what, _, _ in driver.events]
    driver.unregister_seconds = 0.0
    wait_until_unpinned()


def test_the_next_session_waits_until_all_is_unpinned_and_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model switch must find the memory of the model before it free."""
    driver = SlowDriver(0.1)
    trace_mappings(monkeypatch, driver)
    memory = PinnedMemory(driver, None)
    pin(memory, *[CHUNK] * 8)
    memory.close()
    wait_until_unpinned()
    gc.collect()
    whats = [what for what, _, _ in driver.events]
    assert driver.ranges == {} and whats == ["register"] * 8 + ["unregister"] * 8 + ["unmap"] * 8
    assert not memory._thread.is_alive() and not pinned_memory._still_unpinning
    wait_until_unpinned()


_ENDING = """
import time
from tests.support.pinned_slabs import CHUNK, pin
from tests.system.test_pinned_memory_lifetime import SlowDriver
from offload.pinning.pinned_memory import PinnedMemory
with PinnedMemory(SlowDriver(1.0), None) as memory:
    pin(memory, *[CHUNK] * 60)
print(time.time(), flush=True)
"""


def test_a_process_ends_without_waiting_for_what_is_still_unpinned() -> None:
    """A minute's worth here; the end of an interpreter with torch takes some seconds of a busy machine by itself."""
    ended = subprocess.run([sys.executable, "-c", _ENDING], capture_output=True, text=True, check=True)
    assert time.time() - float(ended.stdout) < 30.0


def test_an_error_leaves_the_block_with_everything_unregistered() -> None:
    driver = FakeDriver()
    with pytest.raises(KeyError), PinnedMemory(driver, None) as memory:
        pin(memory, CHUNK)
        raise KeyError
    assert driver.ranges == {} and not memory._thread.is_alive()
