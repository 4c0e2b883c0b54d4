"""The reference machines and pairs that come with the program: what others measured, or data sheets say.

They stand in for profiles where nothing was measured: to plan for a machine that is not there, and to start with a pair
that nobody has calibrated. Every figure has its source. The files are part of the package and read as strictly as a
user's; machines and pairs are looked up as people spell them.
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, ClassVar, Literal, TypeVar

from msgspec import Meta

from profiles.errors import ProfileError, quote
from profiles.records import Probability, Rate, Temperature, Text, from_record, parse_record


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it comes from."""

    value: Rate
    """In the unit that the field's name says."""
    source: Text
    """Who measured it on what, which data sheet says so, or how it was derived."""
    is_measured: bool
    """Whether somebody measured it; else it is a data sheet's, or derived from one."""


@dataclass(frozen=True, slots=True)
class PcieSlot:
    """How a card is wired to the host."""

    generation: Literal[3, 4, 5]
    lanes: Literal[1, 2, 4, 8, 16]
    source: Text


@dataclass(frozen=True, slots=True)
class ReferenceMachine:
    """A device and its link, as published."""

    key: Text
    """What the command line calls it, such as "rtx-4090"."""
    name: Text
    """For people, such as "RTX 4090"."""
    device_memory_bytes: Figure
    memory_bytes_per_second: Figure
    """The device reading its own memory."""
    flops_per_second: Figure
    """Peak of dense FP16 or BF16 matrix products that accumulate in FP32."""
    pcie: PcieSlot
    link_bytes_per_second: Figure
    """What a copy from pinned host memory to the device gets."""


@dataclass(frozen=True, slots=True)
class ReferenceAcceptance:
    """How likely the child of each rank was the accepted one."""

    by_rank: Annotated[tuple[Probability, ...], Meta(min_length=1)]
    source: Text
    is_measured: bool
    temperature: Temperature | None
    """Of both models; None where the source does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePair:
    """A target with its draft, as published."""

    key: Text
    name: Text
    target_shape: Text
    draft_shape: Text
    acceptance: Annotated[tuple[ReferenceAcceptance, ...], Meta(min_length=1)]
    """By ascending temperature; one whose temperature is unknown stands alone."""

    def acceptance_near(self, temperature: float) -> ReferenceAcceptance:
        """Return what is known at the nearest temperature, one that is not stated included."""
        return min(self.acceptance, key=lambda entry: abs((entry.temperature or 0.0) - temperature))


@dataclass(frozen=True, slots=True)
class UnmeasuredPair:
    """What trees are planned with before anything was measured of a pair."""

    SCHEMA_VERSION: ClassVar[int] = 1
    separate_draft: ReferenceAcceptance
    by_confidence: tuple[tuple[Probability, ...], ...]
    """(G, R) of a separate draft's candidates, in groups of positions from those where it is least sure."""
    confidence_source: Text
    substitutes: dict[str, ReferenceAcceptance]
    """Of the target's own layers, by the format they are held in."""


@dataclass(frozen=True, slots=True)
class _MachinesFile:
    SCHEMA_VERSION: ClassVar[int] = 1
    machines: tuple[ReferenceMachine, ...]


@dataclass(frozen=True, slots=True)
class _PairsFile:
    SCHEMA_VERSION: ClassVar[int] = 2
    pairs: tuple[ReferencePair, ...]


_File = TypeVar("_File", _MachinesFile, _PairsFile, UnmeasuredPair)


def builtin_machines() -> dict[str, ReferenceMachine]:
    """Return every reference machine by its key. Raises ProfileError if the program's own file is damaged."""
    return {machine.key: machine for machine in _load("machines.json", _MachinesFile).machines}


def builtin_machine(name: str) -> ReferenceMachine:
    """Return the machine of that name, however it is spelled: "4090", "RTX 4090", "NVIDIA GeForce RTX 4090".

    Raises ProfileError, which says which are near and which there are.
    """
    machines = builtin_machines()
    by_spelling = {spelling: machine for machine in machines.values() for spelling in _spellings(machine)}
    wanted = _plain(name)
    if wanted in by_spelling:
        return by_spelling[wanted]
    within = [spelling for spelling in by_spelling if spelling in wanted]
    close = difflib.get_close_matches(wanted, by_spelling, n=len(by_spelling), cutoff=0.6)
    near = list(dict.fromkeys(by_spelling[spelling].key for spelling in within + close))[:3]
    hint = f" (near it: {', '.join(near)})" if near else ""
    raise ProfileError(f"{quote(name)} is not a built-in machine{hint}; choose one of {', '.join(machines)}")


def builtin_pairs() -> dict[str, ReferencePair]:
    """Return every reference pair by its key. Raises ProfileError if the program's own file is damaged."""
    return {pair.key: pair for pair in _load("pairs.json", _PairsFile).pairs}


@cache
def unmeasured_pair() -> UnmeasuredPair:
    """Return what is known of pairs in general. Raises ProfileError if the program's own file is damaged."""
    return _load("acceptance.json", UnmeasuredPair)


def _spellings(machine: ReferenceMachine) -> set[str]:
    """Return its names with and without the size of its memory: a card of another size is another machine."""
    memory = f"{machine.device_memory_bytes.value / (1 << 30):.0f}gb"
    bare = _plain(machine.name).removesuffix(memory)
    return {_plain(machine.key), bare, bare + memory}


def _plain(name: str) -> str:
    """Return small letters and digits, without what all cards of a vendor are called."""
    return re.sub(r"[^a-z0-9]", "", re.sub("nvidia|geforce|rtx", "", name.lower()))


def _load(file_name: str, kind: type[_File]) -> _File:
    try:
        raw = resources.files("profiles").joinpath("builtin", file_name).read_bytes()
        return from_record(kind, parse_record(raw))
    except (OSError, ProfileError) as error:
        raise ProfileError(
            f"the program's own file {file_name} is damaged: {error}; install overstory again"
        ) from error
