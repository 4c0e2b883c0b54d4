"""Drivers that refuse, die and hang; what only a process of its own can show is run in one."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offload.errors import LinkError
from offload.pinning import pin_probe
from offload.pinning.pin_probe import (
    RESERVE_BYTES,
    PinBudget,
    _read_report,
    _steps,
    probe_pin_budget,
)
from offload.pinning.pinned_memory import HostPinner, PinnedMemory, open_pinner
from profiles.child_process import EndedChild
from profiles.machine_profile import PinBudgetSource
from tests.support import fake_driver
from tests.support.fake_driver import FakeDriver

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_probe, "STEP_BYTES", MIB)
    monkeypatch.setattr(pin_probe, "_CHILD", "tests.support.probed_driver")


def probe(monkeypatch: pytest.MonkeyPatch, driver: str, *, limit_bytes: int = 8 * MIB) -> PinBudget:
    """What the probe says of one of the drivers in `fake_driver`, which stands in the place of a device's name."""
    monkeypatch.setattr(pin_probe, "free_memory_bytes", lambda: RESERVE_BYTES + limit_bytes)
    device: Any = driver
    return probe_pin_budget(device)


def last_step(pinner: HostPinner, *, limit_bytes: int) -> tuple[int, str]:
    """(bytes granted, how it ended) by the child's own lines, without a process of its own."""
    with pinner:
        steps = list(_steps(pinner, limit_bytes))
    assert steps[0] == "pinned 0 bytes"
    (*_, (num_bytes, ending)) = pin_probe._STEP.findall("\n".join(steps))
    assert all(":" not in step for step in steps[:-1])
    return int(num_bytes), ending


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        # Down to the last page: the last step is as small as it must be.
        (fake_driver.generous, (5 * MIB // 2 + 4096, "granted")),
        (fake_driver.refusing_beyond_2_mib, (2 * MIB, "refused")),
        (fake_driver.raising_at_call_2, (MIB, "refused")),
    ],
)
def test_the_driver_is_asked_step_by_step_until_it_refuses(
    driver: Callable[[], FakeDriver], expected: tuple[int, str]
) -> None:
    assert last_step(PinnedMemory(driver(), None), limit_bytes=5 * MIB // 2 + 5000) == expected


def test_torchs_own_allocator_is_asked_where_there_is_no_registrar() -> None:
    """Here it refuses at once; on a machine with such a device it grants the step."""
    assert last_step(open_pinner(torch.device("xpu:0"), None), limit_bytes=MIB) in ((0, "refused"), (MIB, "granted"))


@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_what_was_granted_before_the_process_died_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe(monkeypatch, "dying_at_call_4") == PinBudget(3 * MIB * 8 // 10, PinBudgetSource.CRASHED)


class ImpatientChild(subprocess.Popen[str]):
    """A child whose time is up as soon as its driver hangs; it leaves a file then, so nobody has to guess."""

    started: "list[ImpatientChild]" = []  # noqa: RUF012

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        self.started.append(self)
        while not Path(os.environ["FAKE_DRIVER_HANGS"]).exists():
            assert self.poll() is None, self.stderr and self.stderr.read()
        return super().communicate(timeout=0.1 if timeout == pin_probe._TIMEOUT_SECONDS else timeout)


def test_a_child_that_never_returns_is_killed_and_what_it_was_granted_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DRIVER_HANGS", str(tmp_path / "hangs"))
    monkeypatch.setattr(ImpatientChild, "started", [])
    monkeypatch.setattr(subprocess, "Popen", ImpatientChild)
    result = probe(monkeypatch, "hanging_at_call_4")
    assert result == PinBudget(3 * MIB * 8 // 10, PinBudgetSource.TIMED_OUT)
    assert {child.returncode for child in ImpatientChild.started} == {-9}


class StuckChild:
    """A process that sits in its driver, where no signal reaches it."""

    def __init__(self, ending: BaseException) -> None:
        self.ending = ending
        self.was_killed = False

    def communicate(self, timeout: float) -> tuple[str, str]:
        raise self.ending

    def kill(self) -> None:
        self.was_killed = True
        self.ending = subprocess.TimeoutExpired("child", 0.0, output=getattr(self.ending, "output", None))


def test_nobody_waits_for_a_child_that_cannot_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"pinned 5000 bytes\n"
    child = StuckChild(subprocess.TimeoutExpired("child", 0.0, output=said))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: child)
    assert probe(monkeypatch, "any") == PinBudget(4000, PinBudgetSource.TIMED_OUT)
    assert child.was_killed


def test_an_interrupted_probe_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    child = StuckChild(KeyboardInterrupt())
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: child)
    with pytest.raises(KeyboardInterrupt):
        probe(monkeypatch, "any")
    assert child.was_killed


def test_a_folder_that_happens_to_be_the_current_one_is_not_searched_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    assert probe(monkeypatch, "generous", limit_bytes=MIB) == PinBudget(MIB, PinBudgetSource.GRANTED)


@pytest.mark.parametrize(
    ("output", "exit_code", "expected"),
    [
        ("pinned 0 bytes\n", 0, (0, PinBudgetSource.CRASHED)),
        ("pinned 7 bytes\npinned 9 by", -9, (5, PinBudgetSource.CRASHED)),
        ("hello\n[1]\npinned 7 bytes: granted\n3\n", 0, (7, PinBudgetSource.GRANTED)),
        ("pinned 7 bytes: granted\n", 1, (5, PinBudgetSource.CRASHED)),
        ("pinned 5000 bytes: refused\n", 0, (4000, PinBudgetSource.REFUSED)),
        (
            "pinned 7 bytes: bored\npinned 5 bytes\n",
            None,
            (4, PinBudgetSource.TIMED_OUT),
        ),
    ],
)
def test_the_last_whole_line_counts(output: str, exit_code: int | None, expected: tuple[int, PinBudgetSource]) -> None:
    """All of it if nothing went wrong, else four fifths."""
    assert _read_report(EndedChild(exit_code, output, "")) == PinBudget(*expected)


def test_no_line_at_all_is_an_error() -> None:
    with pytest.raises(LinkError, match=r"took too long before its first step \(it said nothing\)"):
        _read_report(EndedChild(None, "", " \n"))
    with pytest.raises(LinkError, match=r"ended with 1 before its first step \(RuntimeError: no device found\)"):
        _read_report(EndedChild(1, "hello\n", "Traceback:\nRuntimeError: no device found\n"))


def test_a_probe_leaves_memory_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child gets what is free beyond the reserve; of less than that it asks for nothing."""
    assert probe(monkeypatch, "generous", limit_bytes=-5) == PinBudget(0, PinBudgetSource.GRANTED)
