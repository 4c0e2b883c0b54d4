"""What one pair of models costs and accepts on one machine, as measured: draft steps, layers, head, acceptance.

Keyed by device and driver and by the content of both models, so that a changed model, format or driver makes a profile
stale instead of wrong. A profile cannot hold nonsense: every field is checked when the object is made. Knows no file
and no torch; `profile_store` reads and writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from profiles.candidate_chances import LARGEST_SPREAD
from profiles.errors import ProfileError, quote
from profiles.field_checks import (
    check_ascending,
    check_count,
    check_day,
    check_entries,
    check_flag,
    check_not_empty,
    check_number,
    check_probabilities,
    check_seconds,
    check_text,
)
from profiles.machine_profile import DeviceIdentity
from profiles.profile_records import from_record, to_record

PAIR_SCHEMA_VERSION = 3
"""Raised whenever a field is added, dropped or changes its meaning."""

FEW_POSITIONS = 30
"""With fewer the first rank's standard error is around 0.07 or more, and the others are hardly known."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model, by what its files hold."""

    name: str
    """For people: the folder's or hub name."""
    content_digest: str
    """Hexadecimal digest of configuration, headers and samples of the weights; see runtime.planner.model_digest."""
    held: str
    """How its layers are held: "bfloat16", "float32", "int8", "nf4", ..."""

    def __post_init__(self) -> None:
        for name in ("name", "content_digest", "held"):
            check_text(f"{name} of a model", getattr(self, name))

    def __str__(self) -> str:
        return f"{self.name} ({self.held}, {self.content_digest[:12]})"


@dataclass(frozen=True, slots=True)
class StepCost:
    """A draft forward, head and choice of children included."""

    width: int
    """Tokens that it computes."""
    seconds: float
    """Median."""
    is_fitted: bool = False
    """Whether a fit to other widths gave it, not a measurement."""

    def __post_init__(self) -> None:
        check_count("width of a draft step", self.width, minimum=1)
        check_seconds("seconds of a draft step", self.seconds)
        check_flag("is_fitted of a draft step", self.is_fitted)


@dataclass(frozen=True, slots=True)
class PassCost:
    """The computation of all decoder layers of the target over some tokens, with every weight there already."""

    num_tokens: int
    """Tokens that the pass computes."""
    context_tokens: int
    """Tokens that they attend to, before them."""
    seconds: float
    """Median."""
    is_fitted: bool = False
    """Whether a fit to other sizes gave it, not a measurement."""

    def __post_init__(self) -> None:
        check_count("num_tokens of a pass", self.num_tokens, minimum=1)
        check_count("context_tokens of a pass", self.context_tokens, minimum=0)
        check_seconds("seconds of a pass", self.seconds)
        check_flag("is_fitted of a pass", self.is_fitted)


@dataclass(frozen=True, slots=True)
class WalkCost:
    """Head, walk and compaction after a pass."""

    num_nodes: int
    """Nodes of the tree."""
    seconds: float
    """Median."""

    def __post_init__(self) -> None:
        check_count("num_nodes of a walk", self.num_nodes, minimum=1)
        check_seconds("seconds of a walk", self.seconds)


