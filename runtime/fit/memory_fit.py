"""Where a session's bytes would lie on this machine, and what is missing, before a weight is read.

Pure arithmetic over a `MemoryNeed` and a `MachineMemory`; layers are placed by the same `plan_residency` that a
session uses. Streaming from disk is allowed, and slow: a session that does it runs, but not well. Opens nothing.
"""

import math
from dataclasses import dataclass

from offload.residency_plan import ResidencyPlan, Tier, plan_residency
from runtime.fit.memory_need import MemoryNeed

RESERVED_SHARE = 0.03
RESERVED_BYTES = 192 << 20
"""Free memory that a budget chosen by the program leaves alone: this much and this share of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineMemory:
    """What there is, and what the user allows of it."""

    host_total_bytes: int
    """Memory of the machine, or of its control group."""
    host_free_bytes: int
    """What this process may still use of it."""
    device_total_bytes: int | None = None
    """Memory of the accelerator; None where the CPU is the device."""
    device_free_bytes: int | None = None
    """Free memory of the accelerator; None where the CPU is the device."""
    disk_free_bytes: int | None = None
    """Free where files would be written; None if unknown."""
    device_budget_bytes: int | None = None
    """--device-memory: 0 is the least that works, None what is free."""
    host_budget_bytes: int | None = None
    """--host-memory; None is what is free."""
    is_link_emulated: bool = False
    """Host memory then plays the device too."""

    @property
    def is_cpu(self) -> bool:
        """Whether the device's memory is the host's."""
        return self.device_free_bytes is None

    @property
    def free_bytes(self) -> int:
        """Free memory of the device."""
        return self.host_free_bytes if self.device_free_bytes is None else self.device_free_bytes

    def budgets(self, need: MemoryNeed) -> tuple[int, int]:
        """(device, host): the bytes that a session may hold there."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a session's bytes would lie, and what is missing."""

    format_name: str
    """Format of the decoder layers."""
    fixed_bytes: int
    """On the device beside layers and ring."""
    ring_bytes: int
    """On the device, for layers in passing."""
    resident_bytes: int
    """Layers on the device."""
    host_bytes: int
    """Layers in host memory."""
    disk_bytes: int
    """Layers read from disk in every pass."""
    num_layers: tuple[int, int, int]
    """Resident, in host memory, on disk."""
    device_budget_bytes: int
    """What the device may hold."""
    host_budget_bytes: int
    """What host memory may hold of the layers."""
    missing_device_bytes: int = 0
    """By which the least that must be on the device exceeds what it may hold."""
    missing_host_bytes: int = 0
    """By which a host budget of the user's own exceeds what is free."""
    missing_disk_bytes: int = 0
    """By which the files to be written exceed the free disk."""

    @property
    def can_run(self) -> bool:
        """Whether it runs at all."""
        return not (self.missing_device_bytes or self.missing_host_bytes or self.missing_disk_bytes)

    @property
    def runs_well(self) -> bool:
        """Whether it runs without reading weights from disk in every pass."""
        return self.can_run and self.disk_bytes == 0

    @property
    def device_bytes(self) -> int:
        """Everything on the device."""
        return self.fixed_bytes + self.ring_bytes + self.resident_bytes

    @property
    def streamed_bytes(self) -> int:
        """What crosses the link in every pass."""
        return self.host_bytes + self.disk_bytes


def usable_bytes(free_bytes: int) -> int:
    """What a budget chosen by the program takes of free memory."""
    return max(0, free_bytes - RESERVED_BYTES - int(RESERVED_SHARE * free_bytes))


def free_bytes_for(budget_bytes: int) -> int:
    """The least free memory of which a budget chosen by the program is at least `budget_bytes`."""
    free = math.floor((budget_bytes + RESERVED_BYTES) / (1 - RESERVED_SHARE))
    while usable_bytes(free) < budget_bytes:
        free += 1
    return free


def residency_of(need: MemoryNeed, machine: MachineMemory) -> ResidencyPlan:
    """Which layer would lie where, if what is missing were there."""
    device_budget, host_budget = machine.budgets(need)
    return plan_residency(
        need.layers.layer_bytes,
        num_slots=need.num_slots,
        device_budget_bytes=max(device_budget - need.fixed_bytes, min(need.layers.total_bytes, need.ring_bytes)),
        host_budget_bytes=host_budget,
        saved_bytes=need.saved_bytes,
    )


def place(need: MemoryNeed, machine: MachineMemory) -> Placement:
    """Where the bytes would lie."""
    device_budget, host_budget = machine.budgets(need)
    plan = residency_of(need, machine)
    missing_disk = 0 if machine.disk_free_bytes is None else max(0, need.file_bytes - machine.disk_free_bytes)
    spare = device_budget - need.fixed_bytes
    least = min(need.layers.total_bytes, need.ring_bytes)
    fixed_bytes = need.fixed_bytes - need.shared_bytes(plan.resident_layers)
    # A budget that the user chose may be more than there is: then what is there decides.
    device_bytes = fixed_bytes + plan.ring_bytes + plan.resident_bytes
    held_bytes = device_bytes + (plan.host_bytes if machine.is_cpu else 0)
    missing_host = 0 if machine.is_cpu else max(0, plan.host_bytes - machine.host_free_bytes)
    counts = tuple(sum(tier is wanted for tier in plan.tiers) for wanted in (Tier.RESIDENT, Tier.HOST, Tier.DISK))
    return Placement(
        format_name=need.layers.name,
        fixed_bytes=fixed_bytes,
        ring_bytes=plan.ring_bytes,
        resident_bytes=plan.resident_bytes,
        host_bytes=plan.host_bytes,
        disk_bytes=plan.disk_bytes,
        num_layers=(counts[0], counts[1], counts[2]),
        device_budget_bytes=device_budget,
        host_budget_bytes=host_budget,
        missing_device_bytes=max(0, least - spare, held_bytes - machine.free_bytes),
        missing_host_bytes=missing_host,
        missing_disk_bytes=missing_disk,
    )
