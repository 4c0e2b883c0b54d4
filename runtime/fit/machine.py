"""A machine as session, plan and doctor see it: memory and budgets, links and speed, with what each figure rests on.

Made by `probes` of the machine that the program runs on, or of a built-in reference machine; imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from offload.formats.stored_sizes import PACKED
from offload.units import LinkSpeed, format_bytes
from profiles.builtin_profiles import builtin_machine
from profiles.machine_profile import DeviceIdentity, MachineProfile

RESERVED_SHARE = 0.03
RESERVED_BYTES = 192 << 20
"""Free memory that a budget chosen by the program leaves alone: so much, and this share of it."""
RESERVED_PINNED_SHARE = 0.06
RESERVED_PINNED_BYTES = 4 * 10**9
"""The same of host memory that will be pinned, which can never be swapped: this share, but at least so many bytes.

They hold what loading reads in passing (embeddings and head of an 8B draft, 2.1 GB, and two of its layers, 0.9 GB), the
driver's page arrays (8 bytes per 4 KiB: 0.3 GB for 137 GB) and the host's side of CUDA (about 0.5 GB): 3.8 GB.
"""
_MOST_RESERVED_SHARE = 0.25
"""Of free host memory where that little is free, as in a small container."""
CONTEXT_BYTES = 500 * 10**6
"""Of a card that nobody asked, what CUDA's context holds with the kernels of torch, an assumption: free is the rest.

On a card that is asked the context exists when its free memory is read.
"""
ASSUMED_DISK_BYTES_PER_SECOND = 3.5e9
"""Of a machine whose disk nobody described: what the data sheets of plain PCIe 3 NVMe disks promise."""
_ENOUGH_BYTES = 1 << 50
"""Of host memory, where no source says how much there is."""
_L40_BYTES_PER_SECOND = 864e9
_L40_FLOPS = 181.05e12
_DRAFT_STEP_BYTES = 2 * (8_030_261_248 - 128_256 * 4096)
_DRAFT_STEP_SECONDS = 0.025
MEMORY_SHARE = _DRAFT_STEP_BYTES / _DRAFT_STEP_SECONDS / _L40_BYTES_PER_SECOND
"""Of a data sheet's memory bandwidth that is reached: 0.69.

A published step of Llama-3-8B in bf16 on an L40 takes 0.025 s (Sequoia); it reads 15.0 GB, everything but the
embeddings, and the data sheet says 864 GB/s.
"""
FLOPS_SHARE = MEMORY_SHARE
"""Of a data sheet's operations that are reached, taken to be the same: published passes hide theirs behind the copies.

Sequoia's verification of 1,024 nodes on the L40 only shows that it is more than 0.13.
"""
_PASS_FLOPS = 2 * 80 * 855_638_016 * 1024
_PASS_SECONDS, _LINK_SECONDS = 5.8, 80 * 1_711_308_800 / 24.9e9
COPY_SLOWDOWN = (_PASS_SECONDS - _LINK_SECONDS) / (_PASS_FLOPS / (FLOPS_SHARE * _L40_FLOPS))
"""Seconds of copying that each second of computing costs, where a published pass grows with its nodes.

Sequoia, L40, Llama-3-70B: 136.9 GB at 24.9 GB/s are 5.50 s, and 1,024 nodes take 5.8 s: 0.27.
"""
LAUNCH_SECONDS = 0.013 / 16 / 40
"""What the host takes to launch one kernel of a layer, Python's share included: 20 microseconds.

A step of a 1.2B draft of 16 layers took 13 ms kernel by kernel, and 3.1 to 5.2 ms recorded, on one H100's host (16
virtual cores, torch 2.11), and a layer launches about 40.
"""
NARROW_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "stored": 2.0, "int8": 1.0, "nf4": 0.52}
"""Bytes of one weight as it is stored."""
FUSED_NF4_BYTES = 0.56
"""Bytes of one NF4 weight that a fused product of a draft reads: its code, and its share of the scales."""
PACKED_BYTES = 16.0
"""Bytes that a device reads and writes for one packed weight, its product's included: see `formats.packed`.

The mask moves 1.5 each way, the six operations on a quarter of the elements 7 together, the last power of two 2 each
way, and the product reads 2.
"""
_JUDGED_AS = "rtx-4090"


class Basis(StrEnum):
    """What a figure rests on."""

    MEASURED = "measured here"
    PUBLISHED = "published"
    """Measured by somebody else."""
    DATA_SHEET = "data sheet"
    GIVEN = "given"
    """By the user."""
    CARRIED_OVER = "carried over"
    """Measured with other models."""
    ASSUMED = "assumed"


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
class DeviceSpeed:
    """What computing costs on one device."""

    target_weights_per_second: Mapping[str, float]
    """Weights that a narrow pass of the target multiplies, which widens them exactly, by format."""
    draft_weights_per_second: Mapping[str, float]
    """The same for a draft, which may use any kernel, by how it holds them."""
    flops: float
    """Floating-point operations a second in wide passes."""
    memory_bytes_per_second: float
    """Rate of reading what is not a weight: keys and values, logits."""
    basis: Basis
    source: str
    """The basis in words, for the user."""
    compute_item_bytes: int = 2
    """Bytes of one activation."""
    copy_slowdown: float = 0.0
    """Seconds of copying that each second of computing costs."""
    compute_slowdown: float = 0.0
    """Seconds of computing that each second of copying costs."""
    fastest_draft: str | None = None
    """How drafts multiply fastest, where that was measured by itself: on a processor."""
    launch_seconds: float = 0.0
    """What the host takes to launch a kernel of a pass that was not recorded; 0 on a processor."""


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
    device_memory_source: str = ""
    """Where that was found, in words, if it was not asked."""
    disk_free_bytes: int | None = None
    """Free bytes where files would be written; None if unknown."""
    device_budget_bytes: int | None = None
    """--device-memory: 0 is the least that works, None what is free."""
    host_budget_bytes: int | None = None
    """--host-memory; None is what is free."""
    is_link_emulated: bool = False
    """Host memory then plays the device too."""
    has_fused_nf4: bool = True
    """Whether the device multiplies a draft's NF4 matrices without widening them."""
    link: Link | None = None
    """From host memory to the device; None where the device is the processor, or where nobody asked."""
    pcie_generation: int | None = None
    disk: Link | None = None
    """From the model's files; None where it could not be found out, or where nobody asked."""
    speed: DeviceSpeed | None = None
    """What computing costs; None where nobody asked."""

    @property
    def is_cpu(self) -> bool:
        """Whether the device's memory is the host's."""
        return self.device_free_bytes is None

    @property
    def holds_least(self) -> bool:
        """Whether the device is to hold no more than it must: where that was asked for, and behind an emulated link."""
        return self.device_budget_bytes == 0 or (self.device_budget_bytes is None and self.is_link_emulated)

    @property
    def free_bytes(self) -> int:
        return self.host_free_bytes if self.device_free_bytes is None else self.device_free_bytes


