"""The simulated device is built once, leaves the tests' own process alone, and has torch's own interface.

What changes torch for the whole process runs in one of its own, and the tests read how each check of them went.
"""

import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.support import simulated_device as sim
from tests.support.sim_checks import SimChecks, needs_compiler

CHECKS = SimChecks(__file__)
check = CHECKS.check


@check
def torch_finds_the_accelerator() -> None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert accelerator == torch.device("sim")
    assert torch.accelerator.device_count() == sim.device_count() == 2
    assert torch.accelerator.current_device_index() == 0
    assert torch.get_device_module("sim") is torch.get_device_module(accelerator)
    assert torch.float32 in torch.accelerator.get_device_capability("sim:0")["supported_dtypes"]


@check
def the_second_device_is_another_one() -> None:
    with torch.accelerator.device_index(1):
        here = torch.ones(3, device="sim")
    there = torch.ones(3, device="sim:0")
    assert (here.device.index, there.device.index) == (1, 0)
    assert here.to("sim:0").add(there).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match=r"same device.*sim:"):
        here + there


@check
def streams_become_current_and_are_put_back() -> None:
    stream = torch.Stream(torch.device("sim:0"))
    before = torch.accelerator.current_stream()
    with stream:
        assert torch.accelerator.current_stream() == stream
    assert torch.accelerator.current_stream() == before != stream
    torch.accelerator.set_stream(stream)
    assert torch.accelerator.current_stream() == stream
    torch.accelerator.set_stream(before)


@check
def streams_come_from_a_pool_as_on_cuda() -> None:
    """A program that makes a stream per pass must not end up with thousands of threads."""
    device = torch.device("sim:0")
    assert len({torch.Stream(device).stream_id for _ in range(100)}) == 32


@check
def each_host_thread_has_its_own_current_stream() -> None:
    found = []
    with torch.Stream(torch.device("sim:0")) as stream:
        thread = threading.Thread(target=lambda: found.append(torch.accelerator.current_stream()))
        thread.start()
        thread.join()
        assert found[0] != stream
        assert found[0].stream_id == 0


@check
def python_goes_on_while_a_thread_waits() -> None:
    """A wait that held the interpreter's lock would freeze the terminal for the length of a pass."""
    sim.delay_stream(0.3)
    waiter = threading.Thread(target=torch.accelerator.synchronize)
    began = time.perf_counter()
    waiter.start()
    num_turns = 0
    while waiter.is_alive() and time.perf_counter() < began + 10:
        time.sleep(0.01)
        num_turns += 1
    assert num_turns > 3


@check
def events_tell_what_has_happened() -> None:
    device = torch.device("sim:0")
    first, last = (torch.Event(device, enable_timing=True) for _ in range(2))
    assert first.query()
    first.record()
    sim.delay_stream(0.1)
    last.record()
    assert first.query()
    assert not last.query()
    assert not torch.accelerator.current_stream().query()
    last.synchronize()
    assert last.query()
    assert torch.accelerator.current_stream().query()
    assert first.elapsed_time(last) >= 100
    with pytest.raises(ValueError, match="enable_timing"):
        torch.Event(device).elapsed_time(last)


@check
def a_stream_waits_for_the_recording_that_was_there_when_it_was_told() -> None:
    device = torch.device("sim:0")
    event, after = torch.Event(device), torch.Event(device)
    event.record()
    other = torch.Stream(device)
    other.wait_event(event)
    sim.delay_stream(0.2)
    event.record()
    after.record(other)
    after.synchronize()
    assert not event.query()
    other.wait_event(event)
    after.record(other)
    assert not after.query()
    after.synchronize()
    assert event.query()


@check
def waiting_is_counted() -> None:
    sim.reset_counters()
    stream, event = torch.Stream(torch.device("sim:0")), torch.Event(torch.device("sim:0"))
    x = torch.arange(4, device="sim:0")
    event.record(stream)
    stream.wait_event(event)
    assert sim.num_device_synchronisations() == sim.num_event_synchronisations() == sim.num_blocking_reads() == 0
    stream.synchronize()
    torch.accelerator.synchronize()
    event.synchronize()
    assert sim.num_device_synchronisations() == 2
    assert sim.num_event_synchronisations() == 1
    host = torch.empty(4, dtype=torch.int64).pin_memory()
    host.copy_(x, non_blocking=True)
    x[x % 2]  # an index that is no mask
    assert sim.num_blocking_reads() == 0
    assert x[1].item() == 1
    x.cpu()
    x[x > 1]
    x.nonzero()
    x[x > 1] = x[:2].flip(0)
    assert sim.num_blocking_reads() == 5


test_simulated_device = CHECKS.as_test()


@needs_compiler
def test_this_process_is_left_alone(sim_failures):
    assert not hasattr(torch, "sim")
    assert torch.accelerator.current_accelerator(check_available=True) is None or torch.cuda.is_available()


@needs_compiler
def test_it_is_compiled_once(sim_failures, monkeypatch):
    path = sim.build()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert sim.build() == path


@needs_compiler
def test_a_broken_source_shows_what_the_compiler_said(monkeypatch, tmp_path):
    broken = tmp_path / "broken.cpp"
    broken.write_text("#error this is broken\n")
    monkeypatch.setattr(sim, "SOURCE", broken)
    monkeypatch.setenv("OVERSTORY_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match="this is broken"):
        sim.build()
    assert not list(tmp_path.rglob("*.so"))


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not sim.is_buildable()
    with pytest.raises(RuntimeError, match="install"):
        sim.build()


if __name__ == "__main__":
    CHECKS.run(sys.argv[1:])
