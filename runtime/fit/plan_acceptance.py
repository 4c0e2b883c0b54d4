"""How likely a draft's children are the accepted ones, for a pair of models that need not be here.

That of a published pair of the same sizes, at the nearest temperature it is known for; else the vector to plan with
before anything was measured. Knows no torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.builtin_profiles import ReferenceAcceptance, ReferencePair, builtin_pairs
from profiles.pair_profile import PairProfile
from runtime.fit.models import find_shape
from runtime.fit.plan_question import PlanQuestion
from runtime.fit.shapes import ModelShape
from runtime.fit.speed import Basis
from runtime.planner.profile_costs import acceptance_of
from runtime.speculation.acceptance import builtin_acceptance
from runtime.speculation.tree_search import make_non_increasing


@dataclass(frozen=True, slots=True)
class PlannedAcceptance:
    """By rank, and what it rests on."""

    probabilities: NDArray[np.float64]
    """(R,), or (D, R) by depth of the parent; not increasing with rank."""
    basis: Basis
    """What it rests on."""
    source: str
    """The same in words."""


def planned_acceptance(question: PlanQuestion, held: str) -> PlannedAcceptance:
    """Of the question's draft, held like this, at the nearest temperature that something is known for."""
    if question.draft is None:
        return PlannedAcceptance(
            builtin_acceptance(substitute_held=held),
            Basis.ASSUMED,
            "as of SmolLM2-135M's and Qwen2.5-Coder-1.5B's own substitutes, greedy",
        )
    known = _published(question.target, question.draft, question.request.temperature)
    if known is None:
        return PlannedAcceptance(
            builtin_acceptance(substitute_held=None),
            Basis.ASSUMED,
            "as of Qwen2.5-Coder-1.5B/0.5B, greedy: nothing is known of this pair",
        )
    pair, acceptance = known
    temperature = "" if acceptance.temperature is None else f", at temperature {acceptance.temperature:g}"
    return PlannedAcceptance(
        make_non_increasing(acceptance.by_rank),
        Basis.PUBLISHED if acceptance.is_measured else Basis.ASSUMED,
        f"{pair.name}{temperature}: {acceptance.source}",
    )


def measured_acceptance(profile: PairProfile, temperature: float, *, by_depth: bool) -> PlannedAcceptance:
    """Of a pair that was measured on this machine, at the nearest temperature: by depth and rank, or by rank."""
    table = profile.acceptance_near(temperature)
    return PlannedAcceptance(
        acceptance_of(profile, temperature, by_depth=by_depth),
        Basis.MEASURED,
        f"{profile.target.name} / {profile.draft.name}, {profile.draft.held}, at temperature {table.temperature:g}, "
        f"{table.num_positions[0]} positions (pair profile of {profile.measured_at.isoformat()})",
    )


def _published(
    target: ModelShape, draft: ModelShape, temperature: float
) -> tuple[ReferencePair, ReferenceAcceptance] | None:
    """The pair whose models have these sizes, and what is known of it at about this temperature."""
    for pair in builtin_pairs().values():
        known = find_shape(pair.target_shape), find_shape(pair.draft_shape)
        if [shape and shape.num_parameters for shape in known] == [target.num_parameters, draft.num_parameters]:
            return pair, pair.acceptance_near(temperature)
    return None
