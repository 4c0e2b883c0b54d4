from dataclasses import replace

import pytest
import torch

from profiles.machine_profile import DeviceIdentity
from profiles.profile_store import save_pair_profile
from runtime.fit.device_speed import Basis
from runtime.fit.plan_maker import make_plan
from runtime.fit.plan_question import PlanRequest, resolve_question
from runtime.planner.model_digest import model_identity
from runtime.planner.profile_costs import acceptance_of
from runtime.planner.stored_pairs import stored_pairs
from tests.support.model_factory import save_tiny_model
from tests.support.plan_fakes import planned, processor
from tests.support.profile_factory import DEVICE, PAIR

CPU = DeviceIdentity("cpu", "cpu", "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    target = save_tiny_model("llama", tmp_path_factory.mktemp("big"), dtype=torch.bfloat16)
    return target, save_tiny_model("llama", tmp_path_factory.mktemp("small"), dtype=torch.bfloat16, num_hidden_layers=1)


def question(folders, **fields):
    target, draft = folders
    return resolve_question(PlanRequest(**{"target": str(target), "draft": str(draft)} | fields))


def keep(cache_folder, target, draft, *, held, draft_held, device=DEVICE, dtype="bfloat16"):
    identities = {"target": model_identity(target, held), "draft": model_identity(draft, draft_held)}
    profile = replace(PAIR, device=device, compute_dtype=dtype, **identities)
    save_pair_profile(cache_folder, profile)
    return profile


def test_profiles_are_found_by_how_the_draft_is_held(folders, tmp_path):
    as_int8 = keep(tmp_path, *folders, held="bfloat16", draft_held="int8")
    as_stored = keep(tmp_path, *folders, held="bfloat16", draft_held="bfloat16")
    found, problems = stored_pairs(question(folders), DEVICE, cache_folder=tmp_path)
    assert (found, problems) == ({"int8": as_int8, "stored": as_stored}, ())
    found, _ = stored_pairs(question(folders, draft_format="int8"), DEVICE, cache_folder=tmp_path)
    assert found == {"int8": as_int8}


def test_a_substitute_has_its_targets_content(folders, tmp_path):
    profile = keep(tmp_path, folders[0], folders[0], held="bfloat16", draft_held="nf4", device=CPU, dtype="float32")
    found, _ = stored_pairs(question(folders, draft="substitute"), CPU, cache_folder=tmp_path)
    assert found == {"nf4": profile}


def test_a_profile_that_no_longer_holds_is_told(folders, tmp_path):
    keep(tmp_path, *folders, held="bfloat16", draft_held="int8", dtype="float16")
    found, problems = stored_pairs(question(folders), DEVICE, cache_folder=tmp_path)
    assert found == {} and "the compute dtype was" in problems[0] and len(problems) == 1


def test_another_machine_and_models_that_are_not_here_have_none(folders, tmp_path):
    keep(tmp_path, *folders, held="bfloat16", draft_held="int8")
    assert stored_pairs(question(folders), None, cache_folder=tmp_path) == ({}, ())
    assert stored_pairs(question(folders, draft="llama-3.2-1b"), DEVICE, cache_folder=tmp_path) == ({}, ())
    assert stored_pairs(question(folders), DEVICE, cache_folder=tmp_path / "nowhere") == ({}, ())


def test_a_measured_pair_is_what_the_plan_rests_on(folders, tmp_path):
    profile = keep(tmp_path, *folders, held="bfloat16", draft_held="int8", device=CPU, dtype="float32")
    asked = question(folders, temperature=0.9, context_tokens=256)
    report = make_plan(asked, processor(identity=CPU), {"int8": profile})
    main = report.main
    assert (main.draft_held, main.measured_at) == ("int8", profile.measured_at)
    assert main.costs.draft_step_seconds.seconds == (0.01, 0.02)
    assert main.costs.pass_seconds(1) == pytest.approx(0.1)
    assert report.basis_lines[-2][:2] == ("computing", Basis.MEASURED)
    assert report.basis_lines[-1][:2] == ("acceptance", Basis.MEASURED)
    assert "at temperature 1, 200 positions" in report.basis_lines[-1][2]
    best = acceptance_of(profile, 0.9)[0][0]
    chain = main.ranking.of_shape(2, 2)
    assert chain.expected_tokens == pytest.approx(1 + best)
    assert report.plain.measured_at == profile.measured_at  # a plain pass was measured too
    assert all(getattr(other, "measured_at", None) is None for other in report.others)
    assert not any("launching kernels" in note for note in report.notes)


def test_the_dynamic_program_takes_the_measured_vector(folders):
    asked = question(folders, search="dp", context_tokens=256)
    report = make_plan(asked, processor(identity=CPU), {"int8": PAIR})
    assert report.main.tree.expected_tokens >= 1


def test_without_a_profile_nothing_changes():
    assert planned().main.measured_at is None
