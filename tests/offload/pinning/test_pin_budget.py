"""What the platforms and the driver allow, remembered for as long as it is true; and which layers get it.

Everything pinned, or a part beside a ring, or a ring alone: within the budget, nothing left that would fit.
"""

import json
import logging
import random
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from offload.device import DeviceMemory
from offload.errors import LinkError
from offload.pinning import pin_budget
from offload.pinning.pin_budget import (
    MAX_STAGES,
    MIN_STAGE_BYTES,
    PLATFORM_RULES,
    PinBudget,
    PinningPlan,
    Platform,
    budget_beside,
    detect_platform,
    find_pin_budget,
    plan_pinned_layers,
    plan_pinning,
    remembered_pin_budget,
    rule_for,
)
from offload.pinning.pin_probe import ProbeResult
from offload.residency_plan import ResidencyPlan, Tier
from offload.units import PAGE_BYTES, round_up_to_page
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
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=num_bytes, available=num_bytes))


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


MIB = 1 << 20
LAYER = 1_711_000_000
"""About a layer of a model of 70 billion weights in bfloat16."""


def gaps(places: tuple[int, ...], num_places: int) -> set[int]:
    following = (*places[1:], places[0] + num_places)
    return {after - place - 1 for place, after in zip(places, following, strict=True)}


@pytest.mark.parametrize("budget_bytes", [None, 60 * round_up_to_page(LAYER), 200 * GB])
def test_everything_is_pinned_if_the_budget_holds_it_to_the_byte(budget_bytes: int | None) -> None:
    plan = plan_pinning([LAYER] * 60, budget_bytes)
    assert plan.pinned_slabs == tuple(range(60)) and plan.ring_bytes == 0 and plan.num_pageable == 0
    assert plan.sentence() == "all 60 host layers (103 GB) are pinned"


def test_one_byte_less_and_a_ring_takes_the_place_of_some_layers() -> None:
    plan = plan_pinning([LAYER] * 60, 60 * round_up_to_page(LAYER) - 1)
    assert (plan.num_stages, plan.stage_bytes) == (2, round_up_to_page(LAYER))
    assert len(plan.pinned_slabs) == 57  # 59 slabs would fit, two of which are the ring's


def test_the_sentence_says_what_and_why() -> None:
    plan = plan_pinning([LAYER] * 60, 75_300 * 10**6)
    assert plan.sentence() == (
        "42 of 60 host layers (71.9 GB of 103 GB) are pinned, the driver grants no more; "
        "the other 18 go through a pinned ring of 2 x 1.71 GB filled by copy threads"
    )


@pytest.mark.parametrize("num_wanted", range(1, 57))
def test_pinned_layers_are_spread_evenly(num_wanted: int) -> None:
    """A run of pageable layers would have the copy threads work without pause, and then rest."""
    size = round_up_to_page(LAYER)
    plan = plan_pinning([LAYER] * 60, (num_wanted + 2) * size, min_stage_bytes=LAYER)
    assert len(plan.pinned_slabs) == num_wanted
    assert max(gaps(plan.pinned_slabs, 60)) - min(gaps(plan.pinned_slabs, 60)) <= 1


