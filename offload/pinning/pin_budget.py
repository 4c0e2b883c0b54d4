"""How much host memory may be pinned here, and which layers get it.

The platforms' habits are a table, with the reports that they come from. Where one limits pinning, the driver is probed
once and the figure kept in the machine profile, until device, driver, memory or the profile's schema change.

Pinned layers are fetched by the device itself. The rest, and layers on disk, pass through a few pinned stages that
threads fill; this ring must be allocated and pinned before any layer, because a driver that has refused once pins
nothing more.
"""

import logging
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import Enum
from itertools import accumulate
from pathlib import Path

import psutil
import torch

from offload.device import device_memory, identify_device
from offload.errors import LinkError
from offload.pinning.pin_probe import ProbeResult, probe_limit_bytes, probe_pin_budget
from offload.residency_plan import ResidencyPlan, Tier, spread_evenly
from offload.units import format_bytes, round_up_to_page
from profiles.errors import ProfileError, StaleProfileError
from profiles.machine_profile import DeviceIdentity, MachineProfile, PinBudgetSource
from profiles.profile_store import load_machine_profile, save_machine_profile

logger = logging.getLogger(__name__)

_PROC_VERSION = Path("/proc/version")
# Firmware and kernel updates move the total by a few per cent; another module moves it by more.
_SAME_MEMORY_WITHIN = 0.05
MIN_STAGES = 2
"""One is filled while the other is fetched."""
MAX_STAGES = 4
MIN_STAGE_BYTES = 16 << 20
"""Smaller pieces cost more in calls than they save in memory."""
_RING_SHARE = 4
"""Stages are cut until the ring takes about this fraction of the budget: the layers make better use of the rest."""


class Platform(Enum):
    """Systems that differ in how they pin memory."""

    LINUX = "Linux"
    WINDOWS = "Windows"
    WSL2 = "WSL2"
    OTHER = "another system"


@dataclass(frozen=True, slots=True)
class PlatformRule:
    """What is known about pinning on one platform."""

    platform: Platform
    """Which."""
    is_probed: bool
    """Whether the driver has a limit of its own, below the memory of the machine, that has to be found out."""
    expected_bytes: tuple[int, int] | None
    """The range that others found, for people to compare with; None where there is nothing to compare."""
    shares_device_capacity: bool
    """Whether device memory in use and pinned host memory together stay at about the capacity of the device."""
    source: str
    """Where this comes from."""


PLATFORM_RULES = (
    PlatformRule(
        Platform.LINUX,
        is_probed=False,
        expected_bytes=None,
        shares_device_capacity=False,
        source="the driver pins as much as there is memory: neither RLIMIT_MEMLOCK nor a fixed cap binds it, and a "
        "control group charges pinned pages like any others",
    ),
    PlatformRule(
        Platform.WINDOWS,
        is_probed=True,
        expected_bytes=(500_000_000, 4_000_000_000),
        shares_device_capacity=True,
        source="GenerelSchwerz/llama.cpp #84: a bare process pinned 28 GB of 64, a loaded server 2 to 4 GB in all; "
        "ashalliants/ninfer-3090 #45: with 15.4 of 24 GB in use 8 GB were granted, with 21.5 GB in use 2.8 GB, and one "
        "failure poisoned every later call",
    ),
    PlatformRule(
        Platform.WSL2,
        is_probed=True,
        expected_bytes=(3 << 28, 1 << 30),
        shares_device_capacity=False,
        source="FreeToken #233: 0.75 to 1.0 GiB in all of 62.8 GiB; microsoft/WSL #14078: 500 MB in Docker",
    ),
    PlatformRule(
        Platform.OTHER,
        is_probed=True,
        expected_bytes=None,
        shares_device_capacity=False,
        source="nothing is known, so the driver is asked",
    ),
)


def detect_platform(*, system: str = sys.platform, proc_version: str | None = None) -> Platform:
    """Which platform this is; `proc_version` stands for the text of /proc/version, which is read if it is None."""
    if system == "win32":
        return Platform.WINDOWS
    if system != "linux":
        return Platform.OTHER
    if proc_version is None:
        try:
            proc_version = _PROC_VERSION.read_text(encoding="utf-8", errors="replace")
        except OSError:
            proc_version = ""
    return Platform.WSL2 if "microsoft" in proc_version.lower() else Platform.LINUX


