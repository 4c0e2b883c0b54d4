"""Every byte the runtime means to hold, by name, before it holds them.

The residency plan spends what these fixed costs leave; the same list is shown to the user. Sums only: knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from offload.residency_plan import Tier


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """One purpose and its bytes."""

    label: str
    """What the memory is for."""
    num_bytes: int
    """How much of it."""
    is_taken_late: bool = False
    """Whether it is allocated when the layers are in their places: by the draft, or by the first pass."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """Where the device budget goes, and what lies outside it."""

    budget_bytes: int
    """The device budget."""
    fixed: tuple[MemoryEntry, ...]
    """Held whatever the plan: embeddings, draft, caches, scratch, workspace."""
    ring_bytes: int
    """Slots that streamed layers share."""
    resident_bytes: int
    """Decoder layers that stay on the device."""
    num_resident_layers: int
    """How many they are."""
    num_host_layers: int
    """Layers that wait in host memory and cross the link in every pass."""
    host_bytes: int
    """Their bytes."""
    num_disk_layers: int
    """Layers that are read from disk in every pass."""
    disk_bytes: int
    """Their bytes."""
    baseline_bytes: int
    """What the process held before any of this: Python, torch and the libraries."""
    stage_bytes: int = 0
    """Host memory through which layers from disk pass on their way to the device."""

    @classmethod
    def of_tiers(
        cls,
        tiers: Sequence[Tier],
        payload_bytes: Sequence[int],
        *,
        budget_bytes: int,
        fixed: tuple[MemoryEntry, ...],
        ring_bytes: int,
        resident_bytes: int,
        stage_bytes: int,
        baseline_bytes: int,
    ) -> "Accounting":
        """Layers counted by their tier; `payload_bytes` are those of each layer's weights."""
        by_tier = {
            tier: [size for size, found in zip(payload_bytes, tiers, strict=True) if found is tier] for tier in Tier
        }
        return cls(
            budget_bytes=budget_bytes,
            fixed=fixed,
            ring_bytes=ring_bytes,
            resident_bytes=resident_bytes,
            num_resident_layers=len(by_tier[Tier.RESIDENT]),
            num_host_layers=len(by_tier[Tier.HOST]),
            host_bytes=sum(by_tier[Tier.HOST]),
            num_disk_layers=len(by_tier[Tier.DISK]),
            disk_bytes=sum(by_tier[Tier.DISK]),
            baseline_bytes=baseline_bytes,
            stage_bytes=stage_bytes,
        )

    @property
    def fixed_bytes(self) -> int:
        """Sum of the fixed entries."""
        return sum(entry.num_bytes for entry in self.fixed)

    @property
    def late_bytes(self) -> int:
        """What is allocated after the layers: room that they have to leave."""
        return sum(entry.num_bytes for entry in self.fixed if entry.is_taken_late)

    @property
    def device_bytes(self) -> int:
        """Everything the device budget pays for."""
        return self.fixed_bytes + self.ring_bytes + self.resident_bytes

    @property
    def streamed_bytes_per_pass(self) -> int:
        """Bytes that cross the link in every pass."""
        return self.host_bytes + self.disk_bytes

    def entries(self) -> tuple[MemoryEntry, ...]:
        """The device's part, one line each."""
        return (
            *self.fixed,
            MemoryEntry("ring of layer slots", self.ring_bytes),
            MemoryEntry(f"resident layers ({self.num_resident_layers})", self.resident_bytes),
        )
