"""What the platforms and the driver allow, remembered for as long as it is true; and which layers get it.

Everything pinned, or a part beside a ring, or a ring alone: within the budget, nothing left that would fit.
"""

import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given, strategies

from offload.device import DeviceMemory
from offload.errors import LinkError
from offload.pinning import pin_budget
from offload.pinning.pin_budget import (
    PinningPlan,
    describe_pinning,
    detect_platform,
    find_pin_budget,
    pass_cost,
    plan_pinned_layers,
    plan_pinning,
)
from offload.pinning.pin_probe import PinBudget
from offload.residency_plan import ResidencyPlan, Tier
from offload.stage_ring import LEAST_STAGE_BYTES, StageRing, plan_stages
from offload.units import round_up_to_page
from profiles.errors import ProfileError
from profiles.machine_profile import DeviceIdentity, PinBudgetSource
from profiles.profile_store import load_machine_profile, profile_path, save_profile
from tests.support.profile_factory import DEVICE, machine_profile

GB = 10**9


@pytest.mark.parametrize(
    ("system", "release", "expected"),
    [
        ("Linux", "6.8.0-45-generic", "Linux"),
        ("Linux", "5.15.153.1-microsoft-standard-WSL2", "WSL2"),
        ("Linux", "4.4.0-19041-Microsoft", "WSL2"),
        ("Linux", "", "Linux"),
        ("Windows", "11", "Windows"),
        ("Darwin", "24.1.0", "Darwin"),
        ("FreeBSD", "14.1-RELEASE", "FreeBSD"),
    ],
)
def test_the_platform_is_read_from_system_and_kernel(
    system: str, release: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert detect_platform() == expected


class Probe:
    """Answers in the driver's place, and counts how often it is asked."""

    def __init__(self, result: PinBudget | Exception) -> None:
        self.result = result
        self.num_calls = 0

    def __call__(self, device: torch.device) -> PinBudget:
        self.num_calls += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


REFUSED = PinBudget(8 * GB, PinBudgetSource.REFUSED)
GRANTED = PinBudget(10 * GB, PinBudgetSource.GRANTED)
META = torch.device("meta", 0)


class Machine:
    """A machine whose parts a test chooses: at first on Windows, with 64 GB, and a card of 16 GB."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.set("Windows")
        self.identify(DEVICE)
        self.set_memory(host=64 * GB, device=16 * GB)

    def set(self, platform: str) -> None:
        self._patch.setattr(pin_budget, "detect_platform", lambda: platform)

    def identify(self, device: DeviceIdentity) -> None:
        self._patch.setattr(pin_budget, "identify_device", lambda _: device)

    def set_memory(self, *, host: int, device: int) -> None:
        self._patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=host, available=host))
        self._patch.setattr(pin_budget, "device_memory", lambda _: DeviceMemory(device, device))

    def ask(self, folder: Path | None, probe: Probe, *, wanted_bytes: int = 0) -> PinBudget:
        self._patch.setattr(pin_budget, "probe_pin_budget", probe)
        return find_pin_budget(META, folder, wanted_bytes=wanted_bytes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_the_driver_is_probed_once_and_then_remembered(machine: Machine, tmp_path: Path) -> None:
    probe = Probe(REFUSED)
    expected = PinBudget(8 * GB, PinBudgetSource.REFUSED)
    assert [machine.ask(tmp_path, probe) for _ in range(3)] == [expected] * 3
    assert probe.num_calls == 1
    stored = load_machine_profile(tmp_path, DEVICE)
    assert stored is not None and stored.measured_at == date.today()
    assert (stored.device_memory_bytes, stored.host_memory_bytes) == (16 * GB, 64 * GB)


def test_without_a_folder_nothing_is_remembered(machine: Machine) -> None:
    probe = Probe(REFUSED)
    assert [machine.ask(None, probe).num_bytes for _ in range(2)] == [8 * GB] * 2
    assert probe.num_calls == 2


def test_native_linux_has_no_limit_and_needs_neither_probe_nor_store(machine: Machine, tmp_path: Path) -> None:
    probe = Probe(REFUSED)
    machine.set("Linux")
    assert machine.ask(tmp_path, probe) == PinBudget(None, PinBudgetSource.NOT_LIMITED)
    assert probe.num_calls == 0 and list(tmp_path.iterdir()) == []


def test_another_driver_is_probed_anew(machine: Machine, tmp_path: Path) -> None:
    machine.ask(tmp_path, Probe(REFUSED))
    newer = replace(DEVICE, driver_version="561.00")
    machine.identify(newer)
    assert machine.ask(tmp_path, Probe(GRANTED)) == PinBudget(10 * GB, PinBudgetSource.GRANTED)
    assert load_machine_profile(tmp_path, newer) is not None


@pytest.mark.parametrize(("host_memory_bytes", "num_probes"), [(65 * GB, 1), (128 * GB, 2), (32 * GB, 2)])
def test_a_machine_with_other_memory_is_probed_anew(
    machine: Machine, tmp_path: Path, host_memory_bytes: int, num_probes: int
) -> None:
    probe = Probe(REFUSED)
    machine.ask(tmp_path, probe)
    machine.set_memory(host=host_memory_bytes, device=16 * GB)
    for _ in range(2):
        machine.ask(tmp_path, probe)
    assert probe.num_calls == num_probes


@pytest.mark.parametrize(
    ("first", "wanted_bytes", "num_probes"), [(GRANTED, 10 * GB, 1), (GRANTED, 11 * GB, 2), (REFUSED, 11 * GB, 1)]
)
def test_a_probe_cut_short_by_the_memory_of_its_day_is_repeated_when_more_is_wanted(
    machine: Machine, tmp_path: Path, first: PinBudget, wanted_bytes: int, num_probes: int
) -> None:
    probe = Probe(first)
    machine.ask(tmp_path, probe)
    machine.ask(tmp_path, probe, wanted_bytes=wanted_bytes)
    assert probe.num_calls == num_probes


def test_a_profile_without_a_budget_gets_one_and_keeps_its_other_figures(machine: Machine, tmp_path: Path) -> None:
    measured = machine_profile(
        pin_budget_bytes=None, pin_budget_source=PinBudgetSource.NOT_MEASURED, link_bytes_per_second=25e9
    )
    save_profile(tmp_path, measured)
    machine.ask(tmp_path, Probe(REFUSED))
    stored = load_machine_profile(tmp_path, DEVICE)
    assert stored is not None and stored.link_bytes_per_second == 25e9 and stored.pin_budget_bytes == 8 * GB


def test_a_probe_that_cannot_begin_leaves_nothing_pinned_and_is_not_remembered(
    machine: Machine, tmp_path: Path
) -> None:
    budget = machine.ask(tmp_path, Probe(LinkError("the device does not open")))
    assert budget == PinBudget(0, PinBudgetSource.CRASHED)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_profile_is_refused_and_not_overwritten(machine: Machine, tmp_path: Path) -> None:
    """It may be that of a newer version, with figures that took minutes to measure."""
    path = profile_path(tmp_path, DEVICE)
    path.write_text('{"schema_version": 99}')
    probe = Probe(REFUSED)
    with pytest.raises(ProfileError, match="schema_version is 99"):
        machine.ask(tmp_path, probe)
    assert path.read_text() == '{"schema_version": 99}' and probe.num_calls == 0


def test_a_store_that_cannot_be_written_costs_only_time(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert machine.ask(tmp_path / "file" / "folder", Probe(REFUSED)).num_bytes == 8 * GB
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
QUARTER = round_up_to_page(-(-round_up_to_page(LAYER) // 4))


def gaps(places: tuple[int, ...], num_places: int) -> set[int]:
    following = (*places[1:], places[0] + num_places)
    return {after - place - 1 for place, after in zip(places, following, strict=True)}


def sentence(plan: PinningPlan, sizes: Sequence[int], *, num_disk_layers: int = 0, refused: str | None = None) -> str:
    """What is said if all went as planned."""
    rounded = [round_up_to_page(size) for size in sizes]
    return describe_pinning(
        rounded,
        plan.pinned_slabs,
        ring=plan.ring,
        num_disk_layers=num_disk_layers,
        refused=refused,
    )


@pytest.mark.parametrize("budget_bytes", [None, 60 * round_up_to_page(LAYER), 200 * GB])
def test_everything_is_pinned_if_the_budget_holds_it_to_the_byte(budget_bytes: int | None) -> None:
    plan = plan_pinning([LAYER] * 60, budget_bytes)
    assert set(plan.pinned_slabs) == set(range(60)) and plan.ring == StageRing()
    assert sentence(plan, [LAYER] * 60) == "all 60 host layers (103 GB) are pinned"


def test_one_byte_less_and_a_ring_takes_the_place_of_some_layers() -> None:
    plan = plan_pinning([LAYER] * 60, 60 * round_up_to_page(LAYER) - 1)
    assert plan.ring == StageRing(4, QUARTER)
    assert len(plan.pinned_slabs) == 58  # 59 slabs would fit, one of which is the ring's


def test_the_sentence_says_what_and_why() -> None:
    plan = plan_pinning([LAYER] * 60, 75_300 * 10**6)
    assert sentence(plan, [LAYER] * 60) == (
        "43 of 60 host layers (73.6 GB of 103 GB) are pinned, the driver grants no more; "
        "the other 17 go through a pinned ring of 4 x 428 MB filled by copy threads"
    )


def test_pinned_layers_are_spread_evenly() -> None:
    """A run of pageable layers would have the copy threads work without pause, and then rest."""
    for num_wanted in range(1, 57):
        budget_bytes = num_wanted * round_up_to_page(LAYER) + 4 * QUARTER
        pinned = tuple(sorted(plan_pinning([LAYER] * 60, budget_bytes).pinned_slabs))
        assert len(pinned) == num_wanted
        assert max(gaps(pinned, 60)) - min(gaps(pinned, 60)) <= 1


def test_what_holds_no_layer_beside_it_becomes_a_ring_alone() -> None:
    plan = plan_pinning([LAYER] * 60, 3 * GB)
    assert (plan.ring, len(plan.pinned_slabs)) == (StageRing(4, QUARTER), 0)
    assert sentence(plan, [LAYER] * 60) == (
        "0 of 60 host layers (0 B of 103 GB) are pinned, the driver grants no more; "
        "all of them go through a pinned ring of 4 x 428 MB filled by copy threads"
    )


@pytest.mark.parametrize("budget_bytes", [0, 32 * MIB - 1])
def test_a_budget_too_small_for_a_ring_leaves_pageable_memory_and_says_so(budget_bytes: int) -> None:
    plan = plan_pinning([LAYER, 2 * LAYER], budget_bytes, disk_slab_sizes=[LAYER])
    assert plan.ring == StageRing()
    assert sentence(plan, [LAYER, 2 * LAYER], num_disk_layers=1).endswith(
        "through pageable memory, which the device cannot fetch from by itself; 1 disk layer goes the same way"
    )


def test_disk_layers_need_a_ring_even_if_all_host_layers_are_pinned() -> None:
    plan = plan_pinning([LAYER] * 40, None, disk_slab_sizes=[LAYER // 2] * 20)
    assert (len(plan.pinned_slabs), plan.ring) == (40, StageRing(4, round_up_to_page(LAYER // 8)))
    assert sentence(plan, [LAYER] * 40, num_disk_layers=20) == (
        "all 40 host layers (68.4 GB) are pinned; "
        "20 disk layers go through a pinned ring of 4 x 214 MB filled by copy threads"
    )


def test_disk_and_pageable_layers_share_one_ring() -> None:
    plan = plan_pinning([LAYER] * 60, 50 * GB, disk_slab_sizes=[LAYER])
    said = sentence(plan, [LAYER] * 60, num_disk_layers=1)
    assert said.endswith("copy threads; 1 disk layer goes the same way")
    assert len(plan.pinned_slabs) * round_up_to_page(LAYER) + plan.ring.num_bytes <= 50 * GB


def test_only_disk_layers() -> None:
    plan = plan_pinning([], 4 * GB, disk_slab_sizes=[LAYER] * 3)
    expected = "3 disk layers go through a pinned ring of 4 x 428 MB filled by copy threads"
    assert sentence(plan, [], num_disk_layers=3) == expected


def test_no_layers_need_nothing() -> None:
    plan = plan_pinning([], 0)
    assert (len(plan.pinned_slabs), plan.ring) == (0, StageRing())
    assert sentence(plan, []) == "no layer streams, so nothing has to be pinned"


def test_a_single_layer_left_over_reads_well() -> None:
    said = describe_pinning([MIB] * 5, [0, 1, 2, 3], ring=StageRing(2, MIB), num_disk_layers=0)
    assert "; the other 1 goes through a pinned ring of" in said


def test_a_refusal_is_the_cause_that_is_told() -> None:
    refused = "the driver pinned 12.0 GB of host memory and then no more (error 2, out of memory)"
    assert describe_pinning([LAYER] * 60, range(7), ring=StageRing(), num_disk_layers=0, refused=refused) == (
        f"7 of 60 host layers (12.0 GB of 103 GB) are pinned, {refused}; "
        "the other 53 go through pageable memory, which the device cannot fetch from by itself"
    )


SIZES = strategies.lists(strategies.integers(1, 64 * MIB) | strategies.just(20 * MIB), max_size=20)


@given(SIZES, strategies.lists(strategies.integers(1, 64 * MIB), max_size=3), strategies.floats(0, 2))
def test_any_plan_keeps_to_the_budget_and_leaves_nothing_that_would_fit(
    sizes: list[int], disk: list[int], share: float
) -> None:
    budget = round(share * (sum(sizes) + 64 * MIB))
    plan = plan_pinning(sizes, budget, disk_slab_sizes=disk)
    largest = round_up_to_page(max([*sizes, *disk], default=0))
    rounded = [round_up_to_page(size) for size in sizes]
    left = budget - sum(rounded[place] for place in plan.pinned_slabs) - plan.ring.num_bytes
    assert left >= 0
    unpinned = [size for place, size in enumerate(rounded) if place not in plan.pinned_slabs]
    assert all(size > left for size in unpinned)
    if sum(rounded) <= budget and not disk:
        assert not unpinned and plan.ring == StageRing()
    if unpinned or disk:
        assert plan.ring.num_stages or budget < 2 * min(largest, LEAST_STAGE_BYTES)
        assert plan.ring in (plan_stages(largest, budget), plan_stages(max(disk, default=0), budget))


H, D, R = Tier.HOST, Tier.DISK, Tier.RESIDENT


def plan_of(machine: Machine, budget: PinBudget, device_bytes: int = 0) -> PinningPlan:
    machine.ask(None, Probe(budget))
    residency = ResidencyPlan((H, R, H, D, H, H), (GB,) * 6, num_slots=2)
    return plan_pinned_layers(META, [(residency, device_bytes)], state_folder=None)[1]


def test_without_a_limit_every_host_layer_is_pinned(machine: Machine) -> None:
    machine.set("Linux")
    plan = plan_of(machine, REFUSED, device_bytes=20 * GB)
    assert (len(plan.pinned_slabs), plan.ring.num_stages, plan.budget_bytes) == (4, 4, None)


def test_a_limit_leaves_a_ring_and_what_fits_beside_it(machine: Machine) -> None:
    machine.set("WSL2")
    plan = plan_of(machine, PinBudget(4 * GB + 100_000, PinBudgetSource.GRANTED), device_bytes=20 * GB)
    assert (len(plan.pinned_slabs), plan.ring.num_stages, plan.budget_bytes) == (3, 4, 4 * GB + 100_000)


@pytest.mark.parametrize(
    ("granted_bytes", "in_use", "expected"),
    [
        # The two figures reported from a 3090: 8 GB granted beside 15.4, 2.8 GB beside 21.5.
        (28 * GB, 15_400_000_000, 8_600_000_000),
        (28 * GB, 21_500_000_000, 2_500_000_000),
        (2 * GB, 15_400_000_000, 2 * GB),
        (28 * GB, 30 * GB, 0),
    ],
)
def test_on_windows_device_and_pinned_memory_share_the_capacity(
    machine: Machine, granted_bytes: int, in_use: int, expected: int
) -> None:
    machine.set_memory(host=64 * GB, device=24 * GB)
    assert plan_of(machine, PinBudget(granted_bytes, PinBudgetSource.GRANTED), in_use).budget_bytes == expected


NF4 = 441_000_000


def traded(left_bytes: int, *, num_layers: int = 80, num_residents: int = 20) -> tuple[int, PinningPlan]:
    """What is chosen where 20 of 80 layers in NF4 are resident, and so much of a card of 24 GB is left beside them."""
    choices = []
    for number in range(9):
        residents = {place * num_layers // (num_residents - number) for place in range(num_residents - number)}
        tiers = tuple(R if index in residents else H for index in range(num_layers))
        choices.append((ResidencyPlan(tiers, (NF4,) * num_layers, num_slots=2), 24 * GB - left_bytes - number * NF4))
    return plan_pinned_layers(META, choices, state_folder=None)


@pytest.mark.parametrize(
    ("left_bytes", "num_given_up", "stage_bytes"),
    [
        (0, 1, NF4 // 4),  # one resident is a ring, which four times the rate is worth
        (30_000_000, 1, NF4 // 4),
        (100_000_000, 1, NF4 // 4),  # four stages of 25 MB would be a fifth slower
        (450_000_000, 0, NF4 // 4),
        (900_000_000, 0, NF4 // 4),  # 3 % and 0.2 GB are left on any card of 24 GB
        (400_000_000, 0, 100_000_000),  # stages of 100 MB cost less than a resident
    ],
)
def test_a_resident_is_given_up_for_the_ring_that_all_others_pass_through(
    machine: Machine, left_bytes: int, num_given_up: int, stage_bytes: int
) -> None:
    machine.ask(None, Probe(PinBudget(8 * GB, PinBudgetSource.GRANTED)))
    machine.set_memory(host=64 * GB, device=24 * GB)
    best, plan = traded(left_bytes)
    assert best == num_given_up
    assert plan.ring.num_stages == 4 and plan.ring.stage_bytes == pytest.approx(stage_bytes, rel=0.01)


def test_no_resident_is_given_up_where_nothing_is_gained(machine: Machine) -> None:
    machine.set_memory(host=64 * GB, device=24 * GB)
    machine.ask(None, Probe(PinBudget(0, PinBudgetSource.CRASHED)))  # the driver pins nothing at all
    assert traded(30_000_000)[0] == 0
    machine.ask(None, Probe(PinBudget(8 * GB, PinBudgetSource.GRANTED)))
    machine.set("WSL2")
    assert traded(0)[0] == 0


def test_a_pass_without_a_ring_costs_four_times_as_much() -> None:
    residency = ResidencyPlan((H,) * 60, (NF4,) * 60, num_slots=2)
    bare, ringed = (pass_cost(residency, plan_pinning([NF4] * 60, budget)) for budget in (0, NF4 + 16_384))
    assert bare == 4 * 60 * NF4 and 3.5 < bare / ringed < 4.0
    assert pass_cost(residency, plan_pinning([NF4] * 60, None)) == 60 * NF4


VERSION_1 = {
    "schema_version": 1,
    "device": asdict(DEVICE),
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
    return plan_pinned_layers(META, [(residency, 0)], state_folder=state_folder)[1].budget_bytes


def test_a_budget_of_an_older_version_is_probed_anew_and_replaced(machine: Machine, tmp_path: Path) -> None:
    probe = Probe(REFUSED)
    machine.ask(None, probe)
    profile_path(tmp_path, DEVICE).write_text(json.dumps(VERSION_1))
    assert [budget_of_a_session(tmp_path) for _ in range(2)] == [8 * GB] * 2
    assert probe.num_calls == 2
    stored = load_machine_profile(tmp_path, DEVICE)
    assert stored is not None and stored.pin_budget_bytes == 8 * GB


@pytest.mark.parametrize("content", [json.dumps({**VERSION_1, "schema_version": 99}), "{", ""])
def test_a_session_starts_beside_a_profile_that_cannot_be_used_and_leaves_it_alone(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """A newer program's figures may have taken minutes to measure; whoever asks for the budget alone is told."""
    probe = Probe(REFUSED)
    machine.ask(None, probe)
    path = profile_path(tmp_path, DEVICE)
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert budget_of_a_session(tmp_path) == 8 * GB
    assert probe.num_calls == 2 and path.read_text() == content
    assert str(path) in caplog.text and "delete it to measure again" in caplog.text
    with pytest.raises(ProfileError, match="is not a usable machine profile"):
        find_pin_budget(META, tmp_path)
