"""How much host memory may be pinned here: what the platform allows, what the driver granted, what was remembered.

The platforms' habits are a table, with the reports that they come from. Where one limits pinning, the driver is probed
once and the figure kept in the machine profile, until device, driver, memory or the profile's schema change. Knows no
layers.
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from enum import Enum
from pathlib import Path

import psutil

from offload.pinning.pin_probe import ProbeResult
from offload.units import format_bytes
from profiles.errors import ProfileError, StaleProfileError
from profiles.machine_profile import DeviceIdentity, MachineProfile, PinBudgetSource
from profiles.profile_store import load_machine_profile, save_machine_profile

logger = logging.getLogger(__name__)

_PROC_VERSION = Path("/proc/version")
# Firmware and kernel updates move the total by a few per cent; another module moves it by more.
_SAME_MEMORY_WITHIN = 0.05


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
