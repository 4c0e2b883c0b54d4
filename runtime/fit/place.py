"""Where a session's bytes lie on a machine, and what is missing there, before a weight is read.

A session that streams from disk runs, but not well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offload.residency_plan import ResidencyPlan, Tier, plan_residency
from runtime.fit.machine import Machine
from runtime.fit.need import OTHERS, MemoryNeed


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a session's bytes lie, each with its purpose, and what is missing."""

    format_name: str
    residency: ResidencyPlan
    payload_bytes: tuple[int, ...]
    """Weights of each layer, which cross the link if it streams."""
    fixed: Mapping[str, int]
    """Bytes held on the device beside layers and ring, by purpose."""
    device_budget_bytes: int
    host_budget_bytes: int
    """What host memory may hold of the layers."""
    stage_bytes: int = 0
    """Host memory through which layers from disk pass on their way to the device."""
    missing_device_bytes: int = 0
    """Bytes by which the least that must be on the device exceeds what it may hold."""
    missing_host_bytes: int = 0
    """Bytes by which a host budget of the user's own exceeds what is free."""
    missing_disk_bytes: int = 0
    """Bytes by which the files to be written exceed the free disk."""

    @property
    def can_run(self) -> bool:
        return not (self.missing_device_bytes or self.missing_host_bytes or self.missing_disk_bytes)

    @property
    def runs_well(self) -> bool:
        """Whether it runs without reading weights from disk in every pass."""
        return self.can_run and self.disk_bytes == 0

    @property
    def fixed_bytes(self) -> int:
        return sum(self.fixed.values())

    @property
    def late_bytes(self) -> int:
        """Bytes of the fixed ones that are allocated after the layers, which have to leave room for them."""
        return self.fixed_bytes - self.fixed[OTHERS]

    @property
    def ring_bytes(self) -> int:
        return self.residency.ring_bytes

    @property
    def resident_bytes(self) -> int:
        return self.residency.resident_bytes

    @property
    def device_bytes(self) -> int:
        """Bytes that the device's budget pays for."""
        return self.fixed_bytes + self.ring_bytes + self.resident_bytes

    @property
    def host_bytes(self) -> int:
        return self.residency.host_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the layers that are read from disk in every pass."""
        return self.residency.disk_bytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that cross the link in every pass."""
        return sum(self.payload_bytes[index] for index in self.residency.streamed_layers)

    @property
    def num_resident_layers(self) -> int:
        return self.residency.tiers.count(Tier.RESIDENT)

    @property
    def num_host_layers(self) -> int:
        return self.residency.tiers.count(Tier.HOST)

    @property
    def num_disk_layers(self) -> int:
        return self.residency.tiers.count(Tier.DISK)

    def with_tiers(self, tiers: Sequence[Tier]) -> "Placement":
        """Return the same with the layers in these tiers, as where memory ran out while they were loaded."""
        return replace(self, residency=replace(self.residency, tiers=tuple(tiers)))

    def to_record(self) -> dict[str, Any]:
        """Return the sums as a JSON object."""
        budgets = ("device_budget_bytes", "host_budget_bytes")
        missing = ("missing_device_bytes", "missing_host_bytes", "missing_disk_bytes")
        names = ("fixed_bytes", "ring_bytes", "resident_bytes", "host_bytes", "disk_bytes", *budgets, *missing)
        counts = [self.num_resident_layers, self.num_host_layers, self.num_disk_layers]
        return {
            "format_name": self.format_name,
            "num_layers": counts,
            **{name: getattr(self, name) for name in names},
        }

    def entries(self) -> dict[str, int]:
        """Return the device's bytes by purpose."""
        layers = {f"resident layers ({self.num_resident_layers})": self.resident_bytes}
        return {**self.fixed, "ring of layer slots": self.ring_bytes, **layers}


def place(need: MemoryNeed, machine: Machine) -> Placement:
    """Return where the bytes would lie, with each layer where it would be if what is missing were there."""
    device_budget, host_budget = machine.budgets(need)
    plan = plan_residency(
        need.layers.layer_bytes,
        num_slots=need.num_slots,
        device_budget_bytes=max(device_budget, need.least_bytes) - need.fixed_bytes,
        host_budget_bytes=host_budget,
        saved_bytes=need.saved_bytes,
    )
    placement = Placement(
        format_name=need.layers.name,
        residency=plan,
        payload_bytes=need.layers.payload_bytes or need.layers.layer_bytes,
        fixed=need.fixed_entries(plan.resident_layers),
        device_budget_bytes=device_budget,
        host_budget_bytes=host_budget,
    )
    free_disk_bytes = need.file_bytes if machine.disk_free_bytes is None else machine.disk_free_bytes
    # A budget that the user chose may be more than there is: then what is there decides.
    held_bytes = placement.device_bytes + (plan.host_bytes if machine.is_cpu else 0)
    return replace(
        placement,
        missing_device_bytes=max(0, need.least_bytes - device_budget, held_bytes - machine.free_bytes),
        missing_host_bytes=0 if machine.is_cpu else max(0, plan.host_bytes - machine.host_free_bytes),
        missing_disk_bytes=max(0, need.file_bytes - free_disk_bytes),
    )