def test_a_small_budget_cuts_the_stages_so_that_layers_get_most_of_it() -> None:
    plan = plan_pinning([LAYER] * 60, 4 * GB)
    assert plan.pinned_slabs == (30,)
    assert plan.stage_bytes == round_up_to_page(-(-LAYER // 3)) and plan.num_stages == 4


def test_what_holds_no_layer_becomes_a_ring() -> None:
    """The usual case of WSL2."""
    plan = plan_pinning([LAYER] * 60, 800 * MIB)
    assert plan.pinned_slabs == () and plan.num_stages == MAX_STAGES
    assert MIN_STAGE_BYTES < plan.stage_bytes < LAYER and plan.ring_bytes <= 800 * MIB
    assert plan.sentence().endswith(
        "0 of 60 host layers (0 B of 103 GB) are pinned, the driver grants no more; "
        "all of them go through a pinned ring of 4 x 107 MB filled by copy threads"
    )


def test_whole_stages_can_be_demanded() -> None:
    plan = plan_pinning([LAYER] * 60, 4 * GB, min_stage_bytes=LAYER)
    assert (plan.num_stages, plan.stage_bytes, plan.pinned_slabs) == (2, round_up_to_page(LAYER), ())
    assert plan_pinning([LAYER] * 60, 3 * GB, min_stage_bytes=LAYER).ring_bytes == 0


@pytest.mark.parametrize("budget_bytes", [0, 2 * MIN_STAGE_BYTES - 1])
def test_a_budget_too_small_for_a_ring_leaves_pageable_memory_and_says_so(budget_bytes: int) -> None:
    plan = plan_pinning([LAYER] * 60, budget_bytes)
    assert plan.pinned_slabs == () and plan.num_stages == plan.stage_bytes == 0
    assert plan.sentence().endswith(
        "all of them go through pageable memory, which the device cannot fetch from by itself"
    )


def test_disk_layers_need_a_ring_even_if_all_host_layers_are_pinned() -> None:
    plan = plan_pinning([LAYER] * 40, None, disk_slab_sizes=[LAYER // 2] * 20)
    assert plan.num_pageable == 0 and (plan.num_stages, plan.stage_bytes) == (2, round_up_to_page(LAYER // 2))
    assert plan.sentence() == (
        "all 40 host layers (68.4 GB) are pinned; "
        "20 disk layers go through a pinned ring of 2 x 856 MB filled by copy threads"
    )


def test_disk_and_pageable_layers_share_one_ring() -> None:
    plan = plan_pinning([LAYER] * 60, 50 * GB, disk_slab_sizes=[LAYER])
    assert plan.sentence().endswith("copy threads; 1 disk layer goes the same way")
    assert plan.pinned_slab_bytes + plan.ring_bytes <= 50 * GB


def test_only_disk_layers() -> None:
    plan = plan_pinning([], 800 * MIB, disk_slab_sizes=[LAYER] * 3)
    assert plan.sentence() == "3 disk layers go through a pinned ring of 2 x 107 MB filled by copy threads"


def test_no_layers_need_nothing() -> None:
    assert plan_pinning([], 0) == PinningPlan((), (), 0, 0, num_disk_layers=0, cause="the driver grants no more")
    assert plan_pinning([], 0).sentence() == "no layer streams, so nothing has to be pinned"


def test_a_single_layer_left_over_reads_well() -> None:
    plan = plan_pinning([MIB] * 5, 5 * MIB - 1).with_outcome([0, 1, 2, 3], refused=None, is_ring_pinned=True)
    assert "; the other 1 goes through a pinned ring of" in plan.sentence()


def test_the_outcome_of_loading_replaces_what_was_hoped_for() -> None:
    """With no limit known no ring was planned, and after a refusal none can be pinned."""
    hoped = plan_pinning([LAYER] * 60, None)
    refused = "the driver pinned 12.0 GB of host memory and then no more (error 2, out of memory)"
    plan = hoped.with_outcome(range(7), refused=refused, is_ring_pinned=False)
    assert plan.pinned_slabs == tuple(range(7)) and plan.ring_bytes == 0
    assert plan.sentence() == (
        f"7 of 60 host layers (12.0 GB of 103 GB) are pinned, {refused}; "
        "the other 53 go through pageable memory, which the device cannot fetch from by itself"
    )
    kept = plan_pinning([LAYER] * 60, 50 * GB)
    assert kept.with_outcome(kept.pinned_slabs, refused=None, is_ring_pinned=True) == kept


@pytest.mark.parametrize("seed", range(300))
def test_random_plans_keep_to_the_budget_and_leave_nothing_that_would_fit(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([rng.randrange(1, 64 * MIB), 20 * MIB]) for _ in range(rng.randrange(0, 20))]
    disk = [rng.randrange(1, 64 * MIB) for _ in range(rng.choice([0, 0, 3]))]
    budget = rng.randrange(0, max(2, 2 * sum(sizes) + 64 * MIB))
    plan = plan_pinning(sizes, budget, disk_slab_sizes=disk)
    assert plan.slab_sizes == tuple(round_up_to_page(size) for size in sizes)
    assert plan.pinned_slab_bytes + plan.ring_bytes <= budget
    assert plan.stage_bytes % PAGE_BYTES == 0 and plan.stage_bytes <= round_up_to_page(max([*sizes, *disk], default=0))
    assert plan.num_stages in (0, 2, 3, 4) and (plan.num_stages == 0) == (plan.stage_bytes == 0)
    left = budget - plan.pinned_slab_bytes - 2 * plan.stage_bytes
    unpinned = [size for place, size in enumerate(plan.slab_sizes) if place not in plan.pinned_slabs]
    assert all(size > left for size in unpinned)
    if sum(plan.slab_sizes) <= budget and not disk:
        assert not unpinned and plan.num_stages == 0
    if unpinned or disk:
        largest = max(*unpinned, *map(round_up_to_page, disk), 0, 0)
        assert plan.num_stages or budget < 2 * min(MIN_STAGE_BYTES, round_up_to_page(max([*sizes, *disk], default=0)))
        assert plan.stage_bytes == 0 or plan.stage_bytes >= min(MIN_STAGE_BYTES, largest)


META = torch.device("meta", 0)
H, D, R = Tier.HOST, Tier.DISK, Tier.RESIDENT


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 8 GB, whose driver is asked on WSL2."""
    monkeypatch.setattr(
        "offload.pinning.pin_budget.identify_device", lambda device: DeviceIdentity("meta", "Card", "1.0")
    )
    monkeypatch.setattr("offload.pinning.pin_budget.device_memory", lambda device: DeviceMemory(6 * GB, 8 * GB))
    monkeypatch.setattr("offload.pinning.pin_budget.detect_platform", lambda: Platform.WSL2)


def grant(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> list[int]:
    """A probe that grants so much before it is refused; the list counts how often it was asked."""
    asked: list[int] = []

    def probe(driver: str, *, limit_bytes: int) -> ProbeResult:
        asked.append(limit_bytes)
        return ProbeResult(num_bytes, PinBudgetSource.REFUSED)

    monkeypatch.setattr("offload.pinning.pin_budget.probe_pin_budget", probe)
    return asked


def test_the_driver_is_asked_once_and_its_answer_remembered(
    card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = grant(monkeypatch, GB)
    assert find_pin_budget(META, tmp_path).num_bytes == 800_000_000
    assert find_pin_budget(META, tmp_path).num_bytes == 800_000_000
    assert len(asked) == 1


def test_without_a_folder_nothing_is_remembered(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = grant(monkeypatch, GB)
    for _ in range(2):
        find_pin_budget(META, None)
    assert len(asked) == 2


def test_a_probe_that_cannot_begin_leaves_nothing_pinned(
    card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(driver: str, *, limit_bytes: int) -> ProbeResult:
        raise LinkError("no process can be started")

    monkeypatch.setattr("offload.pinning.pin_budget.probe_pin_budget", fail)
    assert find_pin_budget(META, tmp_path) == PinBudget(0, PinBudgetSource.CRASHED)


def plan_of(monkeypatch: pytest.MonkeyPatch, budget: int | None, platform: Platform, device_bytes: int) -> list[int]:
    monkeypatch.setattr(
        "offload.pinning.pin_budget.find_pin_budget", lambda *_, **__: PinBudget(budget, PinBudgetSource.GRANTED)
    )
    monkeypatch.setattr("offload.pinning.pin_budget.detect_platform", lambda: platform)
    residency = ResidencyPlan((H, R, H, D, H, H), (GB,) * 6, num_slots=2)
    plan, _ = plan_pinned_layers(META, residency, device_bytes=device_bytes, state_folder=None)
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
    _, budget = plan_pinned_layers(META, residency, device_bytes=0, state_folder=state_folder)
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
        find_pin_budget(META, tmp_path)
