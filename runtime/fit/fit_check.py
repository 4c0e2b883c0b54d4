"""Whether a session fits this machine, and the nearest change that would make it fit, in one sentence.

Changes are tried from the least to the most that they cost: a budget, a shorter context, int8, NF4, a smaller draft
or none, these together, more memory. Pure arithmetic: opens nothing and reads no weight.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from offload.units import format_bytes
from runtime.fit.machine import RESERVED_BYTES, Machine, free_bytes_for
from runtime.fit.need import MemoryNeed
from runtime.fit.place import Placement, place

MIN_CONTEXT_TOKENS = 512
"""No shorter context is proposed."""
MIN_DRAFT_BYTES = 200_000_000
"""No smaller draft is proposed, only none."""
_CONTEXT_STEP = 256

ChangeKind = Literal["budget", "context", "format", "draft", "combined", "memory"]
_Goal: TypeAlias = Callable[[Placement], bool]


@dataclass(frozen=True, slots=True)
class Change:
    """Something the user could do."""

    words: str
    """As it stands in a sentence: "nf4 (35.3 GB)", "--context 1024", "2.10 GB more host memory"."""
    kind: ChangeKind
    """What is changed."""
    placement: Placement
    """Where the bytes would lie then."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """Whether a session fits, and what would make it fit."""

    placement: Placement
    """As asked."""
    changes: tuple[Change, ...]
    """What would make it run, or run without reading from disk; the nearest first. Empty if it runs well."""
    sentence: str
    """All of it for a person."""

    @property
    def can_run(self) -> bool:
        """Whether it runs at all."""
        return self.placement.can_run

    @property
    def runs_well(self) -> bool:
        """Whether it runs without reading weights from disk in every pass."""
        return self.placement.runs_well


def check_fit(need: MemoryNeed, machine: Machine) -> FitReport:
    """Hold what is needed against what there is."""
    placement = place(need, machine)
    changes = () if placement.runs_well else tuple(_changes(need, machine, placement))
    sentence = _describe(placement) if placement.runs_well else _explain(need, machine, placement, changes)
    return FitReport(placement, changes, sentence)


def with_nearest_change(sentence: str, need: MemoryNeed, machine: Machine) -> str:
    """The sentence of a refusal, ended by the nearest change that would run; as it is where nothing would."""
    changes = [change for change in check_fit(need, machine).changes if change.placement.can_run]
    return f"{sentence.rstrip('.')}; {_recommend(changes[0])}" if changes else sentence


def _changes(need: MemoryNeed, machine: Machine, base: Placement) -> Iterator[Change]:
    def reaches(placement: Placement) -> bool:
        return placement.runs_well if base.can_run else placement.can_run

    found = [
        *_budget_changes(need, machine, base, reaches),
        *_context_changes(need, machine, reaches),
        *_format_changes(need, machine, base, reaches),
        *_draft_changes(need, machine, reaches),
    ]
    yield from found
    if not any(change.placement.runs_well for change in found):
        yield from _combined_changes(need, machine, (lambda placement: placement.runs_well) if found else reaches)
    yield from _memory_changes(need, machine, reaches)


def _budget_changes(need: MemoryNeed, machine: Machine, base: Placement, reaches: _Goal) -> Iterator[Change]:
    """Only where the user's own budgets stand in the way."""
    chosen = {"--device-memory": machine.device_budget_bytes, "--host-memory": machine.host_budget_bytes}
    least = need.fixed_bytes + min(need.ring_bytes, need.layers.total_bytes)
    if chosen["--device-memory"] is not None and base.device_budget_bytes < least:
        placement = place(need, replace(machine, device_budget_bytes=least))
        if reaches(placement):
            yield Change(f"--device-memory {_rounded_up(least)}", "budget", placement)
            return
    options = [name for name, budget in chosen.items() if budget is not None]
    if options:
        placement = place(need, _without_budgets(machine))
        if reaches(placement):
            yield Change(f"leaving out {' and '.join(options)}", "budget", placement)


def _context_changes(need: MemoryNeed, machine: Machine, reaches: _Goal) -> Iterator[Change]:
    def fits(steps: int) -> bool:
        return reaches(place(need.with_context(steps * _CONTEXT_STEP), machine))

    lowest, highest = MIN_CONTEXT_TOKENS // _CONTEXT_STEP, (need.context_tokens - 1) // _CONTEXT_STEP
    steps = _largest(fits, lowest, highest)
    if steps is not None:
        tokens = steps * _CONTEXT_STEP
        yield Change(f"--context {tokens}", "context", place(need.with_context(tokens), machine))


