"""A machine as `plan` sees it: memory, links and speed, each figure with what it rests on.

Made of a built-in reference machine, or by `this_machine` of the one that the program runs on. Knows no torch.
"""

from dataclasses import dataclass, replace

from offload.units import LinkSpeed, format_bytes, format_link
from profiles.builtin_profiles import Figure, ReferenceMachine, builtin_machine
from profiles.machine_profile import DeviceIdentity
from runtime.fit.device_speed import Basis, DeviceSpeed, Rate, speed_of_data_sheet
from runtime.fit.place import MachineMemory, free_bytes_for
from runtime.fit.reference_costs import LinkSpeeds

ASSUMED_DISK_BYTES_PER_SECOND = 3.5e9
"""Of a machine whose disk nobody described: what the data sheets of plain PCIe 3 NVMe disks promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMachine:
    """One machine and one of its devices."""

    name: str
    """For the user."""
    identity: DeviceIdentity | None = None
    """Of this machine's device, for what was measured on it; None for another machine."""
    memory: MachineMemory
    """What there is, and what may be used of it."""
    is_host_assumed: bool = False
    """Whether nobody said how much host memory there is: then it holds whatever the model needs."""
    link: Rate | None
    """Bytes per second from host memory to the device; None where the device is the processor."""
    link_latency_seconds: float = 0.0
    """Of each copy."""
    pcie_generation: int | None = None
    """Of the link; None if unknown."""
    disk: Rate | None
    """Bytes per second of reading files; None where it could not be found out."""
    speed: DeviceSpeed
    """What computing costs."""

    @property
    def links(self) -> LinkSpeeds:
        """The same as the cost model takes them."""
        return LinkSpeeds(
            None if self.link is None else self.link.bytes_per_second,
            None if self.disk is None else self.disk.bytes_per_second,
            self.link_latency_seconds,
        )

    @property
    def basis_lines(self) -> tuple[tuple[str, Basis, str], ...]:
        """(what, basis, words) of every figure that predictions rest on."""
        links = tuple(
            (name, rate.basis, f"{format_bytes(rate.bytes_per_second)}/s, {rate.source}")
            for name, rate in (("link", self.link), ("disk", self.disk))
            if rate is not None
        )
        return (*links, ("computing", self.speed.basis, self.speed.source))

    def with_link(self, link: LinkSpeed) -> "PlanMachine":
        """The same behind another link, which is an emulated one where the device is the processor."""
        rate = Rate(link.bytes_per_second, Basis.GIVEN, f"--link {format_link(link)}")
        memory = replace(self.memory, is_link_emulated=self.memory.is_cpu)
        return replace(self, link=rate, link_latency_seconds=link.latency_seconds, pcie_generation=None, memory=memory)

    def with_disk(self, disk: LinkSpeed) -> "PlanMachine":
        """The same with another disk."""
        return replace(self, disk=Rate(disk.bytes_per_second, Basis.GIVEN, f"--disk {format_link(disk)}"))

    def with_more_device_memory(self, more_bytes: int) -> "PlanMachine":
        """The same with a larger device, or a larger budget of the user's own."""
        memory = self.memory
        if memory.device_budget_bytes:
            memory = replace(memory, device_budget_bytes=memory.device_budget_bytes + more_bytes)
        if memory.device_free_bytes is None:
            memory = replace(memory, host_free_bytes=memory.host_free_bytes + more_bytes)
        else:
            memory = replace(memory, device_free_bytes=memory.device_free_bytes + more_bytes)
        return replace(self, memory=memory)

    def with_more_host_memory(self, more_bytes: int) -> "PlanMachine":
        """The same with more host memory, in which layers may wait."""
        memory, grown = self.memory, free_bytes_for(more_bytes)
        if memory.host_budget_bytes is not None:
            memory = replace(memory, host_budget_bytes=memory.host_budget_bytes + more_bytes)
        return replace(self, memory=replace(memory, host_free_bytes=memory.host_free_bytes + grown))

    def with_faster_link(self, factor: float) -> "PlanMachine":
        """The same with the link, or where there is none the disk, so many times as fast."""
        name = "disk" if self.link is None else "link"
        rate = self.disk if self.link is None else self.link
        if rate is None:
            return self
        faster = Rate(rate.bytes_per_second * factor, Basis.ASSUMED, f"{factor:g} times the {name}")
        return replace(self, disk=faster) if self.link is None else replace(self, link=faster)

    def with_memory(self, *, device_bytes: int | None, host_bytes: int | None) -> "PlanMachine":
        """The same under the user's budgets; a host memory that nobody knew is then what they say."""
        memory, is_assumed = self.memory, self.is_host_assumed
        if device_bytes is not None:
            memory = replace(memory, device_budget_bytes=device_bytes)
        if host_bytes is not None:
            memory = replace(memory, host_budget_bytes=host_bytes)
            if self.is_host_assumed:
                free = free_bytes_for(host_bytes)
                memory = replace(memory, host_total_bytes=free, host_free_bytes=free)
            is_assumed = False
        return replace(self, memory=memory, is_host_assumed=is_assumed)

    def for_layers(self, needed_bytes: int) -> "PlanMachine":
        """The same with host memory for so many bytes, where nobody said how much there is."""
        if not self.is_host_assumed:
            return self
        free = free_bytes_for(needed_bytes)
        return replace(self, memory=replace(self.memory, host_total_bytes=free, host_free_bytes=free))


def reference_plan_machine(name: str) -> PlanMachine:
    """The built-in machine of that name, all its memory free. Raises ProfileError, which says what is near."""
    found = builtin_machine(name)
    total = int(found.device_memory_bytes.value)
    host = found.host_memory_bytes
    host_bytes = 0 if host is None else int(host.value)
    memory = MachineMemory(
        host_total_bytes=host_bytes, host_free_bytes=host_bytes, device_total_bytes=total, device_free_bytes=total
    )
    return PlanMachine(
        name=found.name,
        memory=memory,
        is_host_assumed=host is None,
        link=Rate(found.link_bytes_per_second.value, _basis(found.link_bytes_per_second), _link_words(found)),
        pcie_generation=found.pcie.generation,
        disk=Rate(ASSUMED_DISK_BYTES_PER_SECOND, Basis.ASSUMED, "a PCIe 3 NVMe disk; say --disk"),
        speed=speed_of_data_sheet(
            memory_bytes_per_second=found.memory_bytes_per_second.value,
            flops=found.flops_per_second.value,
            source="data sheet",
        ),
    )


def _basis(figure: Figure) -> Basis:
    return Basis.PUBLISHED if figure.is_measured else Basis.DATA_SHEET


def _link_words(machine: ReferenceMachine) -> str:
    return f"PCIe {machine.pcie.generation}.0 x{machine.pcie.lanes}: {machine.link_bytes_per_second.source}"
