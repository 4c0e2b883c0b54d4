"""The platforms' table, and a budget that is probed once and remembered for as long as it is true."""

import logging
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from offload.errors import LinkError
from offload.pinning import pin_budget
from offload.pinning.pin_budget import (
    PLATFORM_RULES,
    PinBudget,
    Platform,
    budget_beside,
    detect_platform,
    remembered_pin_budget,
    rule_for,
)
from offload.pinning.pin_probe import ProbeResult
from profiles.errors import ProfileError
from profiles.machine_profile import DeviceIdentity, PinBudgetSource
from profiles.profile_store import load_machine_profile, profile_path, save_machine_profile
from tests.support.profile_factory import DEVICE, machine_profile

GB = 10**9
NATIVE = "Linux version 6.8.0-45-generic (buildd@lcy02) (x86_64-linux-gnu-gcc-13) #45-Ubuntu SMP"
WSL = "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@941d701f84f1) (gcc 11.2.0) #1 SMP"


@pytest.mark.parametrize(
    ("system", "proc_version", "expected"),
    [
        ("linux", NATIVE, Platform.LINUX),
        ("linux", WSL, Platform.WSL2),
        ("linux", "Linux version 4.4.0-19041-Microsoft", Platform.WSL2),
        ("linux", "", Platform.LINUX),
        ("win32", WSL, Platform.WINDOWS),
        ("darwin", "", Platform.OTHER),
        ("freebsd14", NATIVE, Platform.OTHER),
    ],
)
def test_the_platform_is_read_from_system_and_kernel(system: str, proc_version: str, expected: Platform) -> None:
    assert detect_platform(system=system, proc_version=proc_version) is expected


def test_the_kernel_is_asked_on_linux_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "version"
    monkeypatch.setattr(pin_budget, "_PROC_VERSION", version)
    assert detect_platform(system="linux") is Platform.LINUX  # no such file
    version.write_text(WSL)
    assert detect_platform(system="linux") is Platform.WSL2
    assert detect_platform(system="darwin") is Platform.OTHER


def test_the_table_has_one_line_with_a_source_for_each_platform() -> None:
    assert [rule.platform for rule in PLATFORM_RULES] == list(Platform)
    assert all(rule.source and rule_for(rule.platform) is rule for rule in PLATFORM_RULES)


def test_the_table_says_what_design_says() -> None:
    linux, windows, wsl2, _ = PLATFORM_RULES
    assert not linux.is_probed and linux.expected_bytes is None
    assert windows.is_probed and windows.expected_bytes == (GB // 2, 4 * GB) and windows.shares_device_capacity
    assert wsl2.is_probed and wsl2.expected_bytes == (3 << 28, 1 << 30)


@pytest.mark.parametrize(
    ("budget_bytes", "in_use", "expected"),
    [
        # The two figures reported from a 3090: 8 GB granted beside 15.4, 2.8 GB beside 21.5.
        (28 * GB, 15_400_000_000, 8_600_000_000),
        (28 * GB, 21_500_000_000, 2_500_000_000),
        (2 * GB, 15_400_000_000, 2 * GB),
        (None, 20 * GB, 4 * GB),
        (28 * GB, 30 * GB, 0),
    ],
)
def test_on_windows_device_and_pinned_memory_share_the_capacity(
    budget_bytes: int | None, in_use: int, expected: int
) -> None:
    rule = rule_for(Platform.WINDOWS)
    assert budget_beside(budget_bytes, rule, device_memory_bytes=24 * GB, device_bytes_in_use=in_use) == expected


@pytest.mark.parametrize("budget_bytes", [None, 7 * GB])
def test_elsewhere_the_budget_is_its_own(budget_bytes: int | None) -> None:
    for platform in (Platform.LINUX, Platform.WSL2):
        left = budget_beside(budget_bytes, rule_for(platform), device_memory_bytes=GB, device_bytes_in_use=GB)
        assert left == budget_bytes


class Probe:
    """Counts how often it is asked."""

    def __init__(self, result: ProbeResult | Exception) -> None:
        self.result = result
        self.num_calls = 0

    def __call__(self) -> ProbeResult:
        self.num_calls += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


REFUSED = ProbeResult(10 * GB, PinBudgetSource.REFUSED)
GRANTED = ProbeResult(10 * GB, PinBudgetSource.GRANTED)


@pytest.fixture(autouse=True)
def _host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    set_host_memory(monkeypatch, 64 * GB)


def set_host_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=num_bytes))


def ask(
    folder: Path,
    probe: Probe,
    *,
    device: DeviceIdentity = DEVICE,
    wanted_bytes: int = 0,
    platform: Platform = Platform.WINDOWS,
) -> PinBudget:
    return remembered_pin_budget(
        device,
        folder,
        probe=probe,
        device_memory_bytes=16 * GB,
        wanted_bytes=wanted_bytes,
        platform=platform,
    )


