"""Whether a session fits a machine, and the nearest change that would make it fit, in one sentence.

Changes are tried from the least to the most that they cost: a budget, a shorter context, int8, NF4, a smaller draft
or none, these together, more memory.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from typing import Literal, TypeAlias

from offload.units import format_bytes
from runtime.fit.machine import RESERVED_BYTES, Machine, free_bytes_for
from runtime.fit.place import MemoryNeed, Placement, place

MIN_CONTEXT_TOKENS = 512
"""No shorter context is proposed."""
MIN_DRAFT_BYTES = 200_000_000
"""No smaller draft is proposed, only none."""
_CONTEXT_STEP = 256

ChangeKind = Literal["budget", "context", "format", "draft", "combined", "memory"]
_Resource: TypeAlias = Literal["free disk", "device memory", "memory", "host memory"]


@dataclass(frozen=True, slots=True)
class Change:
    """Something the user could do."""

    words: str
    """As it stands in a sentence: "nf4 (35.3 GB)", "--context 1024", "2.10 GB more host memory"."""
    kind: ChangeKind
    placement: Placement
    """Where the bytes would lie then."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether a session fits, and what would make it fit."""

    placement: Placement
    """As asked."""
    changes: tuple[Change, ...]
    """What would make it run, or run without reading from disk; the nearest first. Empty if it runs well."""
    sentence: str
    """All of it for a person."""


def advise(need: MemoryNeed, machine: Machine) -> Advice:
    """Hold what is needed against what there is."""
    case = _Case(need, machine, place(need, machine))
    if case.base.runs_well:
        return Advice(case.base, (), _describe(case.base))
    changes = tuple(case.changes())
    return Advice(case.base, changes, case.explain(changes))


@dataclass(frozen=True, slots=True)
class _Shortage:
    """The first thing that there is too little of."""

    resource: _Resource
    needed_bytes: int
    usable_bytes: int
    is_budget: bool = False


