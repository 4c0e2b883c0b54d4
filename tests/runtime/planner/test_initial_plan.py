"""Which profiles a session starts from, which speeds copies are predicted from, and what is said without them."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from offload.device import identify_device
from offload.residency_plan import Tier
from profiles.machine_profile import MachineProfile, PinBudgetSource
from profiles.pair_profile import PairProfile, StepCost
from profiles.profile_store import pair_profile_path, save_profile
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import open_session
from runtime.fit.models import shape_of_folder
from runtime.model.model_loader import ModelFiles
from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.growth import builtin_chances
from runtime.planner.initial_plan import (
    FEW_POSITIONS,
    NO_DRAFT,
    NO_LINK_SPEED,
    NO_PROFILE,
    InitialPlan,
    find_paying_substitute,
    find_profiles,
    gain_of_trees,
    held_name,
    pair_identity,
    stream_shape,
)
from runtime.speculation.acceptance import acceptance_of, builtin_acceptance
from tests.support.gguf_factory import gguf_model, write_gguf
from tests.support.profile_factory import PAIR, machine_profile
from tests.support.quantized_factory import save_quantized_folder
from tests.support.session_factory import CONTEXT_TOKENS, open_tiny, save_tiny_folder

RESIDENT, HOST, DISK = Tier.RESIDENT, Tier.HOST, Tier.DISK
MACHINE = machine_profile(link_bytes_per_second=2e10, link_latency_seconds=0.01, disk_bytes_per_second=2e9)
SIZE = 4_000_000_000


def plan_for(*, is_host: bool = False, **options: Any) -> Any:
    return SimpleNamespace(config=EngineConfig(**options), is_host=is_host, need=SimpleNamespace(context_tokens=512))


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
    assert (staged.num_slots, staged.num_stages, staged.row_bytes) == (4, 2, ())
    assert stream_shape(tiers, (1, 2, 3), num_slots=4, num_stages=2, row_bytes={2: 9}).row_bytes == (0, 0, 9)
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
        prior = start.prior(substitute_held=held)
        assert prior.acceptance_at(0.7).tolist() == builtin_acceptance(substitute_held=held).tolist()
        assert not prior.is_measured


def test_a_profiles_acceptance_is_that_of_the_temperature() -> None:
    prior = InitialPlan(PAIR).prior(substitute_held="int8")
    assert prior.is_measured
    for temperature in (0.0, 1.0):
        assert prior.acceptance_at(temperature).tolist() == acceptance_of(PAIR, temperature).tolist()


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
    assert (
        few.prior(substitute_held=None).acceptance_at(0.0).tolist() == builtin_acceptance(substitute_held=None).tolist()
    )
    assert few.notes(plan_for(), is_planned=True) == (FEW_POSITIONS,)
    mixed = InitialPlan(replace(PAIR, acceptance=(one, warm)), MACHINE)
    assert mixed.is_acceptance_measured
    assert mixed.prior(substitute_held=None).acceptance_at(0.0).tolist() == acceptance_of(PAIR, 1.0).tolist()
    assert mixed.notes(plan_for(), is_planned=True) == ()


def test_an_emulated_link_slows_nothing() -> None:
    slowed = InitialPlan(replace(PAIR, compute_slowdown=0.5, copy_slowdown=0.25), MACHINE)
    stream = stream_shape((DISK,), [SIZE], num_slots=2, num_stages=0)
    real, emulated = (slowed.costs((DISK,), stream, plan_for(is_host=True, link=link)) for link in (None, "4GB/s"))
    assert real is not None and emulated is not None
    assert (real.compute_slowdown, real.copy_slowdown) == (0.5, 0.25)
    assert (emulated.compute_slowdown, emulated.copy_slowdown) == (0.0, 0.0)


def test_single_positions_are_known_from_the_profile_or_builtin() -> None:
    builtin = InitialPlan(PAIR).prior(substitute_held=None).chances_at(0.0)
    assert builtin.by_confidence.tolist() == builtin_chances(substitute_held=None).by_confidence.tolist()
    table = replace(PAIR.acceptance[0], spread=0.5, by_confidence=((0.7, 0.1),))
    start = InitialPlan(replace(PAIR, acceptance=(table,)))
    assert start.prior(substitute_held="int8").chances_at(1.0).by_confidence.tolist() == [[0.7, 0.1]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    parent = tmp_path_factory.mktemp("models")
    return save_tiny_folder(parent / "target", seed=37), save_tiny_folder(parent / "draft", seed=38)


def config_of(folders: tuple[Path, Path], **options: object) -> EngineConfig:
    choices = {"draft": str(folders[1]), "draft_format": "stored", "context_tokens": CONTEXT_TOKENS, "link": "1MB/s"}
    return EngineConfig(target=str(folders[0]), **(choices | options))  # type: ignore[arg-type]


def plan_of(folders: tuple[Path, Path], **options: object) -> LoadPlan:
    return LoadPlan.build(config_of(folders, **options))


def profile_of(plan: LoadPlan) -> PairProfile:
    target, draft = pair_identity(plan)
    device = identify_device(torch.device("cpu"))
    return replace(PAIR, device=device, target=target, draft=draft, compute_dtype="float32")


def save_machine(folder: Path) -> None:
    device = identify_device(torch.device("cpu"))
    profile = machine_profile(device=device, pin_budget_bytes=None, pin_budget_source=PinBudgetSource.NOT_LIMITED)
    save_profile(folder, replace(profile, disk_bytes_per_second=1e9, measured_at=date(2026, 1, 1)))


def test_a_session_starts_with_the_tree_that_the_profiles_plan(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_profile(tmp_path, profile_of(plan_of(folders)))
    save_machine(tmp_path)
    config = config_of(folders)
    with open_session(config, state_folder=tmp_path) as opened:
        assert opened.notes == ()
        planner = opened.session.engine.planner
        assert planner.choice is not None and planner.choice.num_nodes > 1
        assert planner.shape(max_levels=64) == planner.choice.shape()
        assert planner.costs is not None and planner.costs.draft_step_seconds is not None
        assert planner.costs.draft_step_seconds([8]) == [0.02]  # the profile's own figure


def test_without_a_profile_the_session_says_what_it_starts_from(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with open_session(config_of(folders), state_folder=tmp_path) as opened:
        assert opened.notes == (NO_PROFILE,)


def test_a_changed_draft_makes_the_profile_stale_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    profile = profile_of(plan_of(folders))
    save_profile(tmp_path, replace(profile, draft=replace(profile.draft, content_digest="cc" * 16)))
    with open_session(config_of(folders), state_folder=tmp_path) as opened:
        stale, start = opened.notes
    assert "draft" in stale and "overstory calibrate" in stale
    assert start == NO_PROFILE


def test_a_damaged_profile_costs_the_head_start_and_nothing_else(folders: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_of(folders)
    target, draft = pair_identity(plan)
    path = pair_profile_path(tmp_path, device=identify_device(torch.device("cpu")), target=target, draft=draft)
    path.write_text('{"schema_version": 1, "draft_steps": [{"seconds": NaN}]}')
    found = find_profiles(plan, tmp_path)
    assert found.profile is None
    assert str(path) in found.problems[0]
    assert found.notes(plan, is_planned=False) == (*found.problems, NO_PROFILE)


@pytest.mark.parametrize("options", [{"draft": "none"}, {"tree": "4x4"}])
def test_where_no_tree_is_chosen_no_profile_is_looked_for(
    folders: tuple[Path, Path], tmp_path: Path, options: dict[str, str]
) -> None:
    plan = plan_of(folders, **options)
    (tmp_path / "state").write_text("not a folder")
    found = find_profiles(plan, tmp_path / "state")
    assert found == InitialPlan()


@pytest.fixture(scope="module")
def mixed_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("models")
    return (
        save_tiny_folder(base / "target", seed=2, dtype=torch.bfloat16),
        save_tiny_folder(base / "draft", seed=3),
    )


def test_a_separate_draft_has_a_digest_of_its_own(mixed_folders: tuple[Path, Path]) -> None:
    with open_tiny(mixed_folders[0], draft=mixed_folders[1]) as opened:
        target, draft = pair_identity(opened.plan)
    assert (target.name, target.held, draft.name, draft.held) == ("target", "bfloat16", "draft", "float32")
    assert target.content_digest != draft.content_digest


def test_a_substitute_is_the_target_held_in_another_way(mixed_folders: tuple[Path, Path]) -> None:
    with open_tiny(mixed_folders[0], draft="substitute", draft_format="nf4") as opened:
        target, draft = pair_identity(opened.plan)
    assert target.content_digest == draft.content_digest
    assert (target.held, draft.held) == ("bfloat16", "nf4")


def test_auto_names_the_format_that_the_session_chose(mixed_folders: tuple[Path, Path]) -> None:
    with open_tiny(mixed_folders[0], draft="substitute", draft_format="auto") as opened:
        _, draft = pair_identity(opened.plan)
    assert draft.held in ("int8", "nf4")


@pytest.mark.parametrize(("method", "expected"), [("int8", "int8"), ("nf4", "nf4")])
def test_what_is_stored_quantized_is_called_what_it_is(tmp_path: Path, method: str, expected: str) -> None:
    files = ModelFiles.open(save_quantized_folder(tmp_path, method))
    assert held_name(files, "stored") == expected


def test_a_gguf_file_is_called_in_profiles_what_its_plan_calls_it(tmp_path: Path) -> None:
    """Else no calibration of it would ever be found again."""
    file = write_gguf(tmp_path / "m.gguf", gguf_model("llama"), kind="llama", types=("Q8_0", *["Q4_0"] * 7))
    assert held_name(ModelFiles.open(file), "stored") == shape_of_folder(file).formats[0].name == "Q4_0"


def resident_costs(*, step_seconds: float) -> RoundCosts:
    """Nothing streams: a pass of one token takes 1 s, of eight 2 s."""
    return RoundCosts(
        copy_seconds=(None,) * 4,
        pass_seconds=CostTable((1, 8), (1.0, 2.0)),
        draft_step_seconds=CostTable((1,), (step_seconds,)),
        walk_seconds=CostTable((1,), (0.0,)),
        num_slots=2,
    )


def test_a_gain_is_the_best_trees_speed_over_that_of_plain_decoding() -> None:
    always = np.array([1.0])
    assert gain_of_trees(resident_costs(step_seconds=0.25), always, max_nodes=8) == pytest.approx(8 / (2 + 7 * 0.25))
    assert gain_of_trees(resident_costs(step_seconds=1.0), always, max_nodes=8) == 1


@pytest.mark.parametrize(("step_seconds", "is_loaded"), [(0.001, True), (0.2, False)])
def test_a_resident_sessions_substitute_is_loaded_only_where_its_profile_promises_enough(
    folders: tuple[Path, Path], tmp_path: Path, step_seconds: float, is_loaded: bool
) -> None:
    config = config_of(folders, draft="auto", link=None, draft_format="int8")
    plain = LoadPlan.build(config)
    assert plain.config.is_plain
    assert find_paying_substitute(plain, tmp_path) is None  # never measured
    steps = (StepCost(1, step_seconds), StepCost(8, step_seconds))
    save_profile(tmp_path, replace(profile_of(plain.with_substitute()), draft_steps=steps))
    with open_session(config, state_folder=tmp_path) as opened:
        assert (opened.session.engine.drafter is not None) == is_loaded
        assert (NO_DRAFT in opened.notes) != is_loaded
        assert opened.plan.draft_name == ("substitute" if is_loaded else "none")
        assert any("draft" in label for label in opened.placement.fixed) == is_loaded