def test_the_driver_is_probed_once_and_then_remembered(tmp_path: Path) -> None:
    probe = Probe(REFUSED)
    expected = PinBudget(8 * GB, PinBudgetSource.REFUSED)
    assert [ask(tmp_path, probe) for _ in range(3)] == [expected] * 3
    assert probe.num_calls == 1
    stored = load_machine_profile(tmp_path, DEVICE)
    assert stored is not None and stored.measured_at == date.today()
    assert (stored.device_memory_bytes, stored.host_memory_bytes) == (16 * GB, 64 * GB)


def test_native_linux_has_no_limit_and_needs_neither_probe_nor_store(tmp_path: Path) -> None:
    probe = Probe(REFUSED)
    budget = ask(tmp_path, probe, platform=Platform.LINUX)
    assert budget == PinBudget(None, PinBudgetSource.NOT_LIMITED)
    assert probe.num_calls == 0 and list(tmp_path.iterdir()) == []


def test_without_a_platform_this_one_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_budget, "detect_platform", lambda: Platform.LINUX)
    budget = remembered_pin_budget(DEVICE, tmp_path, probe=Probe(REFUSED), device_memory_bytes=0)
    assert budget.source is PinBudgetSource.NOT_LIMITED


def test_another_driver_is_probed_anew(tmp_path: Path) -> None:
    probe = Probe(REFUSED)
    ask(tmp_path, probe)
    newer = replace(DEVICE, driver_version="561.00")
    assert ask(tmp_path, Probe(GRANTED), device=newer) == PinBudget(10 * GB, PinBudgetSource.GRANTED)
    assert load_machine_profile(tmp_path, newer) is not None


@pytest.mark.parametrize(("host_memory_bytes", "num_probes"), [(65 * GB, 1), (128 * GB, 2), (32 * GB, 2)])
def test_a_machine_with_other_memory_is_probed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host_memory_bytes: int, num_probes: int
) -> None:
    probe = Probe(REFUSED)
    ask(tmp_path, probe)
    set_host_memory(monkeypatch, host_memory_bytes)
    for _ in range(2):
        ask(tmp_path, probe)
    assert probe.num_calls == num_probes


@pytest.mark.parametrize(
    ("first", "wanted_bytes", "num_probes"), [(GRANTED, 10 * GB, 1), (GRANTED, 11 * GB, 2), (REFUSED, 11 * GB, 1)]
)
def test_a_probe_cut_short_by_the_memory_of_its_day_is_repeated_when_more_is_wanted(
    tmp_path: Path, first: ProbeResult, wanted_bytes: int, num_probes: int
) -> None:
    probe = Probe(first)
    ask(tmp_path, probe)
    ask(tmp_path, probe, wanted_bytes=wanted_bytes)
    assert probe.num_calls == num_probes


def test_a_profile_without_a_budget_gets_one_and_keeps_its_other_figures(tmp_path: Path) -> None:
    measured = machine_profile(
        pin_budget_bytes=None, pin_budget_source=PinBudgetSource.NOT_MEASURED, link_bytes_per_second=25e9
    )
    save_machine_profile(tmp_path, measured)
    ask(tmp_path, Probe(REFUSED))
    stored = load_machine_profile(tmp_path, DEVICE)
    assert stored is not None and stored.link_bytes_per_second == 25e9 and stored.pin_budget_bytes == 8 * GB


def test_a_probe_that_knows_nothing_is_not_remembered(tmp_path: Path) -> None:
    with pytest.raises(LinkError):
        ask(tmp_path, Probe(LinkError("the device does not open")))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_profile_is_refused_and_not_overwritten(tmp_path: Path) -> None:
    """It may be that of a newer version, with figures that took minutes to measure."""
    path = profile_path(tmp_path, DEVICE)
    path.write_text('{"schema_version": 99}')
    probe = Probe(REFUSED)
    with pytest.raises(ProfileError, match="schema_version is 99"):
        ask(tmp_path, probe)
    assert path.read_text() == '{"schema_version": 99}' and probe.num_calls == 0


def test_a_store_that_cannot_be_written_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert ask(tmp_path / "file" / "folder", Probe(REFUSED)).num_bytes == 8 * GB
    assert "will be probed again next time" in caplog.text


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (
            PinBudget(None, PinBudgetSource.NOT_LIMITED),
            "this system limits pinned host memory only by what the machine has",
        ),
        (PinBudget(8 * GB, PinBudgetSource.GRANTED), "8.00 GB of host memory can be pinned: all that was asked for"),
        (PinBudget(8 * GB, PinBudgetSource.REFUSED), "granted before the driver refused more"),
        (PinBudget(8 * GB, PinBudgetSource.CRASHED), "granted before the driver crashed at more"),
        (PinBudget(8 * GB, PinBudgetSource.TIMED_OUT), "granted before the driver did not answer in time at more"),
    ],
)
def test_a_budget_explains_itself(budget: PinBudget, expected: str) -> None:
    assert budget.explain().endswith(expected)
