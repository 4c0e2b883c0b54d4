"""What `plan` found: where the bytes would lie, which tree, how fast, what bounds it, and what would change it.

Values and their JSON. Prints nothing, computes nothing but ratios.
"""

from dataclasses import dataclass, field
from datetime import date
from typing import Any

from runtime.fit.machine import Machine
from runtime.fit.place import Placement
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.speed import Basis
from runtime.planner.costs import RoundCosts
from runtime.planner.tree_choice import TreeChoice, TreeRanking

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOption:
    """One way to run the target, and what it is predicted to cost."""

    format_name: str
    """Of the target's layers."""
    draft_held: str | None
    """How the draft is held; None for plain streaming."""
    placement: Placement
    """Where the bytes would lie."""
    num_slots: int
    """Of the ring; 0 if nothing streams."""
    max_nodes: int
    """The largest tree that memory was kept for."""
    costs: RoundCosts = field(repr=False)
    """What the prediction was made of."""
    is_read_directly: bool
    """Whether the device reads the disk itself, so that no other link lies between."""
    measured_at: date | None = None
    """When the parts of its rounds were measured on this machine; None if they are computed from speeds."""
    ranking: TreeRanking = field(repr=False)
    """Every tree."""
    tree: TreeChoice
    """The user's tree, or the best."""

    @property
    def seconds_per_token(self) -> float:
        """Predicted."""
        return self.tree.seconds_per_token

    @property
    def streams(self) -> bool:
        """Whether any layer crosses a link in a pass."""
        return self.placement.streamed_bytes > 0

    @property
    def bound(self) -> str:
        """link, disk, compute or draft."""
        return "disk" if self.is_read_directly and self.tree.bound == "link" else self.tree.bound

    @property
    def part_seconds(self) -> dict[str, float]:
        """Seconds of a round's parts, each on its own: they overlap."""
        compute, copies = self.costs.layer_seconds(self.tree.num_nodes)
        copying = sum(float(seconds[0]) for seconds in copies if seconds is not None)
        reading = sum(seconds for seconds in self.costs.read_seconds if seconds is not None)
        return {
            "link": 0.0 if self.is_read_directly else copying,
            "disk": copying if self.is_read_directly else reading,
            "compute": float(compute.sum()),
            "draft": self.tree.draft_seconds,
            "head_and_walk": float(self.costs.walk_seconds([self.tree.num_nodes])[0]),
        }

    def to_record(self) -> dict[str, Any]:
        """As a JSON object."""
        placed = self.placement
        return {
            "format": self.format_name,
            "draft_format": self.draft_held,
            "tiers": {
                "resident": {"layers": placed.num_resident_layers, "bytes": placed.resident_bytes},
                "host": {"layers": placed.num_host_layers, "bytes": placed.host_bytes},
                "disk": {"layers": placed.num_disk_layers, "bytes": placed.disk_bytes},
            },
            "device_bytes": placed.device_bytes,
            "device_budget_bytes": placed.device_budget_bytes,
            "fixed_bytes": placed.fixed_bytes,
            "ring": {"slots": self.num_slots, "bytes": placed.ring_bytes},
            "bytes_per_pass": placed.streamed_bytes,
            "max_nodes": self.max_nodes,
            "part_seconds": self.part_seconds,
            **tree_record(self.tree),
            "bound": self.bound,
        }


@dataclass(frozen=True, slots=True)
class Refusal:
    """A way that does not run."""

    format_name: str
    """Of the target's layers."""
    sentence: str
    """What is missing."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A change of the machine and what it would bring."""

    change: str
    """In words: "1 GB more device memory"."""
    seconds_per_token: float
    """Predicted then, with the tree chosen anew."""
    saved_share: float
    """Of the seconds per token, by which they would fall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """The whole answer."""

    question: PlanQuestion
    """What was asked."""
    machine: Machine
    """For which machine."""
    main: PlanOption
    """As asked."""
    plain: PlanOption | Refusal
    """Plain streaming, with the draft's memory for layers."""
    others: tuple[PlanOption | Refusal, ...]
    """The target's other formats."""
    what_ifs: tuple[WhatIf, ...]
    """What more of the machine would bring."""
    acceptance: tuple[Basis, str] | None
    """What the expected tokens rest on; None without a draft."""
    verdicts: tuple[str, ...]
    """What to do, in sentences, the most important first."""
    notes: tuple[str, ...]
    """What limits the answer."""

    @property
    def basis_lines(self) -> tuple[tuple[str, Basis, str], ...]:
        """(what, basis, words) of everything that the prediction rests on."""
        accepted = () if self.acceptance is None else (("acceptance", *self.acceptance),)
        is_disk_used = bool(self.main.placement.disk_bytes)
        machine = tuple(line for line in self.machine.basis_lines if is_disk_used or line[0] != "disk")
        if self.main.measured_at is not None:
            measured = f"draft steps, layers, head and walk, on {self.main.measured_at.isoformat()} (pair profile)"
            machine = (*machine[:-1], ("computing", Basis.MEASURED, measured))
        return (*machine, *accepted)

    def to_record(self) -> dict[str, Any]:
        """As a JSON object."""
        question, main = self.question, self.main
        second = main.ranking.second
        return {
            "schema_version": SCHEMA_VERSION,
            "machine": self.machine.name,
            "target": question.target.name,
            "draft": question.draft_name,
            "context_tokens": question.context_tokens,
            "temperature": question.request.temperature,
            "search": question.request.search,
            "cost": question.request.cost,
            "plan": main.to_record(),
            "second": None if second is None else tree_record(second),
            "plain": _record(self.plain),
            "other_formats": [_record(option) for option in self.others],
            "what_if": [
                {
                    "change": one.change,
                    "seconds_per_token": one.seconds_per_token,
                    "saved_seconds_per_token": main.seconds_per_token - one.seconds_per_token,
                    "saved_percent": 100 * one.saved_share,
                }
                for one in self.what_ifs
            ],
            "rests_on": [{"what": what, "basis": basis, "source": words} for what, basis, words in self.basis_lines],
            "verdicts": list(self.verdicts),
            "notes": list(self.notes),
        }


def tree_record(tree: TreeChoice) -> dict[str, Any]:
    """A tree and its prediction as a JSON object."""
    return {
        "tree": {"nodes": tree.num_nodes, "levels": tree.num_levels, "is_dynamic": tree.is_dynamic},
        "expected_tokens": tree.expected_tokens,
        "round_seconds": tree.round_seconds,
        "draft_seconds": tree.draft_seconds,
        "seconds_per_token": tree.seconds_per_token,
        "tokens_per_second": 1 / tree.seconds_per_token,
        "bound": tree.bound,
    }


def _record(option: PlanOption | Refusal) -> dict[str, Any]:
    if isinstance(option, Refusal):
        return {"format": option.format_name, "problem": option.sentence}
    return option.to_record()
