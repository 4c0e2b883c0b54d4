"""Sessions that start from what was measured, and say what no longer holds."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch

from offload.device import identify_device
from profiles.machine_profile import PinBudgetSource
from profiles.pair_profile import PairProfile
from profiles.profile_store import pair_profile_path, save_machine_profile, save_pair_profile
from runtime.engine.load_plan import LoadPlan
from runtime.engine.loading import open_session
from runtime.engine_config import EngineConfig
from runtime.planner.initial_plan import NO_PROFILE
from runtime.planner.pair_identity import pair_identity
from runtime.planner.stored_profiles import find_profiles
from tests.support.profile_factory import PAIR, machine_profile
from tests.support.session_factory import CONTEXT_TOKENS, save_tiny_folder


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
    save_machine_profile(folder, replace(profile, disk_bytes_per_second=1e9, measured_at=date(2026, 1, 1)))


def test_a_session_starts_with_the_tree_that_the_profiles_plan(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_pair_profile(tmp_path, profile_of(plan_of(folders)))
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
    save_pair_profile(tmp_path, replace(profile, draft=replace(profile.draft, content_digest="cc" * 16)))
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
    assert found.start.profile is None
    assert str(path) in found.notes[0]


@pytest.mark.parametrize("options", [{"draft": "none"}, {"tree": "4x4"}])
def test_where_no_tree_is_chosen_no_profile_is_looked_for(
    folders: tuple[Path, Path], tmp_path: Path, options: dict[str, str]
) -> None:
    plan = plan_of(folders, **options)
    (tmp_path / "state").write_text("not a folder")
    found = find_profiles(plan, tmp_path / "state")
    assert (found.start.profile, found.notes) == (None, ())
