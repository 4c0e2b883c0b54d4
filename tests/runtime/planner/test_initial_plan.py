"""Which speeds a layer's copy is predicted from, and what is said where a first tree cannot be planned."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from offload.residency_plan import Tier
from profiles.machine_profile import MachineProfile
from runtime.engine_config import EngineConfig
from runtime.planner.growth import builtin_chances
from runtime.planner.initial_plan import FEW_POSITIONS, NO_LINK_SPEED, NO_PROFILE, InitialPlan, stream_shape
from runtime.planner.profile_costs import acceptance_of
from runtime.speculation.acceptance import builtin_acceptance
from tests.support.profile_factory import PAIR, machine_profile

RESIDENT, HOST, DISK = Tier.RESIDENT, Tier.HOST, Tier.DISK
MACHINE = machine_profile(link_bytes_per_second=2e10, link_latency_seconds=0.01, disk_bytes_per_second=2e9)
SIZE = 4_000_000_000


def plan_for(*, is_host: bool = False, **options: Any) -> Any:
    return SimpleNamespace(config=EngineConfig(**options), is_host=is_host, context_tokens=512)


def copies_and_reads(
    tiers: tuple[Tier, ...], plan: Any, *, machine: MachineProfile | None = MACHINE, num_stages: int = 0
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]] | None:
    stream = stream_shape(tiers, [SIZE] * len(tiers), num_slots=2, num_stages=num_stages)
    costs = InitialPlan(PAIR, machine).costs(tiers, stream, plan)
    return None if costs is None else (costs.copy_seconds, costs.read_seconds)


def test_the_shape_of_a_stream_follows_the_tiers() -> None:
    tiers = (RESIDENT, HOST, DISK)
    staged = stream_shape(tiers, (1, 2, 3), num_slots=4, num_stages=2)
    assert (staged.streamed_bytes, staged.read_bytes) == ((None, 2, 3), (None, None, 3))
    assert (staged.num_slots, staged.num_stages) == (4, 2)
    assert stream_shape(tiers, (1, 2, 3), num_slots=4, num_stages=0).read_bytes == ()


def test_an_accelerators_layers_cross_its_link_and_from_disk_a_stage_before() -> None:
    found = copies_and_reads((RESIDENT, HOST, DISK), plan_for(), num_stages=2)
    assert found == ((None, pytest.approx(0.21), pytest.approx(0.21)), (None, None, 2.0))


def test_on_a_processor_the_disk_is_the_link() -> None:
    assert copies_and_reads((RESIDENT, DISK), plan_for(is_host=True)) == ((None, 2.0), ())


def test_an_emulated_link_is_taken_at_its_word() -> None:
    plan = plan_for(is_host=True, link="4GB/s,1ms")
    assert copies_and_reads((HOST, RESIDENT), plan, machine=None) == ((pytest.approx(1.001), None), ())
    assert copies_and_reads((DISK,), plan) == ((2.0,), ())  # straight from a disk that is slower than the link
    disk = plan_for(is_host=True, link="4GB/s", disk_link="8GB/s")
    assert copies_and_reads((DISK,), disk, machine=None, num_stages=2) == ((1.0,), (0.5,))


@pytest.mark.parametrize(
    ("tiers", "machine", "num_stages"),
    [
        ((HOST,), None, 0),
        ((HOST,), replace(MACHINE, link_bytes_per_second=None), 0),
        ((HOST, DISK), replace(MACHINE, disk_bytes_per_second=None), 2),
    ],
)
def test_without_a_speed_that_a_layer_needs_nothing_is_predicted(
    tiers: tuple[Tier, ...], machine: MachineProfile | None, num_stages: int
) -> None:
    assert copies_and_reads(tiers, plan_for(), machine=machine, num_stages=num_stages) is None


def test_resident_layers_need_no_speed() -> None:
    assert copies_and_reads((RESIDENT, RESIDENT), plan_for(), machine=None) == ((None, None), ())


def test_without_a_profile_there_are_no_costs_and_the_builtin_acceptance() -> None:
    stream = stream_shape((HOST,), [SIZE], num_slots=2, num_stages=0)
    start = InitialPlan(None, MACHINE)
    assert start.costs((HOST,), stream, plan_for()) is None
    for held in (None, "nf4"):
        acceptance_at = start.acceptance_at(substitute_held=held)
        assert acceptance_at(0.7).tolist() == builtin_acceptance(substitute_held=held).tolist()


def test_a_profiles_acceptance_is_that_of_the_temperature() -> None:
    acceptance_at = InitialPlan(PAIR).acceptance_at(substitute_held="int8")
    for temperature in (0.0, 1.0):
        assert acceptance_at(temperature).tolist() == acceptance_of(PAIR, temperature).tolist()


def test_one_sentence_says_why_the_first_tree_is_modest() -> None:
    plan = plan_for()
    assert InitialPlan().notes(plan, is_planned=False) == (NO_PROFILE,)
    assert "overstory calibrate" in NO_PROFILE
    assert InitialPlan(PAIR).notes(plan, is_planned=False) == (NO_LINK_SPEED,)
    assert InitialPlan(PAIR, MACHINE).notes(plan, is_planned=True) == ()


@pytest.mark.parametrize("options", [{"draft": "none"}, {"tree": "16x4"}])
def test_where_no_tree_is_chosen_nothing_is_said(options: dict[str, Any]) -> None:
    assert InitialPlan().notes(plan_for(**options), is_planned=False) == ()


def test_tables_of_a_few_positions_are_not_believed() -> None:
    greedy, warm = PAIR.acceptance
    one = replace(greedy, by_rank=(1.0, 0.0), num_positions=(1, 1))
    few = InitialPlan(replace(PAIR, acceptance=(one,)), MACHINE)
    assert not few.is_acceptance_measured
    assert few.acceptance_at(substitute_held=None)(0.0).tolist() == builtin_acceptance(substitute_held=None).tolist()
    assert few.notes(plan_for(), is_planned=True) == (FEW_POSITIONS,)
    mixed = InitialPlan(replace(PAIR, acceptance=(one, warm)), MACHINE)
    assert mixed.is_acceptance_measured
    assert mixed.acceptance_at(substitute_held=None)(0.0).tolist() == acceptance_of(PAIR, 1.0).tolist()
    assert mixed.notes(plan_for(), is_planned=True) == ()


def test_an_emulated_link_slows_nothing() -> None:
    slowed = InitialPlan(replace(PAIR, compute_slowdown=0.5, copy_slowdown=0.25), MACHINE)
    stream = stream_shape((DISK,), [SIZE], num_slots=2, num_stages=0)
    real, emulated = (slowed.costs((DISK,), stream, plan_for(is_host=True, link=link)) for link in (None, "4GB/s"))
    assert real is not None and emulated is not None
    assert (real.compute_slowdown, real.copy_slowdown) == (0.5, 0.25)
    assert (emulated.compute_slowdown, emulated.copy_slowdown) == (0.0, 0.0)


def test_single_positions_are_known_from_the_profile_or_builtin() -> None:
    builtin = InitialPlan(PAIR).chances_at(substitute_held=None)(0.0)
    assert builtin.by_confidence.tolist() == builtin_chances(substitute_held=None).by_confidence.tolist()
    table = replace(PAIR.acceptance[0], spread=0.5, by_confidence=((0.7, 0.1),))
    start = InitialPlan(replace(PAIR, acceptance=(table,)))
    assert start.chances_at(substitute_held="int8")(1.0).by_confidence.tolist() == [[0.7, 0.1]]