@dataclass(frozen=True, slots=True)
class _Case:
    """A session that does not run on a machine, or not well."""

    need: MemoryNeed
    machine: Machine
    base: Placement
    """As asked."""

    def changes(self) -> Iterator[Change]:
        tried = (*self._budgets(), *self._contexts(), *self._formats(), *self._drafts())
        found = [change for change in tried if self._reaches(change.placement)]
        yield from found
        if not any(change.placement.runs_well for change in found):
            is_enough = attrgetter("runs_well") if found else self._reaches
            together = (change for change in self._combinations() if is_enough(change.placement))
            yield from islice(together, 1)
        yield from self._more_memory()

    def explain(self, changes: tuple[Change, ...]) -> str:
        """Say what is missing, the nearest change, and what it costs to do nothing."""
        shortage = _shortage(self.need, self.machine, self.base)
        resource = shortage.resource.removeprefix("free ")
        needs = f"{self.base.format_name} would need {format_bytes(shortage.needed_bytes)} of {resource}"
        nearest = changes[0] if changes else None
        if nearest is not None and nearest.kind == "format":
            needs += "".join(self._failing_formats(shortage.resource, nearest.placement.format_name))
        has = f"{'the budget is' if shortage.is_budget else 'you have'} {format_bytes(shortage.usable_bytes)}"
        if format_bytes(shortage.usable_bytes) == format_bytes(shortage.needed_bytes):
            has += f" ({shortage.needed_bytes - shortage.usable_bytes} bytes less)"
        sentence = f"{needs}; {has}"
        if nearest is not None:
            sentence += f", so {_recommend(nearest)}"
        if self.base.can_run:
            sentence += f"; as it is, every pass reads {format_bytes(self.base.disk_bytes)} from disk"
        return sentence

    def _reaches(self, placement: Placement) -> bool:
        return placement.runs_well if self.base.can_run else placement.can_run

    def _change(
        self, words: str, kind: ChangeKind, *, need: MemoryNeed | None = None, machine: Machine | None = None
    ) -> Change:
        return Change(words, kind, place(need or self.need, machine or self.machine))

    def _budgets(self) -> Iterator[Change]:
        """Yield a larger budget, or none, where the user's own stand in the way."""
        machine, least = self.machine, self.need.least_bytes
        if machine.device_budget_bytes is not None and self.base.device_budget_bytes < least:
            larger = replace(machine, device_budget_bytes=least)
            raised = self._change(f"--device-memory {_rounded_up(least)}", "budget", machine=larger)
            yield raised
            if self._reaches(raised.placement):
                return
        budgets = {"--device-memory": machine.device_budget_bytes, "--host-memory": machine.host_budget_bytes}
        options = [name for name, budget in budgets.items() if budget is not None]
        if options:
            yield self._change(f"leaving out {' and '.join(options)}", "budget", machine=_without_budgets(machine))

    def _contexts(self) -> Iterator[Change]:
        def shortened(steps: int) -> MemoryNeed:
            return replace(self.need, context_tokens=steps * _CONTEXT_STEP)

        lowest, highest = MIN_CONTEXT_TOKENS // _CONTEXT_STEP, (self.need.context_tokens - 1) // _CONTEXT_STEP
        steps = _largest(lambda steps: self._reaches(place(shortened(steps), self.machine)), lowest, highest)
        if steps is not None:
            yield self._change(f"--context {steps * _CONTEXT_STEP}", "context", need=shortened(steps))

    def _formats(self) -> Iterator[Change]:
        resource = _shortage(self.need, self.machine, self.base).resource
        for layers in self.need.formats[1:]:
            smaller = self.need.in_format(layers.name)
            needed = _needed_bytes(smaller, self.machine, resource, is_least=not self.base.can_run)
            yield self._change(f"{layers.name} ({format_bytes(needed)})", "format", need=smaller)

    def _drafts(self) -> Iterator[Change]:
        if (draft := self.need.draft) is None:
            return

        def fits(megabytes: int) -> bool:
            smaller = replace(draft, num_bytes=megabytes * 10**6)
            return self._reaches(place(replace(self.need, draft=smaller), self.machine))

        megabytes, words = _largest(fits, MIN_DRAFT_BYTES // 10**6, draft.num_bytes // 10**6), "--draft none"
        if megabytes is not None:
            words = f"a draft of at most {format_bytes(megabytes * 10**6)} (or --draft none)"
        yield self._change(words, "draft", need=self.need.without_draft())

    def _combinations(self) -> Iterator[Change]:
        """Yield two or three changes at once: a format without draft, then each with a short context too."""
        for is_short in (False, True):
            for layers in self.need.formats:
                changed = self.need.in_format(layers.name)
                words = [] if layers is self.need.layers else [layers.name]
                if self.need.draft is not None:
                    changed = changed.without_draft()
                    words.append("--draft none")
                if is_short and self.need.context_tokens > MIN_CONTEXT_TOKENS:
                    changed = replace(changed, context_tokens=MIN_CONTEXT_TOKENS)
                    words.append(f"--context {MIN_CONTEXT_TOKENS}")
                if len(words) > 1:
                    together = " with ".join((words[0], " and ".join(words[1:])))
                    yield self._change(together, "combined", need=changed)

    def _more_memory(self) -> Iterator[Change]:
        """Yield how much more of which of the four kinds of memory would do, everything else as it is."""
        words: list[str] = []
        machine = _without_budgets(self.machine)
        while not self._reaches(placement := place(self.need, machine)) and len(words) < 4:
            shortage = _shortage(self.need, machine, placement)
            machine, more_bytes = _grown(self.need, machine, shortage, placement)
            words.append(f"{_rounded_up(more_bytes, ' ')} more {shortage.resource}")
        if words and self._reaches(placement):
            yield Change(" and ".join(words), "memory", placement)

    def _failing_formats(self, resource: _Resource, fitting_format: str) -> Iterator[str]:
        """Yield what the formats before the fitting one would need, if they lack the same."""
        for layers in self.need.formats[1:]:
            if layers.name == fitting_format:
                return
            smaller = self.need.in_format(layers.name)
            shortage = _shortage(smaller, self.machine, place(smaller, self.machine))
            if shortage.resource == resource:
                yield f", {layers.name} {format_bytes(shortage.needed_bytes)}"


def _shortage(need: MemoryNeed, machine: Machine, placement: Placement) -> _Shortage:
    """Return what a placement that does not run, or not well, lacks first."""
    device: _Resource = "memory" if machine.is_cpu else "device memory"
    device_budget, is_budget = placement.device_budget_bytes, bool(machine.device_budget_bytes)
    if placement.missing_disk_bytes:
        return _Shortage("free disk", need.file_bytes, machine.disk_free_bytes or 0)
    if placement.missing_device_bytes and need.least_bytes > device_budget:
        return _Shortage(device, need.least_bytes, device_budget, is_budget)
    if placement.missing_device_bytes:  # the budget is more than there is
        return _Shortage(device, machine.free_bytes + placement.missing_device_bytes, machine.free_bytes)
    if placement.missing_host_bytes:
        return _Shortage("host memory", placement.host_bytes, machine.host_free_bytes)
    if machine.is_cpu and not placement.host_budget_bytes and not machine.is_link_emulated:
        return _Shortage("memory", need.fixed_bytes + need.layers.total_bytes, device_budget, is_budget)
    beside = _host_side_bytes(need, machine)
    needed, usable = placement.residency.streamed_bytes + beside, placement.host_budget_bytes + beside
    return _Shortage("host memory", needed, usable, is_budget=machine.host_budget_bytes is not None)


def _host_side_bytes(need: MemoryNeed, machine: Machine) -> int:
    """Return what is wanted of host memory beside waiting layers; a budget that the user chose does not pay for it."""
    return 0 if machine.is_cpu or machine.host_budget_bytes is not None else need.host_side_bytes


def _needed_bytes(need: MemoryNeed, machine: Machine, resource: _Resource, *, is_least: bool) -> int:
    """Return how much of a resource a session takes: to run at all, or to run well."""
    if resource == "free disk":
        return need.file_bytes
    if resource == "host memory":
        return place(need, machine).residency.streamed_bytes + _host_side_bytes(need, machine)
    return need.least_bytes if is_least else need.fixed_bytes + need.layers.total_bytes


def _grown(need: MemoryNeed, machine: Machine, shortage: _Shortage, placement: Placement) -> tuple[Machine, int]:
    """Return the machine, without the user's budgets, with just enough of what it lacks, and how much more that is."""
    needed = shortage.needed_bytes
    if shortage.resource == "free disk":
        return replace(machine, disk_free_bytes=needed), needed - shortage.usable_bytes
    if not machine.is_link_emulated:
        is_host = shortage.resource == "host memory"
        beside = _host_side_bytes(need, machine) if is_host else 0
        free = free_bytes_for(needed - beside, is_pinned=is_host and not machine.is_cpu) + beside
    elif shortage.resource == "host memory":
        free = placement.device_budget_bytes + RESERVED_BYTES + needed
    else:
        free = needed
    if shortage.resource == "device memory":
        return replace(machine, device_free_bytes=free), free - machine.free_bytes
    return replace(machine, host_free_bytes=free), free - machine.host_free_bytes


def _without_budgets(machine: Machine) -> Machine:
    return replace(machine, device_budget_bytes=None, host_budget_bytes=None)


def _largest(fits: Callable[[int], bool], lowest: int, highest: int) -> int | None:
    """Return the largest number that fits, where all below a fitting one fit; None if not even the lowest does."""
    numbers = range(lowest, highest + 1)
    num_fitting = bisect_left(numbers, True, key=lambda number: not fits(number))
    return numbers[num_fitting - 1] if num_fitting else None


def _rounded_up(num_bytes: int, separator: str = "") -> str:
    """Return bytes as they can be typed for a budget, never less than what they stand for: "3.5GB"."""
    if num_bytes >= 10**9:
        return f"{-(-num_bytes // 10**8) / 10:.1f}{separator}GB"
    return f"{-(-num_bytes // 10**6)}{separator}MB"


def _describe(placement: Placement) -> str:
    num_resident, num_host = placement.num_resident_layers, placement.num_host_layers
    held = f"{format_bytes(placement.device_bytes)} of {format_bytes(placement.device_budget_bytes)}"
    if not num_host:
        return f"fits: every layer stays in memory ({held})"
    return (
        f"fits: {num_resident} of {num_resident + num_host} layers stay on the device ({held}) and "
        f"{format_bytes(placement.host_bytes)} wait in host memory"
    )


def _recommend(change: Change) -> str:
    placement, price = change.placement, ""
    if placement.can_run and not placement.runs_well:
        price = f" (every pass would then read {format_bytes(placement.disk_bytes)} from disk)"
    if change.kind == "memory":
        return f"it takes {change.words}{price}"
    return f"{change.words} is the nearest that fits{price}"
