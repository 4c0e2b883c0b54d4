"""A machine as session, plan and doctor see it: memory and budgets, links and speed, with what each figure rests on.

Made by `probes` of the machine that the program runs on, or of a built-in reference machine; imports no torch.
"""

import math
from dataclasses import dataclass

from offload.units import LinkSpeed, format_bytes
from profiles.builtin_profiles import builtin_machine
from profiles.machine_profile import DeviceIdentity, MachineProfile
from runtime.fit.need import MemoryNeed
from runtime.fit.speed import Basis, DeviceSpeed, speed_of_data_sheet

RESERVED_SHARE = 0.03
RESERVED_BYTES = 192 << 20
"""Free memory that a budget chosen by the program leaves alone: so much, and this share of it."""
ASSUMED_DISK_BYTES_PER_SECOND = 3.5e9
"""Of a machine whose disk nobody described: what the data sheets of plain PCIe 3 NVMe disks promise."""
_ENOUGH_BYTES = 1 << 50
"""Of host memory, where no source says how much there is."""


@dataclass(frozen=True, slots=True)
class Link:
    """A way of bytes to the device: how fast, and who says so."""

    speed: LinkSpeed
    basis: Basis
    source: str
    """Where the speed was found, for the user."""

    def __str__(self) -> str:
        return f"{format_bytes(self.speed.bytes_per_second)}/s {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine and one of its devices, and what the user allows of its memory."""

    name: str = "this machine"
    identity: DeviceIdentity | None = None
    """This machine's device, for what was measured on it; None for another machine."""
    host_total_bytes: int
    """Memory of the machine, or of its control group."""
    host_free_bytes: int
    """Memory that this process may still use."""
    is_host_assumed: bool = False
    """Whether nobody said how much host memory there is: then there is enough for every model."""
    group_left_bytes: int | None = None
    """What the tightest memory control group leaves; None if there is none."""
    device_free_bytes: int | None = None
    """Free memory of the accelerator; None where the CPU is the device."""
    disk_free_bytes: int | None = None
    """Free bytes where files would be written; None if unknown."""
    device_budget_bytes: int | None = None
    """--device-memory: 0 is the least that works, None what is free."""
    host_budget_bytes: int | None = None
    """--host-memory; None is what is free."""
    is_link_emulated: bool = False
    """Host memory then plays the device too."""
    link: Link | None = None
    """From host memory to the device; None where the device is the processor, or where nobody asked."""
    pcie_generation: int | None = None
    """Generation of the link; None if unknown."""
    disk: Link | None = None
    """From the model's files; None where it could not be found out, or where nobody asked."""
    speed: DeviceSpeed | None = None
    """What computing costs; None where nobody asked."""

    @property
    def is_cpu(self) -> bool:
        """Whether the device's memory is the host's."""
        return self.device_free_bytes is None

    @property
    def free_bytes(self) -> int:
        return self.host_free_bytes if self.device_free_bytes is None else self.device_free_bytes

    def budgets(self, need: MemoryNeed) -> tuple[int, int]:
        """Return the bytes that a session may hold on the device and, for layers, in host memory."""
        device = self.device_budget_bytes
        if device == 0 or (device is None and self.is_link_emulated):
            device = need.fixed_bytes + need.ring_bytes
        elif device is None:
            device = usable_bytes(self.free_bytes)
        if self.host_budget_bytes is not None:
            return device, self.host_budget_bytes
        if not self.is_cpu:
            return device, usable_bytes(self.host_free_bytes - need.stage_bytes)
        return device, max(0, self.host_free_bytes - device - RESERVED_BYTES) if self.is_link_emulated else 0


def usable_bytes(free_bytes: int) -> int:
    """Return what a budget chosen by the program takes of free memory."""
    return max(0, free_bytes - RESERVED_BYTES - int(RESERVED_SHARE * free_bytes))


def free_bytes_for(budget_bytes: int) -> int:
    """Return the least free memory of which a budget chosen by the program is at least `budget_bytes`."""
    free = math.floor((budget_bytes + RESERVED_BYTES) / (1 - RESERVED_SHARE))
    while usable_bytes(free) < budget_bytes:
        free += 1
    return free


def stored_speeds(profile: MachineProfile | None) -> tuple[LinkSpeed | None, LinkSpeed | None]:
    """Return (link, disk) as they were measured on this machine, each None where it was not."""
    if profile is None:
        return None, None
    link, disk = profile.link_bytes_per_second, profile.disk_bytes_per_second
    return (
        None if link is None else LinkSpeed(link, profile.link_latency_seconds or 0.0),
        None if disk is None else LinkSpeed(disk),
    )


def reference_machine(name: str) -> Machine:
    """Return the built-in machine of that name, all its memory free. Raises ProfileError, which says what is near."""
    found = builtin_machine(name)
    device_bytes = int(found.device_memory_bytes.value)
    link = found.link_bytes_per_second
    return Machine(
        name=found.name,
        host_total_bytes=_ENOUGH_BYTES,
        host_free_bytes=_ENOUGH_BYTES,
        is_host_assumed=True,
        device_free_bytes=device_bytes,
        link=Link(
            LinkSpeed(link.value),
            Basis.PUBLISHED if link.is_measured else Basis.DATA_SHEET,
            f"PCIe {found.pcie.generation}.0 x{found.pcie.lanes}: {link.source}",
        ),
        pcie_generation=found.pcie.generation,
        disk=Link(LinkSpeed(ASSUMED_DISK_BYTES_PER_SECOND), Basis.ASSUMED, "a PCIe 3 NVMe disk; say --disk"),
        speed=speed_of_data_sheet(
            memory_bytes_per_second=found.memory_bytes_per_second.value,
            flops=found.flops_per_second.value,
        ),
    )
