"""What one pair of models costs and accepts on one machine, as measured: draft steps, layers, head, acceptance.

Keyed by device and driver and by the content of both models, so that a changed model, format or driver makes a profile
stale instead of wrong. The types of the fields bound what a file may hold (see `records`).
"""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, ClassVar

from msgspec import Meta

from profiles.machine_profile import DeviceIdentity
from profiles.records import (
    Count,
    CountFromZero,
    Probability,
    Seconds,
    Temperature,
    Text,
    check_ascending,
    check_probabilities,
)

LARGEST_SPREAD = 10.0
"""Logits; a draft that differs so far from its target is an unrelated one."""
_AtLeastOne = Meta(min_length=1)
_Slowdown = Annotated[float, Meta(ge=0, le=100)]

FEW_POSITIONS = 30
"""With fewer the first rank's standard error is around 0.07 or more, and the others are hardly known."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model, by what its files hold."""

    name: Text
    """For people: the folder's or hub name."""
    content_digest: Text
    """Hexadecimal digest of configuration, headers and samples of the weights; see runtime.planner.known_pairs."""
    held: Text
    """How its layers are held: "bfloat16", "float32", "int8", "nf4", ..."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """A draft forward, head and choice of children included; median."""

    width: Count
    seconds: Seconds
    is_fitted: bool = False
    """Whether a fit to other widths gave it, not a measurement."""


@dataclass(frozen=True, slots=True)
class PassCost:
    """The computation of all decoder layers of the target over some tokens, every weight there already; median."""

    num_tokens: Count
    context_tokens: CountFromZero
    """Tokens that they attend to, before them."""
    seconds: Seconds
    is_fitted: bool = False


@dataclass(frozen=True, slots=True)
class WalkCost:
    """Head, walk and compaction after a pass; median."""

    num_nodes: Count
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class AcceptanceTable:
    """How likely the child of each rank is the accepted one, at one temperature. R ranks, D depths."""

    temperature: Temperature
    """Of both models."""
    by_rank: Annotated[tuple[Probability, ...], _AtLeastOne]
    """(R,) means over all positions."""
    by_rank_errors: tuple[Probability | None, ...]
    """(R,) standard errors, between texts where there are several; None where fewer than two positions were seen."""
    num_positions: tuple[CountFromZero, ...]
    """(R,) positions that had a child of this rank."""
    by_depth: tuple[tuple[Probability, ...], ...]
    """(D, R) the same by depth of the parent, behind likely accepted paths; the last row stands for all deeper ones."""
    by_depth_positions: tuple[CountFromZero, ...]
    """(D,) positions at each depth."""
    num_texts: CountFromZero
    spread: Annotated[float, Meta(gt=0, le=LARGEST_SPREAD)] | None = None
    """How far draft and target differ, in logits, see `acceptance`; None where that was not measured."""
    by_confidence: tuple[Annotated[tuple[Probability, ...], _AtLeastOne], ...] = ()
    """(G, R) how likely the draft's candidate of each rank is the emitted token, in groups of as many positions each,
    from those where the draft is least sure to those where it is surest; () where that was not measured."""

    def __post_init__(self) -> None:
        num_ranks = len(self.by_rank)
        if sizes := {len(self.by_rank_errors), len(self.num_positions)} - {num_ranks}:
            raise ValueError(
                f"by_rank has {num_ranks} entries, its errors or positions {sizes}; expected as many of each"
            )
        if len(self.by_depth) != len(self.by_depth_positions):
            raise ValueError(
                f"by_depth has {len(self.by_depth)} rows but {len(self.by_depth_positions)} numbers of positions"
            )
        tables = {"by_rank": (self.by_rank,), "by_depth": self.by_depth, "by_confidence": self.by_confidence}
        for name, rows in tables.items():
            for row in rows:
                check_probabilities(name, row)
                if len(row) != num_ranks:
                    raise ValueError(f"a row of {name} has {len(row)} ranks; expected {num_ranks}")

    @property
    def is_rough(self) -> bool:
        return self.num_positions[0] < FEW_POSITIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class PairProfile:
    """Facts about one target and one draft on one device."""

    SCHEMA_VERSION: ClassVar[int] = 3
    """Raised whenever a field is added, dropped or changes its meaning."""

    device: DeviceIdentity
    target: ModelIdentity
    draft: ModelIdentity
    """What proposes; a substitute has the target's digest and its own `held`."""
    compute_dtype: Text
    measured_at: date
    draft_steps: Annotated[tuple[StepCost, ...], _AtLeastOne]
    pass_costs: Annotated[tuple[PassCost, ...], _AtLeastOne]
    walk_costs: Annotated[tuple[WalkCost, ...], _AtLeastOne]
    acceptance: Annotated[tuple[AcceptanceTable, ...], _AtLeastOne]
    compute_slowdown: _Slowdown = 0.0
    """Seconds of computation that each second of copying costs, where both share cores and memory."""
    copy_slowdown: _Slowdown = 0.0
    """Seconds of copying that each second of computing costs."""

    def __post_init__(self) -> None:
        check_ascending("draft_steps", [step.width for step in self.draft_steps])
        check_ascending("pass_costs", [(cost.context_tokens, cost.num_tokens) for cost in self.pass_costs])
        check_ascending("walk_costs", [cost.num_nodes for cost in self.walk_costs])
        check_ascending("acceptance", [table.temperature for table in self.acceptance])

    @property
    def believed_acceptance(self) -> tuple[AcceptanceTable, ...]:
        """The tables that saw enough positions to plan from."""
        return tuple(table for table in self.acceptance if not table.is_rough)

    def acceptance_near(self, temperature: float) -> AcceptanceTable:
        """Return the table of the nearest temperature, of two the cooler; a rough one only if all are."""
        tables = self.believed_acceptance or self.acceptance
        return min(tables, key=lambda table: (abs(table.temperature - temperature), table.temperature))
