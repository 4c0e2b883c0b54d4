"""What others measured, or data sheets say, about machines and pairs of models: every figure with its source.

A reference cannot hold nonsense: every field is checked when the object is made. Knows no file, and no model's shape
but by the name that it goes by; `builtin_profiles` reads those that come with the program.
"""

from dataclasses import dataclass

from profiles.errors import ProfileError, quote
from profiles.field_checks import (
    LARGEST,
    check_ascending,
    check_count,
    check_entries,
    check_flag,
    check_not_empty,
    check_number,
    check_probabilities,
    check_text,
)

# By generation. Each lane carries a bit per transfer, 128 of 130 of them payload.
_TRANSFERS_PER_SECOND = {3: 8e9, 4: 16e9, 5: 32e9}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it comes from."""

    value: float
    """In the unit that the field's name says."""
    source: str
    """Who measured it on what, which data sheet says so, or how it was derived."""
    is_measured: bool
    """Whether somebody measured it; else it is a data sheet's, or derived from one."""

    def __post_init__(self) -> None:
        if check_number("value", self.value, maximum=LARGEST) == 0:
            raise ProfileError("value is 0; expected more")
        check_text("source", self.source)
        check_flag("is_measured", self.is_measured)


@dataclass(frozen=True, slots=True)
class PcieSlot:
    """How a card is wired to the host."""

    generation: int
    """3, 4 or 5."""
    lanes: int
    """1 to 16."""
    source: str
    """Where this comes from."""

    def __post_init__(self) -> None:
        if type(self.generation) is not int or self.generation not in _TRANSFERS_PER_SECOND:
            raise ProfileError(f"generation is {quote(self.generation)}; expected 3, 4 or 5")
        if type(self.lanes) is not int or self.lanes not in (1, 2, 4, 8, 16):
            raise ProfileError(f"lanes is {quote(self.lanes)}; expected 1, 2, 4, 8 or 16")
        check_text("source", self.source)

    @property
    def nominal_bytes_per_second(self) -> float:
        """What the wires carry one way, of which no copy gets all: 31.5e9 for generation 4 with 16 lanes."""
        return self.lanes * _TRANSFERS_PER_SECOND[self.generation] * (128 / 130) / 8


@dataclass(frozen=True, slots=True)
class ReferenceMachine:
    """A device and its link, as published."""

    key: str
    """What the command line calls it, such as "rtx-4090"."""
    name: str
    """For people, such as "RTX 4090"."""
    device_memory_bytes: Figure
    """All of the device's memory."""
    memory_bytes_per_second: Figure
    """The device reading its own memory."""
    flops_per_second: Figure
    """Peak of dense FP16 or BF16 matrix products that accumulate in FP32."""
    pcie: PcieSlot
    """How it is wired to the host."""
    link_bytes_per_second: Figure
    """What a copy from pinned host memory to the device gets."""
    host_memory_bytes: Figure | None = None
    """All of the host's memory; None where no source says."""

    def __post_init__(self) -> None:
        check_text("key", self.key)
        check_text("name", self.name)
        nominal = self.pcie.nominal_bytes_per_second
        if self.link_bytes_per_second.value > nominal:
            raise ProfileError(
                f"link_bytes_per_second is {self.link_bytes_per_second.value:.4g}; expected at most {nominal:.4g}, "
                f"what PCIe {self.pcie.generation}.0 x{self.pcie.lanes} carries"
            )


@dataclass(frozen=True, slots=True)
class ReferenceAcceptance:
    """How likely the child of each rank was the accepted one."""

    by_rank: tuple[float, ...]
    """(R,) probabilities."""
    source: str
    """Who measured it on what."""
    is_measured: bool
    """Whether somebody measured it."""
    temperature: float | None = None
    """Of both models; None where the source does not say."""

    def __post_init__(self) -> None:
        check_probabilities("by_rank", self.by_rank)
        check_not_empty("by_rank", self.by_rank)
        check_text("source", self.source)
        check_flag("is_measured", self.is_measured)
        if self.temperature is not None:
            check_number("temperature", self.temperature, maximum=100.0)