def rule_for(platform: Platform) -> PlatformRule:
    """The platform's line of the table."""
    return next(rule for rule in PLATFORM_RULES if rule.platform is platform)


@dataclass(frozen=True, slots=True)
class PinBudget:
    """How much host memory may be pinned, and how that is known."""

    num_bytes: int | None
    """In all; None where the platform sets no limit."""
    source: PinBudgetSource
    """How it was found."""

    def explain(self) -> str:
        """One sentence for people, without its full stop."""
        if self.num_bytes is None:
            return "this system limits pinned host memory only by what the machine has"
        amount = format_bytes(self.num_bytes)
        if self.source is PinBudgetSource.GRANTED:
            return f"{amount} of host memory can be pinned: all that was asked for"
        endings = {
            PinBudgetSource.REFUSED: "the driver refused more",
            PinBudgetSource.CRASHED: "the driver crashed at more",
            PinBudgetSource.TIMED_OUT: "the driver did not answer in time at more",
        }
        return f"{amount} of host memory can be pinned: four fifths of what was granted before {endings[self.source]}"


def budget_beside(
    budget_bytes: int | None, rule: PlatformRule, *, device_memory_bytes: int, device_bytes_in_use: int
) -> int | None:
    """The part of a budget that is left once `device_bytes_in_use` are allocated on the device; None: no limit."""
    if not rule.shares_device_capacity:
        return budget_bytes
    shared_bytes = max(0, device_memory_bytes - device_bytes_in_use)
    return shared_bytes if budget_bytes is None else min(budget_bytes, shared_bytes)


def remembered_pin_budget(
    device: DeviceIdentity,
    store_folder: Path,
    *,
    probe: Callable[[], ProbeResult],
    device_memory_bytes: int,
    wanted_bytes: int = 0,
    platform: Platform | None = None,
) -> PinBudget:
    """The stored budget of this device, driver and machine; else what `probe` finds, which is stored.

    Where the platform sets no limit, neither store nor probe is asked. A stored budget below `wanted_bytes` that met no
    refusal was cut short by the memory that was free that day, so it is probed again. A store that cannot be written
    costs only the next start's time.

    Raises:
        ProfileError: the stored profile is damaged or of a newer schema version; it is left as it is.
        LinkError, PassCancelledError: from `probe`; nothing is stored.
    """
    if not rule_for(platform or detect_platform()).is_probed:
        return PinBudget(None, PinBudgetSource.NOT_LIMITED)
    host_memory_bytes = int(psutil.virtual_memory().total)
    stored = _load(device, store_folder, host_memory_bytes)
    if stored is not None and stored.pin_budget_bytes is not None:
        is_cut_short = stored.pin_budget_source is PinBudgetSource.GRANTED and stored.pin_budget_bytes < wanted_bytes
        if not is_cut_short:
            return PinBudget(stored.pin_budget_bytes, stored.pin_budget_source)
    result = probe()
    found = stored or MachineProfile(
        device=device,
        device_memory_bytes=device_memory_bytes,
        host_memory_bytes=host_memory_bytes,
        pin_budget_bytes=None,
        pin_budget_source=PinBudgetSource.NOT_MEASURED,
        measured_at=date.today(),
    )
    found = replace(
        found, pin_budget_bytes=result.budget_bytes, pin_budget_source=result.source, measured_at=date.today()
    )
    try:
        save_machine_profile(store_folder, found)
    except ProfileError as error:
        logger.warning("the pinned memory budget will be probed again next time: %s", error)
    return PinBudget(result.budget_bytes, result.source)


def _load(device: DeviceIdentity, folder: Path, host_memory_bytes: int) -> MachineProfile | None:
    """What is stored and still true of this machine."""
    try:
        stored = load_machine_profile(folder, device)
    except StaleProfileError as error:
        logger.info("measuring anew: %s", error)
        return None
    if stored is None:
        return None
    if abs(stored.host_memory_bytes - host_memory_bytes) > _SAME_MEMORY_WITHIN * host_memory_bytes:
        logger.info("measuring anew: the machine had %d bytes of memory", stored.host_memory_bytes)
        return None
    return stored