def _format_changes(need: MemoryNeed, machine: Machine, base: Placement, reaches: _Goal) -> Iterator[Change]:
    resource = _shortage(need, machine, base).resource
    for layers in need.formats[1:]:
        smaller = need.in_format(layers.name)
        placement = place(smaller, machine)
        if reaches(placement):
            needed = _needed_bytes(smaller, machine, placement, resource=resource, is_least=not base.can_run)
            yield Change(f"{layers.name} ({format_bytes(needed)})", "format", placement)


def _draft_changes(need: MemoryNeed, machine: Machine, reaches: _Goal) -> Iterator[Change]:
    if need.draft is None:
        return
    plain = place(need.without_draft(), machine)
    if not reaches(plain):
        return
    words = "--draft none"

    def fits(megabytes: int) -> bool:
        return reaches(place(need.with_draft_bytes(megabytes * 10**6), machine))

    megabytes = _largest(fits, MIN_DRAFT_BYTES // 10**6, need.draft.num_bytes // 10**6)
    if megabytes is not None:
        words = f"a draft of at most {format_bytes(megabytes * 10**6)} (or --draft none)"
    yield Change(words, "draft", plain)


def _combined_changes(need: MemoryNeed, machine: Machine, reaches: _Goal) -> Iterator[Change]:
    """Two or three changes at once: the first format that helps, without draft, then with a short context as well."""
    for is_short in (False, True):
        for layers in need.formats:
            changed = need.in_format(layers.name)
            words = [] if layers is need.layers else [layers.name]
            if need.draft is not None:
                changed = changed.without_draft()
                words.append("--draft none")
            if is_short and need.context_tokens > MIN_CONTEXT_TOKENS:
                changed = changed.with_context(MIN_CONTEXT_TOKENS)
                words.append(f"--context {MIN_CONTEXT_TOKENS}")
            placement = place(changed, machine)
            if len(words) > 1 and reaches(placement):
                yield Change(" with ".join((words[0], " and ".join(words[1:]))), "combined", placement)
                return


def _memory_changes(need: MemoryNeed, machine: Machine, reaches: _Goal) -> Iterator[Change]:
    """How much more of what would do, everything else as it is."""
    words: list[str] = []
    machine = _without_budgets(machine)
    placement = place(need, machine)
    while not reaches(placement) and len(words) < len(_MORE):
        shortage = _shortage(need, machine, placement)
        machine, more_bytes = _grown(need, machine, shortage, placement)
        words.append(f"{_rounded_up(more_bytes, ' ')} more {_MORE[shortage.resource]}")
        placement = place(need, machine)
    if words and reaches(placement):
        yield Change(" and ".join(words), "memory", placement)


_Resource: TypeAlias = Literal["disk", "device", "memory", "host"]
_MORE: dict[_Resource, str] = {
    "disk": "free disk",
    "device": "device memory",
    "memory": "memory",
    "host": "host memory",
}


@dataclass(frozen=True, slots=True)
class _Shortage:
    """The first thing that there is too little of."""

    resource: _Resource
    needed_bytes: int
    usable_bytes: int
    is_budget: bool = False


def _shortage(need: MemoryNeed, machine: Machine, placement: Placement) -> _Shortage:
    """For a placement that does not run, or not well."""
    least = need.fixed_bytes + min(need.ring_bytes, need.layers.total_bytes)
    device: _Resource = "memory" if machine.is_cpu else "device"
    device_budget, is_budget = placement.device_budget_bytes, bool(machine.device_budget_bytes)
    if placement.missing_disk_bytes:
        return _Shortage("disk", need.file_bytes, machine.disk_free_bytes or 0)
    if placement.missing_device_bytes and least > device_budget:
        return _Shortage(device, least, device_budget, is_budget)
    if placement.missing_device_bytes:  # the budget is more than there is
        return _Shortage(device, machine.free_bytes + placement.missing_device_bytes, machine.free_bytes)
    if placement.missing_host_bytes:
        return _Shortage("host", placement.host_bytes, machine.host_free_bytes)
    if machine.is_cpu and not placement.host_budget_bytes and not machine.is_link_emulated:
        return _Shortage("memory", need.fixed_bytes + need.layers.total_bytes, device_budget, is_budget)
    stages = _stage_bytes(need, machine)
    needed, usable = placement.residency.streamed_bytes + stages, placement.host_budget_bytes + stages
    return _Shortage("host", needed, usable, is_budget=machine.host_budget_bytes is not None)


def _stage_bytes(need: MemoryNeed, machine: Machine) -> int:
    """What layers take of host memory in passing; beside a budget that the user chose."""
    return 0 if machine.is_cpu or machine.host_budget_bytes is not None else need.stage_bytes


def _needed_bytes(
    need: MemoryNeed, machine: Machine, placement: Placement, *, resource: _Resource, is_least: bool
) -> int:
    """How much of a resource a session takes: to run at all, or to run well."""
    if resource == "disk":
        return need.file_bytes
    if resource == "host":
        return placement.residency.streamed_bytes + _stage_bytes(need, machine)
    return need.fixed_bytes + (min(need.ring_bytes, need.layers.total_bytes) if is_least else need.layers.total_bytes)


def _grown(need: MemoryNeed, machine: Machine, shortage: _Shortage, placement: Placement) -> tuple[Machine, int]:
    """The machine with just enough of what it lacks, and how much more that is; it has no budgets of the user's."""
    needed = shortage.needed_bytes
    if shortage.resource == "disk":
        return replace(machine, disk_free_bytes=needed), needed - shortage.usable_bytes
    if not machine.is_link_emulated:
        stages = _stage_bytes(need, machine) if shortage.resource == "host" else 0
        free = free_bytes_for(needed - stages) + stages
    elif shortage.resource == "host":
        free = placement.device_budget_bytes + RESERVED_BYTES + needed
    else:
        free = needed
    if shortage.resource == "device":
        return replace(machine, device_free_bytes=free), free - machine.free_bytes
    return replace(machine, host_free_bytes=free), free - machine.host_free_bytes


def _without_budgets(machine: Machine) -> Machine:
    return replace(machine, device_budget_bytes=None, host_budget_bytes=None)


def _largest(fits: Callable[[int], bool], lowest: int, highest: int) -> int | None:
    """The largest number that fits, where all below a fitting one fit; None if not even the lowest does."""
    if lowest > highest or not fits(lowest):
        return None
    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        if fits(middle):
            lowest = middle
        else:
            highest = middle - 1
    return lowest


def _rounded_up(num_bytes: int, separator: str = "") -> str:
    """Bytes as they can be typed for a budget, never less than what they stand for: "3.5GB"."""
    if num_bytes >= 10**9:
        return f"{-(-num_bytes // 10**8) / 10:.1f}{separator}GB"
    return f"{-(-num_bytes // 10**6)}{separator}MB"


def _describe(placement: Placement) -> str:
    """For a session that runs well."""
    num_resident, num_host = placement.num_resident_layers, placement.num_host_layers
    held = f"{format_bytes(placement.device_bytes)} of {format_bytes(placement.device_budget_bytes)}"
    if not num_host:
        return f"fits: every layer stays in memory ({held})"
    return (
        f"fits: {num_resident} of {num_resident + num_host} layers stay on the device ({held}) and "
        f"{format_bytes(placement.host_bytes)} wait in host memory"
    )


def _explain(need: MemoryNeed, machine: Machine, placement: Placement, changes: tuple[Change, ...]) -> str:
    """What is missing, the nearest change, and what it costs to do nothing."""
    shortage = _shortage(need, machine, placement)
    needs = f"{placement.format_name} would need {format_bytes(shortage.needed_bytes)} {_of(shortage)}"
    nearest = changes[0] if changes else None
    if nearest is not None and nearest.kind == "format":
        needs += "".join(_failing_formats(need, machine, shortage.resource, nearest.placement.format_name))
    has = f"{'the budget is' if shortage.is_budget else 'you have'} {format_bytes(shortage.usable_bytes)}"
    if format_bytes(shortage.usable_bytes) == format_bytes(shortage.needed_bytes):
        has += f" ({shortage.needed_bytes - shortage.usable_bytes} bytes less)"
    sentence = f"{needs}; {has}"
    if nearest is not None:
        sentence += f", so {_recommend(nearest)}"
    if placement.can_run:
        sentence += f"; as it is, every pass reads {format_bytes(placement.disk_bytes)} from disk"
    return sentence


def _failing_formats(need: MemoryNeed, machine: Machine, resource: _Resource, fitting_format: str) -> Iterator[str]:
    """The formats between that lack the same."""
    for layers in need.formats[1:]:
        if layers.name == fitting_format:
            return
        smaller = need.in_format(layers.name)
        shortage = _shortage(smaller, machine, place(smaller, machine))
        if shortage.resource == resource:
            yield f", {layers.name} {format_bytes(shortage.needed_bytes)}"


def _of(shortage: _Shortage) -> str:
    return {"disk": "of disk", "device": "of device memory", "memory": "of memory", "host": "of host memory"}[
        shortage.resource
    ]


def _recommend(change: Change) -> str:
    if change.kind == "memory":
        return f"it takes {change.words}{_price(change.placement)}"
    return f"{change.words} is the nearest that fits{_price(change.placement)}"


def _price(placement: Placement) -> str:
    """What a change that runs still costs."""
    if placement.runs_well or not placement.can_run:
        return ""
    return f" (every pass would then read {format_bytes(placement.disk_bytes)} from disk)"
