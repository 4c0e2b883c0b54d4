"""What others measured with pairs of models, each with its source: predictions are held against it."""

import json
from dataclasses import dataclass

from msgspec import convert

from profiles.builtin_profiles import Figure
from tests.support.paths import ROOT


@dataclass(frozen=True)
class VerifyCost:
    """One pass of the target, its weights streamed."""

    num_nodes: int
    seconds: Figure


@dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """What somebody's system made of a pair; figures that its source lacks are None."""

    system: str
    workload: str
    source: str
    machine_key: str | None = None
    temperature: float | None = None
    num_nodes: int | None = None
    num_levels: int | None = None
    tokens_per_pass: float | None = None
    seconds_per_token: float | None = None
    tokens_per_second: float | None = None
    speedup: float | None = None
    baseline: str = ""


@dataclass(frozen=True, kw_only=True)
class PublishedPair:
    """A target with its draft; `draft_step_seconds` and `verify_seconds` are of the machine with that key."""

    key: str
    name: str
    target_held: str | None = None
    draft_held: str | None = None
    machine_key: str | None = None
    draft_step_seconds: Figure | None = None
    verify_seconds: tuple[VerifyCost, ...] = ()
    published: tuple[PublishedResult, ...] = ()

    @property
    def verify_seconds_by_size(self) -> dict[int, float]:
        return {cost.num_nodes: cost.seconds.value for cost in self.verify_seconds}


def published_pair(key: str) -> PublishedPair:
    pairs = json.loads((ROOT / "tests" / "support" / "published_pairs.json").read_text(encoding="utf-8"))
    return next(pair for pair in convert(pairs, tuple[PublishedPair, ...]) if pair.key == key)