def find_pin_budget(device: torch.device, state_folder: Path | None, *, wanted_bytes: int = 0) -> PinBudget:
    """What may be pinned for an accelerator; a probe's answer is kept in `state_folder` (None: nowhere).

    A probe that could not even begin leaves nothing pinned: slower, but a session all the same.

    Raises:
        ProfileError: what is stored is damaged or of a newer schema version.
    """
    memory = device_memory(device)
    with tempfile.TemporaryDirectory(prefix="overstory-") as passing:
        try:
            return remembered_pin_budget(
                identify_device(device),
                Path(passing) if state_folder is None else state_folder,
                probe=lambda: probe_pin_budget(str(device), limit_bytes=probe_limit_bytes()),
                device_memory_bytes=0 if memory is None else memory.total_bytes,
                wanted_bytes=wanted_bytes,
            )
        except LinkError:
            return PinBudget(0, PinBudgetSource.CRASHED)


@dataclass(frozen=True, slots=True)
class PinningPlan:
    """Which host slabs to pin, and the ring for everything else."""

    slab_sizes: tuple[int, ...]
    """Host layers in layer order, in bytes as allocated."""
    pinned_slabs: tuple[int, ...]
    """Places in slab_sizes, ascending."""
    num_stages: int
    """Stages of the pinned ring; 0 if there is none."""
    stage_bytes: int
    """Of each stage, in whole pages; smaller than a slab if the budget is small; 0 if there is no ring."""
    num_disk_layers: int
    """Layers that are read from disk in every pass, through the same ring."""
    cause: str
    """Why not everything is pinned, for the sentence."""

    @property
    def ring_bytes(self) -> int:
        """All stages together; host memory beside the slabs."""
        return self.num_stages * self.stage_bytes

    @property
    def pinned_slab_bytes(self) -> int:
        """All pinned slabs together."""
        return sum(self.slab_sizes[place] for place in self.pinned_slabs)

    @property
    def num_pageable(self) -> int:
        """Host layers that are not pinned."""
        return len(self.slab_sizes) - len(self.pinned_slabs)

    def with_outcome(
        self, pinned_slabs: Collection[int], *, refused: str | None, is_ring_pinned: bool
    ) -> "PinningPlan":
        """The plan as it came out: what was really pinned, and why no more was (a sentence without its full stop)."""
        kept = replace(self, pinned_slabs=tuple(sorted(pinned_slabs)), cause=refused or self.cause)
        return kept if is_ring_pinned else replace(kept, num_stages=0, stage_bytes=0)

    def sentence(self) -> str:
        """What was chosen and why, for people; without its full stop."""
        parts = [part for part in (self._host_part(), self._disk_part()) if part]
        return "; ".join(parts) or "no layer streams, so nothing has to be pinned"

    def _host_part(self) -> str:
        num_slabs, num_pinned = len(self.slab_sizes), len(self.pinned_slabs)
        if num_slabs == 0:
            return ""
        whole, pinned = format_bytes(sum(self.slab_sizes)), format_bytes(self.pinned_slab_bytes)
        if num_pinned == num_slabs:
            which = "the only host layer" if num_slabs == 1 else f"all {num_slabs} host layers"
            return f"{which} ({whole}) {'is' if num_slabs == 1 else 'are'} pinned"
        rest = f"the other {self.num_pageable}" if num_pinned else "all of them"
        goes = "goes" if self.num_pageable == 1 else "go"
        begin = f"{num_pinned} of {num_slabs} host layers ({pinned} of {whole}) are pinned, {self.cause}"
        return f"{begin}; {rest} {goes} {self._way()}"

    def _disk_part(self) -> str:
        if self.num_disk_layers == 0:
            return ""
        layers = "disk layer goes" if self.num_disk_layers == 1 else "disk layers go"
        return f"{self.num_disk_layers} {layers} {'the same way' if self.num_pageable else self._way()}"

    def _way(self) -> str:
        if self.num_stages == 0:
            return "through pageable memory, which the device cannot fetch from by itself"
        return f"through a pinned ring of {self.num_stages} x {format_bytes(self.stage_bytes)} filled by copy threads"