@dataclass(frozen=True, slots=True)
class AcceptanceTable:
    """How likely the child of each rank is the accepted one, at one temperature. R ranks, D depths."""

    temperature: float
    """Of both models."""
    by_rank: tuple[float, ...]
    """(R,) means over all positions."""
    by_rank_errors: tuple[float | None, ...]
    """(R,) standard errors, between texts where there are several; None where fewer than two positions were seen."""
    num_positions: tuple[int, ...]
    """(R,) positions that had a child of this rank."""
    by_depth: tuple[tuple[float, ...], ...]
    """(D, R) the same by depth of the parent, behind likely accepted paths; the last row stands for all deeper ones."""
    by_depth_positions: tuple[int, ...]
    """(D,) positions at each depth."""
    num_texts: int
    """Texts that the positions are of."""
    spread: float | None = None
    """How far draft and target differ, in logits, see `candidate_chances`; None where that was not measured."""
    by_confidence: tuple[tuple[float, ...], ...] = ()
    """(G, R) how likely the draft's candidate of each rank is the emitted token, in groups of as many positions each,
    from those where the draft is least sure to those where it is surest; () where that was not measured."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, maximum=100.0)
        check_probabilities("by_rank", self.by_rank)
        for name in ("by_rank_errors", "num_positions", "by_depth", "by_depth_positions", "by_confidence"):
            if not isinstance(values := getattr(self, name), tuple):
                raise ProfileError(f"{name} is {quote(values)}; expected a list")
        sizes = {len(self.by_rank), len(self.by_rank_errors), len(self.num_positions)}
        if not self.by_rank or len(sizes) > 1:
            raise ProfileError(f"acceptance by rank has {sorted(sizes)} entries; expected as many of each, at least 1")
        for error in self.by_rank_errors:
            if error is not None:
                check_number("a standard error of by_rank", error, maximum=1.0)
        for count in (*self.num_positions, *self.by_depth_positions):
            check_count("a number of positions", count, minimum=0)
        check_count("num_texts", self.num_texts, minimum=0)
        self._check_depths()
        if self.spread is not None and check_number("spread", self.spread, maximum=LARGEST_SPREAD) == 0:
            raise ProfileError("spread is 0; expected more")
        for row in self.by_confidence:
            check_probabilities("by_confidence", row)
            if not row or len(row) != len(self.by_confidence[0]):
                raise ProfileError(f"a row of by_confidence has {len(row)} ranks; expected 1 or more, in all as many")

    def _check_depths(self) -> None:
        for row in self.by_depth:
            check_probabilities("by_depth", row)
            if len(row) != len(self.by_rank):
                raise ProfileError(f"a row of by_depth has {len(row)} ranks; expected {len(self.by_rank)}")
        if len(self.by_depth) != len(self.by_depth_positions):
            raise ProfileError(
                f"by_depth has {len(self.by_depth)} rows but {len(self.by_depth_positions)} numbers of positions"
            )

    @property
    def is_rough(self) -> bool:
        """Whether too few positions were seen to plan from."""
        return self.num_positions[0] < FEW_POSITIONS


_TABLES: dict[str, type] = {
    "draft_steps": StepCost,
    "pass_costs": PassCost,
    "walk_costs": WalkCost,
    "acceptance": AcceptanceTable,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairProfile:
    """Facts about one target and one draft on one device. Raises ProfileError, which names the field, for nonsense."""

    device: DeviceIdentity
    """Where it was measured."""
    target: ModelIdentity
    """The model whose text is wanted."""
    draft: ModelIdentity
    """What proposes; a substitute has the target's digest and its own `held`."""
    compute_dtype: str
    """Type of the activations."""
    measured_at: date
    """The day of the measurement."""
    draft_steps: tuple[StepCost, ...]
    """By ascending width."""
    pass_costs: tuple[PassCost, ...]
    """By ascending context, then tokens."""
    walk_costs: tuple[WalkCost, ...]
    """By ascending nodes."""
    acceptance: tuple[AcceptanceTable, ...]
    """By ascending temperature."""
    compute_slowdown: float = 0.0
    """Seconds of computation that each second of copying costs, where both share cores and memory."""
    copy_slowdown: float = 0.0
    """Seconds of copying that each second of computing costs."""

    def __post_init__(self) -> None:
        for name, kind in (("device", DeviceIdentity), ("target", ModelIdentity), ("draft", ModelIdentity)):
            if not isinstance(getattr(self, name), kind):
                raise ProfileError(f"{name} is {quote(getattr(self, name))}; expected an object")
        check_text("compute_dtype", self.compute_dtype)
        check_day("measured_at", self.measured_at)
        for name in ("compute_slowdown", "copy_slowdown"):
            check_number(name, getattr(self, name), maximum=100.0)
        for table, entry_kind in _TABLES.items():
            check_entries(table, getattr(self, table), entry_kind)
            check_not_empty(table, getattr(self, table))
        check_ascending("draft_steps", [step.width for step in self.draft_steps])
        check_ascending("pass_costs", [(cost.context_tokens, cost.num_tokens) for cost in self.pass_costs])
        check_ascending("walk_costs", [cost.num_nodes for cost in self.walk_costs])
        check_ascending("acceptance", [table.temperature for table in self.acceptance])

    @property
    def believed_acceptance(self) -> tuple[AcceptanceTable, ...]:
        """The tables that saw enough positions to plan from."""
        return tuple(table for table in self.acceptance if not table.is_rough)

    def acceptance_near(self, temperature: float) -> AcceptanceTable:
        """The table of the nearest temperature, of two the cooler; a rough one only if all are."""
        tables = self.believed_acceptance or self.acceptance
        return min(tables, key=lambda table: (abs(table.temperature - temperature), table.temperature))

    def to_record(self) -> dict[str, Any]:
        """The profile as a JSON object."""
        return {"schema_version": PAIR_SCHEMA_VERSION, **to_record(self)}


def pair_profile_from_record(record: Mapping[str, Any]) -> PairProfile:
    """The profile that `to_record` wrote.

    Raises:
        StaleProfileError: an older version of this program wrote it.
        ProfileError: it is anything else; the message names what is wrong.
    """
    return from_record(PairProfile, record, version=PAIR_SCHEMA_VERSION)
