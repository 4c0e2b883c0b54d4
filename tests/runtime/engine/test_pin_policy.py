"""Joins what a driver grants with what the platform and the layers say: with drivers and devices made up."""

import json
import logging
from pathlib import Path

import pytest
import torch

from offload.device_selection import DeviceMemory
from offload.errors import LinkError
from offload.pinning.pin_budget import PinBudget, Platform
from offload.pinning.pin_probe import ProbeResult
from offload.residency_plan import ResidencyPlan, Tier
from profiles.errors import ProfileError
from profiles.machine_profile import DeviceIdentity, PinBudgetSource
from profiles.profile_store import load_machine_profile, profile_path
from runtime.engine import pin_policy
from runtime.engine.pin_policy import find_pin_budget, plan_pinned_layers

DEVICE = torch.device("meta", 0)
GB = 10**9
H, D, R = Tier.HOST, Tier.DISK, Tier.RESIDENT


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 8 GB, whose driver is asked on WSL2."""
    monkeypatch.setattr(pin_policy, "identify_device", lambda device: DeviceIdentity("meta", "Card", "1.0"))
    monkeypatch.setattr(pin_policy, "device_memory", lambda device: DeviceMemory(6 * GB, 8 * GB))
    monkeypatch.setattr("offload.pinning.pin_budget.detect_platform", lambda: Platform.WSL2)
    monkeypatch.setattr(pin_policy, "detect_platform", lambda: Platform.WSL2)


def grant(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> list[int]:
    """A probe that grants so much before it is refused; the list counts how often it was asked."""
    asked: list[int] = []

    def probe(driver: str, *, limit_bytes: int) -> ProbeResult:
        asked.append(limit_bytes)
        return ProbeResult(num_bytes, PinBudgetSource.REFUSED)

    monkeypatch.setattr(pin_policy, "probe_pin_budget", probe)
    return asked


def test_the_driver_is_asked_once_and_its_answer_remembered(
    card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = grant(monkeypatch, GB)
    assert find_pin_budget(DEVICE, tmp_path).num_bytes == 800_000_000
    assert find_pin_budget(DEVICE, tmp_path).num_bytes == 800_000_000
    assert len(asked) == 1


def test_without_a_folder_nothing_is_remembered(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = grant(monkeypatch, GB)
    for _ in range(2):
        find_pin_budget(DEVICE, None)
    assert len(asked) == 2


def test_a_probe_that_cannot_begin_leaves_nothing_pinned(
    card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(driver: str, *, limit_bytes: int) -> ProbeResult:
        raise LinkError("no process can be started")

    monkeypatch.setattr(pin_policy, "probe_pin_budget", fail)
    assert find_pin_budget(DEVICE, tmp_path) == PinBudget(0, PinBudgetSource.CRASHED)


def plan_of(monkeypatch: pytest.MonkeyPatch, budget: int | None, platform: Platform, device_bytes: int) -> list[int]:
    monkeypatch.setattr(pin_policy, "find_pin_budget", lambda *_, **__: PinBudget(budget, PinBudgetSource.GRANTED))
    monkeypatch.setattr(pin_policy, "detect_platform", lambda: platform)
    residency = ResidencyPlan((H, R, H, D, H, H), (GB,) * 6, num_slots=2)
    plan, _ = plan_pinned_layers(DEVICE, residency, device_bytes=device_bytes, state_folder=None)
    return [len(plan.pinned_slabs), plan.num_stages, plan.num_disk_layers]


def test_without_a_limit_every_host_layer_is_pinned(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_of(monkeypatch, None, Platform.LINUX, 0) == [4, 2, 1]


def test_a_limit_leaves_a_ring_and_what_fits_beside_it(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned, num_stages, num_disk = plan_of(monkeypatch, 4 * GB + 100_000, Platform.WSL2, 0)
    assert (pinned, num_stages, num_disk) == (2, 2, 1)


def test_on_windows_what_lies_on_the_device_counts_against_it(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = plan_of(monkeypatch, 6 * GB + 100_000, Platform.WINDOWS, device_bytes=0)
    crowded = plan_of(monkeypatch, 6 * GB + 100_000, Platform.WINDOWS, device_bytes=4 * GB - 100_000)
    assert crowded[0] < roomy[0]


CARD = DeviceIdentity("meta", "Card", "1.0")
VERSION_1 = {
    "schema_version": 1,
    "device": {"device_type": "meta", "name": "Card", "driver_version": "1.0"},
    "device_memory_bytes": 8 * GB,
    "host_memory_bytes": 64 * GB,
    "pin_budget_bytes": 7 * GB,
    "pin_budget_source": "refused",
    "measured_at": "2026-01-31",
    "link_bytes_per_second": None,
    "link_latency_seconds": None,
    "disk_bytes_per_second": None,
}


def budget_of_a_session(state_folder: Path) -> int | None:
    residency = ResidencyPlan((H, R), (GB,) * 2, num_slots=1)
    _, budget = plan_pinned_layers(DEVICE, residency, device_bytes=0, state_folder=state_folder)
    return budget


def test_a_budget_of_an_older_version_is_probed_anew_and_replaced(
    card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = grant(monkeypatch, GB)
    profile_path(tmp_path, CARD).write_text(json.dumps(VERSION_1))
    assert [budget_of_a_session(tmp_path) for _ in range(2)] == [800_000_000] * 2
    assert len(asked) == 1
    stored = load_machine_profile(tmp_path, CARD)
    assert stored is not None and stored.pin_budget_bytes == 800_000_000


@pytest.mark.parametrize("content", [json.dumps({**VERSION_1, "schema_version": 99}), "{", ""])
def test_a_session_starts_beside_a_profile_that_cannot_be_used_and_leaves_it_alone(
    card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """A newer program's figures may have taken minutes to measure; whoever asks for the budget alone is told."""
    asked = grant(monkeypatch, GB)
    path = profile_path(tmp_path, CARD)
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert budget_of_a_session(tmp_path) == 800_000_000
    assert len(asked) == 1 and path.read_text() == content
    assert str(path) in caplog.text and "delete it to measure again" in caplog.text
    with pytest.raises(ProfileError, match="is not a usable machine profile"):
        find_pin_budget(DEVICE, tmp_path)