def plan_pinning(
    slab_sizes: Sequence[int],
    budget_bytes: int | None,
    *,
    disk_slab_sizes: Sequence[int] = (),
    min_stage_bytes: int = MIN_STAGE_BYTES,
    cause: str = "the driver grants no more",
) -> PinningPlan:
    """Pin every host slab if the budget holds them; else a ring first, then as many evenly spread slabs as fit beside.

    `slab_sizes`: the host layers', in layer order; `disk_slab_sizes`: those of the layers on disk, which need a ring
    anyway. `budget_bytes`: None for no limit. The ring has 2 stages, and up to 4 if nothing else fits into what is
    left. A budget too small for two stages of `min_stage_bytes` leaves no ring.
    """
    sizes = tuple(round_up_to_page(size) for size in slab_sizes)
    disk_sizes = tuple(round_up_to_page(size) for size in disk_slab_sizes)
    pinned = tuple(range(len(sizes)))
    stage_bytes = _choose_stage_bytes(disk_sizes, budget_bytes, min_stage_bytes)
    num_stages = MIN_STAGES if stage_bytes else 0
    if budget_bytes is not None and sum(sizes) + num_stages * stage_bytes > budget_bytes:
        stage_bytes = _choose_stage_bytes(sizes + disk_sizes, budget_bytes, min_stage_bytes)
        pinned = _choose_evenly(sizes, budget_bytes - MIN_STAGES * stage_bytes)
        spare_bytes = budget_bytes - sum(sizes[place] for place in pinned)
        num_stages = min(MAX_STAGES, spare_bytes // stage_bytes) if stage_bytes else 0
    return PinningPlan(sizes, pinned, num_stages, stage_bytes, num_disk_layers=len(disk_sizes), cause=cause)


def _choose_stage_bytes(slab_sizes: Sequence[int], budget_bytes: int | None, min_stage_bytes: int) -> int:
    """A whole slab, or equal pieces of the largest where whole ones would take too much; 0 if not even those fit."""
    largest = max(slab_sizes, default=0)
    if budget_bytes is None or largest == 0:
        return largest
    smallest = min(largest, round_up_to_page(min_stage_bytes))
    if MIN_STAGES * smallest > budget_bytes:
        return 0
    wished = min(largest, max(smallest, budget_bytes // (MIN_STAGES * _RING_SHARE)))
    num_pieces = largest // wished  # rounded down and up again, pieces are never smaller than wished
    piece_bytes = round_up_to_page(-(-largest // num_pieces))
    return piece_bytes if MIN_STAGES * piece_bytes <= budget_bytes else smallest


def _choose_evenly(sizes: Sequence[int], budget_bytes: int) -> tuple[int, ...]:
    """As many evenly spread places as the budget holds, then whatever still fits."""
    most = sum(total <= budget_bytes for total in accumulate(sorted(sizes)))
    spreads = (spread_evenly(len(sizes), number) for number in range(most, -1, -1))
    chosen = set(next(places for places in spreads if sum(sizes[place] for place in places) <= budget_bytes))
    left_bytes = budget_bytes - sum(sizes[place] for place in chosen)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        if place not in chosen and sizes[place] <= left_bytes:
            chosen.add(place)
            left_bytes -= sizes[place]
    return tuple(sorted(chosen))


def plan_pinned_layers(
    device: torch.device, residency: ResidencyPlan, *, device_bytes: int, state_folder: Path | None
) -> tuple[PinningPlan, int | None]:
    """Which host layers of `residency` to pin for `device`, and the budget (None: no limit) that decided it.

    `device_bytes` is what the session will hold on the device: on Windows it counts against the same limit. Stages
    are whole layers here. A stored budget that cannot be used costs a probe at every start, not the session.
    """
    sizes = {tier: _sizes_of(residency, tier) for tier in (Tier.HOST, Tier.DISK)}
    wanted = sum(sizes[Tier.HOST])
    memory = device_memory(device)
    try:
        found = find_pin_budget(device, state_folder, wanted_bytes=wanted)
    except ProfileError as error:
        logger.warning("the pinned memory budget is probed at every start: %s", error)
        found = find_pin_budget(device, None, wanted_bytes=wanted)
    budget = budget_beside(
        found.num_bytes,
        rule_for(detect_platform()),
        device_memory_bytes=0 if memory is None else memory.total_bytes,
        device_bytes_in_use=device_bytes,
    )
    largest = max((*sizes[Tier.HOST], *sizes[Tier.DISK]), default=0)
    plan = plan_pinning(sizes[Tier.HOST], budget, disk_slab_sizes=sizes[Tier.DISK], min_stage_bytes=max(largest, 1))
    return plan, budget


def _sizes_of(residency: ResidencyPlan, wanted: Tier) -> Sequence[int]:
    return [size for size, tier in zip(residency.layer_bytes, residency.tiers, strict=True) if tier is wanted]