def usable_bytes(free_bytes: int, *, is_pinned: bool = False) -> int:
    """Return what a budget chosen by the program takes of free memory, which `is_pinned` if it is an accelerator's."""
    return max(0, free_bytes - _reserved_bytes(free_bytes, is_pinned=is_pinned))


def free_bytes_for(budget_bytes: int, *, is_pinned: bool = False) -> int:
    """Return the least free memory of which a budget chosen by the program is at least `budget_bytes`."""
    free = -1
    while free < (more := budget_bytes + _reserved_bytes(max(0, free), is_pinned=is_pinned)):
        free = more
    return free


def _reserved_bytes(free_bytes: int, *, is_pinned: bool) -> int:
    if not is_pinned:
        return RESERVED_BYTES + int(RESERVED_SHARE * free_bytes)
    least = min(RESERVED_PINNED_BYTES, int(_MOST_RESERVED_SHARE * free_bytes))
    return max(least, int(RESERVED_PINNED_SHARE * free_bytes))


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
        device_free_bytes=device_bytes - CONTEXT_BYTES,
        device_memory_source=(
            f"{format_bytes(device_bytes)} less {format_bytes(CONTEXT_BYTES)} that CUDA's context is taken to hold; "
            f"{found.device_memory_bytes.source}"
        ),
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


def judged_alike(machine: Machine) -> Machine:
    """Return the machine's memory with the speeds of one reference card, for choices that no measurement may sway.

    How a draft is held, and which of two drafts is taken, is decided by their bytes and by what fits; cards differ by
    less in what their link carries while they read a weight.
    """
    reference = reference_machine(_JUDGED_AS)
    assert reference.speed is not None
    if machine.is_cpu:
        return replace(machine, disk=machine.disk or reference.disk, speed=_some_processor())
    speed = reference.speed
    if not machine.has_fused_nf4:
        rates = {**speed.draft_weights_per_second, "nf4": speed.target_weights_per_second["nf4"]}
        speed = replace(speed, draft_weights_per_second=rates)
    if machine.speed is not None:
        speed = replace(speed, compute_item_bytes=machine.speed.compute_item_bytes)
    return replace(machine, link=reference.link, disk=reference.disk, speed=speed)


def _some_processor() -> DeviceSpeed:
    """Return a processor whose drafts multiply int8 rows as they are."""
    speed = speed_of_data_sheet(memory_bytes_per_second=60e9, flops=1.5e12)
    rates = dict.fromkeys(speed.draft_weights_per_second, speed.draft_weights_per_second["stored"])
    rates["int8"] = 2 * rates["stored"]
    return replace(speed, draft_weights_per_second=rates, compute_item_bytes=4, fastest_draft="int8", copy_slowdown=0.0)


def speed_of_data_sheet(*, memory_bytes_per_second: float, flops: float) -> DeviceSpeed:
    """Return a device that reaches the published shares of its data sheet's bandwidth and operations, in bf16.

    A quantized weight is read, written widened and read again, so that it takes longer than a bf16 one; but a draft's
    NF4 weights are multiplied as they are, by bitsandbytes' fused kernel.
    """
    reached = MEMORY_SHARE * memory_bytes_per_second

    def rate(name: str) -> float:
        narrow = NARROW_BYTES[name]
        return reached / (narrow + 2 * NARROW_BYTES["bfloat16"] if name in ("int8", "nf4") else narrow)

    targets = {name: rate(name) for name in NARROW_BYTES if name != "stored"} | {PACKED: reached / PACKED_BYTES}
    return DeviceSpeed(
        target_weights_per_second=targets,
        draft_weights_per_second={"stored": rate("stored"), "int8": rate("int8"), "nf4": reached / FUSED_NF4_BYTES},
        flops=FLOPS_SHARE * flops,
        memory_bytes_per_second=reached,
        basis=Basis.DATA_SHEET,
        source=(
            f"{memory_bytes_per_second / 1e9:.0f} GB/s and {flops / 1e12:.0f} TFLOPS (data sheet) times "
            f"{MEMORY_SHARE:.2f}, the share that a published draft step on an L40 reaches; each second of it delays "
            f"copies by {COPY_SLOWDOWN:.2f} s, as in the published passes there"
        ),
        copy_slowdown=COPY_SLOWDOWN,
        launch_seconds=LAUNCH_SECONDS,
    )
