"""Drivers that refuse, die and hang; what only a process of its own can show is run in one."""

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from offload.errors import LinkError
from offload.pinning import pin_probe
from offload.pinning.pin_probe import (
    RESERVE_BYTES,
    PinBudget,
    _open_pinner,
    _read_report,
    _steps,
    probe_limit_bytes,
    probe_pin_budget,
)
from profiles.machine_profile import PinBudgetSource

MIB = 1 << 20


def probe(driver: str, *, limit_bytes: int = 8 * MIB) -> PinBudget:
    return probe_pin_budget(f"tests.support.fake_driver:{driver}", limit_bytes=limit_bytes, step_bytes=MIB)


def last_step(driver: str, *, limit_bytes: int = 8 * MIB) -> tuple[int, str]:
    """(bytes granted, how it ended) by the child's own lines, without a process of its own."""
    with _open_pinner(driver) as pinner:
        steps = list(_steps(pinner, limit_bytes, MIB))
    assert steps[0] == {"granted_bytes": 0, "ending": None}
    assert all(step["ending"] is None for step in steps[:-1])
    return steps[-1]["granted_bytes"], steps[-1]["ending"]


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (
            "generous",
            (5 * MIB // 2 + 4096, "granted"),
        ),  # down to the last page: the last step is as small as it must be
        ("refusing_beyond_2_mib", (2 * MIB, "refused")),
        ("raising_at_call_2", (MIB, "refused")),
    ],
)
def test_the_driver_is_asked_step_by_step_until_it_refuses(driver: str, expected: tuple[int, str]) -> None:
    assert last_step(f"tests.support.fake_driver:{driver}", limit_bytes=5 * MIB // 2 + 5000) == expected


def test_torchs_own_allocator_is_asked_where_there_is_no_registrar() -> None:
    """Here it refuses at once; on a machine with such a device it grants the step."""
    assert last_step("xpu:0", limit_bytes=MIB) in ((0, "refused"), (MIB, "granted"))


@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_what_was_granted_before_the_process_died_counts() -> None:
    assert probe("dying_at_call_4") == PinBudget(3 * MIB * 8 // 10, PinBudgetSource.CRASHED)


class SetByFile(threading.Event):
    """An event that is set once a file is there: the child says when it hangs, so nobody has to guess."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def is_set(self) -> bool:
        return self.path.exists()


@pytest.fixture
def is_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetByFile:
    monkeypatch.setenv("FAKE_DRIVER_HANGS", str(tmp_path / "hangs"))
    return SetByFile(tmp_path / "hangs")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Every child that was started."""
    started = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


def test_a_child_that_never_returns_is_killed_and_what_it_was_granted_counts(
    is_hanging: SetByFile, children: list[subprocess.Popen[str]]
) -> None:
    result = probe_pin_budget(
        "tests.support.fake_driver:hanging_at_call_4",
        limit_bytes=8 * MIB,
        step_bytes=MIB,
        timeout_seconds=5,
        clock=lambda: 6.0 if is_hanging.is_set() else 0.0,
    )
    assert result == PinBudget(3 * MIB * 8 // 10, PinBudgetSource.TIMED_OUT)
    assert len(children) == 1 and children[0].returncode not in (None, 0)


class UnkillableChild:
    """A process that sits in its driver, where no signal reaches it."""

    def __init__(self, output: bytes | None) -> None:
        self.output = output
        self.was_killed = False

    def communicate(self, timeout: float) -> tuple[str, str]:
        raise subprocess.TimeoutExpired("child", timeout, output=self.output)

    def poll(self) -> None:
        return None

    def kill(self) -> None:
        self.was_killed = True


@pytest.mark.parametrize("output", [b"what came", None])
def test_nobody_waits_for_a_child_that_cannot_be_killed(output: bytes | None) -> None:
    child: Any = UnkillableChild(output)
    is_in_time, written, _ = pin_probe._wait(child, 0.0, lambda: 0.0)
    assert child.was_killed and not is_in_time and written == (output or b"").decode()


def test_an_interrupted_probe_leaves_no_process() -> None:
    def interrupt() -> float:
        raise KeyboardInterrupt

    child: Any = UnkillableChild(None)
    clock = iter([lambda: 0.0, interrupt])
    with pytest.raises(KeyboardInterrupt):
        pin_probe._wait(child, 1.0, lambda: next(clock)())
    assert child.was_killed


def test_a_folder_that_happens_to_be_the_current_one_is_not_searched_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    assert probe("generous", limit_bytes=MIB) == PinBudget(MIB, PinBudgetSource.GRANTED)


@pytest.mark.parametrize(
    ("output", "exit_code", "expected"),
    [
        ('{"granted_bytes": 0, "ending": null}\n', 0, (0, PinBudgetSource.CRASHED)),
        ('{"granted_bytes": 7, "ending": null}\n{"granted_bytes": 9, "end', -9, (5, PinBudgetSource.CRASHED)),
        ('hello\n[1]\n{"granted_bytes": 7, "ending": "granted"}\n3\n', 0, (7, PinBudgetSource.GRANTED)),
        ('{"granted_bytes": 7, "ending": "granted"}\n', 1, (5, PinBudgetSource.CRASHED)),
        ('{"granted_bytes": 5000, "ending": "refused"}\n', 0, (4000, PinBudgetSource.REFUSED)),
        (
            '{"granted_bytes": 7, "ending": "bored"}\n{"granted_bytes": 5, "ending": null}\n',
            None,
            (4, PinBudgetSource.TIMED_OUT),
        ),
    ],
)
def test_the_last_whole_line_counts(output: str, exit_code: int | None, expected: tuple[int, PinBudgetSource]) -> None:
    """All of it if nothing went wrong, else four fifths."""
    assert _read_report(output, "", exit_code=exit_code) == PinBudget(*expected)


def test_no_line_at_all_is_an_error() -> None:
    with pytest.raises(LinkError, match=r"took too long before its first step \(it said nothing\)"):
        _read_report("", " \n", exit_code=None)
    with pytest.raises(LinkError, match=r"ended with 1 before its first step \(RuntimeError: no device found\)"):
        _read_report("hello\n", "Traceback:\nRuntimeError: no device found\n", exit_code=1)


def test_a_probe_leaves_memory_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_probe, "free_memory_bytes", lambda: RESERVE_BYTES + 5)
    assert probe_limit_bytes() == 5
    monkeypatch.setattr(pin_probe, "free_memory_bytes", lambda: RESERVE_BYTES - 5)
    assert probe_limit_bytes() == 0
