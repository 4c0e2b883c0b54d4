"""The probe is run for real, in a process of its own, with drivers that refuse, die and hang."""

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from offload.errors import LinkError, PassCancelledError
from offload.pinning import pin_probe
from offload.pinning.pin_probe import RESERVE_BYTES, ProbeResult, _read_report, probe_limit_bytes, probe_pin_budget
from profiles.machine_profile import PinBudgetSource

MIB = 1 << 20


def probe(driver: str, *, limit_bytes: int = 8 * MIB) -> ProbeResult:
    return probe_pin_budget(f"tests.support.fake_driver:{driver}", limit_bytes=limit_bytes, step_bytes=MIB)


def test_all_that_was_asked_for_is_the_budget_if_all_was_granted() -> None:
    """Down to the last page: the last step is as small as it has to be."""
    result = probe("generous", limit_bytes=5 * MIB // 2 + 5000)
    assert result == ProbeResult(5 * MIB // 2 + 4096, PinBudgetSource.GRANTED)
    assert result.budget_bytes == result.granted_bytes


@pytest.mark.parametrize(
    ("driver", "granted_bytes", "source"),
    [
        ("refusing_beyond_5_mib", 5 * MIB, PinBudgetSource.REFUSED),
        ("dying_at_call_4", 3 * MIB, PinBudgetSource.CRASHED),
        ("leaving_at_call_4", 3 * MIB, PinBudgetSource.CRASHED),
        ("raising_at_call_4", 3 * MIB, PinBudgetSource.CRASHED),
    ],
)
def test_four_fifths_of_what_was_granted_before_a_failure(
    driver: str, granted_bytes: int, source: PinBudgetSource
) -> None:
    if driver.startswith("dying") and os.name == "nt":
        pytest.skip("there is no such signal")
    result = probe(driver)
    assert result == ProbeResult(granted_bytes, source)
    assert result.budget_bytes == granted_bytes * 8 // 10


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
    assert result == ProbeResult(3 * MIB, PinBudgetSource.TIMED_OUT)
    assert result.budget_bytes == 3 * MIB * 8 // 10
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
    is_in_time, written, _ = pin_probe._wait(child, 0.0, None, lambda: 0.0)
    assert child.was_killed and not is_in_time and written == (output or b"").decode()


def test_a_cancelled_probe_leaves_no_process(is_hanging: SetByFile, children: list[subprocess.Popen[str]]) -> None:
    with pytest.raises(PassCancelledError, match="cancelled"):
        probe_pin_budget(
            "tests.support.fake_driver:hanging_at_call_4", limit_bytes=8 * MIB, step_bytes=MIB, cancel=is_hanging
        )
    assert len(children) == 1 and children[0].returncode not in (None, 0)


def test_a_device_that_does_not_even_open_is_an_error_with_its_last_words() -> None:
    with pytest.raises(LinkError, match=r"before its first step \(RuntimeError: no device found\)"):
        probe("missing")


def test_a_folder_that_happens_to_be_the_current_one_is_not_searched_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    assert probe("generous", limit_bytes=MIB).granted_bytes == MIB


def test_torchs_own_allocator_is_asked_where_there_is_no_registrar() -> None:
    """Here it refuses at once; on a machine with such a device it grants the step."""
    result = probe_pin_budget("xpu:0", limit_bytes=MIB, step_bytes=MIB)
    assert result in (ProbeResult(0, PinBudgetSource.REFUSED), ProbeResult(MIB, PinBudgetSource.GRANTED))


@pytest.mark.parametrize(
    ("output", "exit_code", "expected"),
    [
        ('{"granted_bytes": 0, "ending": null}\n', 0, (0, PinBudgetSource.CRASHED)),
        ('{"granted_bytes": 7, "ending": null}\n{"granted_bytes": 9, "end', -9, (7, PinBudgetSource.CRASHED)),
        ('hello\n[1]\n{"granted_bytes": 7, "ending": "granted"}\n3\n', 0, (7, PinBudgetSource.GRANTED)),
        ('{"granted_bytes": 7, "ending": "granted"}\n', 1, (7, PinBudgetSource.CRASHED)),
        (
            '{"granted_bytes": 7, "ending": "bored"}\n{"granted_bytes": 5, "ending": null}\n',
            None,
            (5, PinBudgetSource.TIMED_OUT),
        ),
    ],
)
def test_the_last_whole_line_counts(output: str, exit_code: int | None, expected: tuple[int, PinBudgetSource]) -> None:
    assert _read_report(output, "", exit_code=exit_code) == ProbeResult(*expected)


def test_no_line_at_all_is_an_error() -> None:
    with pytest.raises(LinkError, match=r"took too long before its first step \(it said nothing\)"):
        _read_report("", " \n", exit_code=None)


def test_a_probe_leaves_memory_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_probe, "free_memory_bytes", lambda: RESERVE_BYTES + 5)
    assert probe_limit_bytes() == 5
    monkeypatch.setattr(pin_probe, "free_memory_bytes", lambda: RESERVE_BYTES - 5)
    assert probe_limit_bytes() == 0