@dataclass(frozen=True, slots=True)
class VerifyCost:
    """One pass of the target, its weights streamed."""

    num_nodes: int
    """Nodes of the tree."""
    seconds: Figure
    """Of the whole pass."""

    def __post_init__(self) -> None:
        check_count("num_nodes", self.num_nodes, minimum=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """What somebody's system was measured to do with the pair; figures that its source lacks are None."""

    system: str
    """Whose."""
    workload: str
    """On what."""
    source: str
    """Where it was published; it holds for the row."""
    machine_key: str | None = None
    """On which machine; None if it is none of ours."""
    temperature: float | None = None
    """Of both models."""
    num_nodes: int | None = None
    """Nodes of the tree, its root included."""
    num_levels: int | None = None
    """Levels of the tree, its root's included."""
    tokens_per_pass: float | None = None
    """Mean tokens that a pass of the target emitted."""
    seconds_per_token: float | None = None
    """Mean."""
    tokens_per_second: float | None = None
    """Mean."""
    speedup: float | None = None
    """Over `baseline`."""
    baseline: str = ""
    """What the speedup is over; empty where the source does not say."""

    def __post_init__(self) -> None:
        for name in ("system", "workload", "source"):
            check_text(name, getattr(self, name))
        check_text("baseline", self.baseline, can_be_empty=True)
        if self.machine_key is not None:
            check_text("machine_key", self.machine_key)
        for name in ("num_nodes", "num_levels"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), minimum=1)
        for name in ("temperature", "tokens_per_pass", "seconds_per_token", "tokens_per_second", "speedup"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), maximum=1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePair:
    """A target with its draft, as published."""

    key: str
    """What the command line calls it, such as "llama-3-70b-8b"."""
    name: str
    """For people."""
    target_shape: str
    """The name of the target's shape."""
    draft_shape: str | None = None
    """The name of the draft's shape; None where the draft is the target itself, quantized."""
    target_held: str | None = None
    """How the target's layers were held; None where the source does not say."""
    draft_held: str | None = None
    """How the draft was held; None where the source does not say."""
    acceptance: tuple[ReferenceAcceptance, ...] = ()
    """By ascending temperature; one whose temperature is unknown stands alone."""
    machine_key: str | None = None
    """The machine of draft_step_seconds and verify_seconds."""
    draft_step_seconds: Figure | None = None
    """One forward of the draft."""
    verify_seconds: tuple[VerifyCost, ...] = ()
    """Passes of the target, by ascending nodes."""
    published: tuple[PublishedResult, ...] = ()
    """What systems made of the pair."""

    def __post_init__(self) -> None:
        for name in ("key", "name", "target_shape"):
            check_text(name, getattr(self, name))
        for name in ("draft_shape", "target_held", "draft_held", "machine_key"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        check_entries("acceptance", self.acceptance, ReferenceAcceptance)
        temperatures = [entry.temperature for entry in self.acceptance]
        if None in temperatures and len(temperatures) > 1:
            raise ProfileError("acceptance has several entries of which one lacks its temperature")
        check_ascending("acceptance", temperatures)
        check_ascending("verify_seconds", [cost.num_nodes for cost in self.verify_seconds])

    @property
    def verify_seconds_by_size(self) -> dict[int, float]:
        """Seconds of a pass of the target by nodes."""
        return {cost.num_nodes: cost.seconds.value for cost in self.verify_seconds}

    def acceptance_near(self, temperature: float) -> ReferenceAcceptance | None:
        """What is known at the nearest temperature, one that is not stated included; None if nothing is."""
        return min(self.acceptance, key=lambda entry: abs((entry.temperature or 0.0) - temperature), default=None)
