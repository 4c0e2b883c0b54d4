import json
from dataclasses import replace

import huggingface_hub
import pytest
import torch

from offload.device import DeviceMemory
from offload.errors import CheckpointError, LinkError
from runtime.config import EngineConfig
from runtime.engine import draft_choice, load_plan
from runtime.engine.draft_choice import choose_drafts, with_found_draft
from runtime.engine.load_plan import LoadPlan, machine_of
from runtime.fit import doctor, plan, probes
from runtime.fit.doctor import DoctorReport, check_up, examine, find_folder, question_of_files, question_of_shapes
from runtime.fit.place import place
from runtime.fit.plan_question import resolve_question
from runtime.fit.request import PlanRequest
from runtime.planner.initial_plan import NO_DRAFT
from tests.support.doctor_fakes import PAGEABLE, PROBES, FakeProbes, finished, link, question
from tests.support.fit_needs import GB, machine, round_need
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer

CPU = torch.device("cpu")
FIXED = 5_001 * 10**6


@pytest.fixture
def folder(tmp_path):
    return save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "model"))


@pytest.fixture
def made(monkeypatch):
    """The real machine replaced by a fake; every construction is noted."""
    made = []

    def make(device, cache_folder, *, model_folder):
        made.append((device, cache_folder, model_folder))
        return FakeProbes()

    monkeypatch.setattr(doctor, "MachineProbes", make)
    return made


def examined(probes, *questions):
    return finished(examine(probes, questions or [question()]))[0]


def test_every_probe_is_asked_once_and_what_takes_time_is_announced():
    probes = FakeProbes()
    report, steps = finished(examine(probes, [question()]))
    assert sorted(probes.asked) == sorted(PROBES)
    assert sorted(report.rows) == sorted(PROBES)
    assert all(row.problem is None for row in report.rows.values())
    assert steps == [
        "asking how much memory can be pinned",
        "measuring copies",
        "measuring the disk",
        "measuring products",
    ]


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("error", [LinkError("the disk\nis gone"), OSError("the disk is gone"), AttributeError("x")])
def test_a_probe_that_fails_costs_only_its_own_line(name, error):
    report = examined(FakeProbes(failures={name: error}))
    (failed,) = [row for row in report.rows.values() if row.problem is not None]
    assert report.rows[name] is failed and failed.value is None and "\n" not in failed.problem
    assert failed.problem in ("the disk is gone", "OSError: the disk is gone", "AttributeError: x")
    assert len(report.models) == (0 if name == "memory" else 1)


def test_what_should_be_set_up_otherwise_is_a_line_each():
    assert examined(FakeProbes()).rows["setup"].texts == []
    assert examined(FakeProbes(hints=("one", "two"))).rows["setup"].texts == ["one", "two"]


def test_ctrl_c_is_no_failing_probe():
    with pytest.raises(KeyboardInterrupt):
        examined(FakeProbes(failures={"disk": KeyboardInterrupt()}))


def test_nothing_can_be_promised_where_every_probe_fails():
    report = examined(FakeProbes(failures={name: RuntimeError("no") for name in PROBES}))
    assert not report.can_run
    assert json.loads(json.dumps(report.to_record()))["can_run"] is False


def test_a_model_is_held_against_the_machine_in_each_format():
    (model,) = examined(FakeProbes()).models
    assert [(fit.placement.format_name, fit.placement.can_run, fit.placement.runs_well) for fit in model.fits] == [
        ("bfloat16", True, False),
        ("int8", True, False),
        ("nf4", True, True),
    ]
    assert model.can_run


def test_one_format_that_runs_is_enough_and_none_is_not():
    assert examined(FakeProbes(found=machine(host=GB, device=FIXED + 2 * GB))).can_run  # nf4's ring alone
    assert not examined(FakeProbes(found=machine(host=GB, device=FIXED + 2 * GB - 1))).can_run
    assert not examined(FakeProbes(), question(), question(context_tokens=10**6)).can_run  # each model counts


def seconds_per_pass(found, **rates):
    """Of `round_need()` on this machine with links of these bytes per second."""
    links = {name: rate and link(rate, "x") for name, rate in rates.items()}
    return DoctorReport({}, replace(found, **links), ()).seconds_per_pass(place(round_need(), found))


def test_a_pass_takes_the_slower_links_time():
    found = machine(host=24 * GB, device=FIXED + 12 * GB)  # 24 GB wait in host memory, 12 GB on disk
    for rate, disk, expected in [(36e9, 12e9, 1.0), (36e9, 2e9, 6.0), (9e9, 12e9, 4.0)]:
        assert seconds_per_pass(found, link=rate, disk=disk) == expected
    assert seconds_per_pass(found, link=36e9, disk=None) is None
    assert seconds_per_pass(found, link=None, disk=12e9) is None


def test_keys_and_values_that_travel_are_bytes_of_a_pass():
    """Half of them, as many as there are where the context is half full; found: weights alone were counted."""
    found = machine(host=60 * GB, device=FIXED + 8 * GB)
    asked = replace(question(context_tokens=19_999).need, kv_cache="host")
    (model,) = examined(FakeProbes(found=found), replace(question(), need=asked)).models
    fit = model.fits[0]
    assert fit.placement.streamed_bytes == 40 * GB and fit.placement.travelling_bytes == 20 * GB
    report = DoctorReport({}, replace(found, link=link(25e9, "x")), (model,))
    record = report.to_record()["models"][0]["formats"][0]
    assert (record["bytes_per_pass"], record["seconds_per_pass"]) == (50 * GB, 2.0)


def test_on_a_cpu_only_the_disk_is_a_link():
    assert seconds_per_pass(machine(host=FIXED + 12 * GB), disk=9e9) == 36 / 9
    assert seconds_per_pass(machine(host=60 * GB), disk=9e9) is None  # every layer stays
    assert seconds_per_pass(machine(host=GB), disk=9e9) is None  # it does not run


def test_seconds_come_from_the_rates_that_were_measured():
    def seconds(probes):
        report = examined(probes)
        return [report.seconds_per_pass(fit.placement) for fit in report.models[0].fits]

    # Of int8 layers 4 GB are left for the disk: their stages take 2 GB less of host memory than bfloat16's.
    assert seconds(FakeProbes()) == [32 / 2, 4 / 2, 4 / 20]
    without_disk = seconds(FakeProbes(failures={"disk": OSError("x")}))
    assert without_disk[:2] == [None, None] and without_disk[2] is not None
    assert seconds(FakeProbes(failures={"link": OSError("x")})) == [None, None, None]
    assert seconds(FakeProbes(links_found=(PAGEABLE,)))[2] == pytest.approx(4 * seconds(FakeProbes())[2])


def test_the_record_is_json_with_all_that_was_found():
    record = json.loads(json.dumps(examined(FakeProbes(failures={"driver": OSError("none")})).to_record()))
    assert record["schema_version"] == 2 and record["can_run"] is True
    assert record["driver"] == {"value": None, "problem": "OSError: none"}
    assert record["disk"]["value"]["speed"]["bytes_per_second"] == 2e9
    assert [one["speed"]["bytes_per_second"] for one in record["link"]["value"]] == [20e9, 5e9]
    assert record["memory"]["value"]["group_left_bytes"] == 12 * GB
    (model,) = record["models"]
    bfloat16 = model["formats"][0]
    assert bfloat16["placement"]["disk_bytes"] > 0 and not bfloat16["runs_well"]
    assert bfloat16["changes"][0]["kind"] == "format" and bfloat16["sentence"].startswith("bfloat16 would need")


def test_the_large_model_is_always_asked_about(made, tmp_path):
    report, _ = finished(check_up(EngineConfig(), cache_folder=tmp_path))
    assert [(model.name, model.draft) for model in report.models] == [("Llama-3-70B", "Llama-3-8B in int8 rows")]
    assert made[0][1:] == (tmp_path, None)


def test_the_users_model_comes_second_and_its_files_measure_the_disk(made, folder, tmp_path):
    report, _ = finished(check_up(EngineConfig(target=str(folder), draft="none"), cache_folder=tmp_path))
    assert [model.name for model in report.models] == ["Llama-3-70B", str(folder)]
    assert made[0][2] == folder


def test_a_model_that_cannot_be_used_stops_before_anything_is_measured(made, tmp_path):
    with pytest.raises(CheckpointError, match="model folder not found"):
        finished(check_up(EngineConfig(target="./nowhere"), cache_folder=tmp_path))
    assert made == []


@pytest.mark.parametrize("draft", ["none", "substitute", "separate"])
def test_the_question_is_what_a_session_would_hold(folder, draft):
    config = EngineConfig(target=str(folder), draft=str(folder) if draft == "separate" else draft)
    question = question_of_files(CPU, config, folder, folder if draft == "separate" else None)
    planned = LoadPlan.build(config).placement
    # Everything stays in memory, where no pass is longer than a slice.
    assert replace(question.need, prefill_tokens=0).fixed_bytes == planned.fixed_bytes


def test_a_model_that_is_not_here_needs_room_for_its_files():
    need = question_of_shapes(CPU).need
    assert need.file_bytes == 2 * 70_553_706_496
    assert need.cache_bytes_per_token == 2 * 80 * 8 * 128 * 4
    assert question_of_shapes(torch.device("meta")).need.cache_bytes_per_token == 2 * 80 * 8 * 128 * 2


def test_a_hub_name_is_looked_up_in_the_cache_only(folder, monkeypatch):
    def cached(name, *, local_files_only):
        assert local_files_only
        if name == "owner/here":
            return str(folder)
        raise huggingface_hub.errors.LocalEntryNotFoundError("x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert find_folder("owner/here") == find_folder(str(folder)) == folder
    with pytest.raises(CheckpointError, match="'owner/absent' is not on this machine, and doctor downloads nothing"):
        find_folder("owner/absent")


def test_an_open_draft_is_there_only_where_layers_stream(folder):
    """As a session decides: see LoadPlan."""
    config = EngineConfig(target=str(folder), draft="auto")
    question = question_of_files(CPU, config, folder, None)
    for budget_bytes, draft in ((None, "none"), (0, "substitute")):
        outlook = doctor._look(question, machine(host=4 * GB, budget=budget_bytes))
        planned = LoadPlan.build(replace(config, draft=draft, device_memory_bytes=budget_bytes)).placement
        assert outlook.fits[0].placement.fixed_bytes == planned.fixed_bytes
        assert (outlook.draft, outlook.draft_note) == (draft, NO_DRAFT if draft == "none" else None)


def test_doctor_and_plan_and_a_session_take_one_draft_and_say_so_alike(tmp_path, monkeypatch):
    """Found: doctor knew only the substitute. So small a target would draft best itself, so that folders come first."""

    def folders_first(*asked):
        choice = choose_drafts(*asked)
        return replace(choice, found=tuple(sorted(choice.found, key=lambda one: one.is_substitute)))

    monkeypatch.setattr(draft_choice, "choose_drafts", folders_first)
    target = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "target", num_hidden_layers=16))
    good = save_tiny_tokenizer(save_tiny_model("llama", tmp_path / "good"))
    config = EngineConfig(target=str(target), draft="auto", device_memory_bytes=0)
    session = LoadPlan.build(config)
    found = machine_of(config, CPU)
    outlook = doctor._look(question_of_files(CPU, config, target, None), found)
    planned = with_found_draft(resolve_question(PlanRequest(target=str(target))), found)
    assert session.draft_note.startswith("drafting with good (")
    assert (outlook.draft, session.draft_name, planned.draft_name) == ("good",) * 3
    assert planned.draft.folder == good
    assert outlook.draft_note == session.draft_note == planned.notes[-1]
    assert outlook.fits[0].placement.fixed_bytes == session.placement.fixed_bytes
    record = DoctorReport({}, found, (outlook,)).to_record()["models"][0]
    assert (record["draft"], record["draft_note"]) == ("good", session.draft_note)


@pytest.mark.parametrize("draft", ["auto", "substitute"])
def test_on_an_accelerator_the_draft_is_held_as_in_a_session(folder, monkeypatch, draft):
    """Found: a draft was counted as the fastest on a processor holds it, whatever layers that cost."""
    device = torch.device("xpu", 0)
    monkeypatch.setattr(load_plan, "select_device", lambda text: device)
    monkeypatch.setattr(probes, "device_memory", lambda device: DeviceMemory(300_000_000, 400_000_000))
    for module in (load_plan, plan):
        monkeypatch.setattr(module, "held_format", lambda *asked: "nf4")
    config = EngineConfig(target=str(folder), draft=draft, device_memory_bytes=0)
    session = LoadPlan.build(config)
    outlook = doctor._look(question_of_files(device, config, folder, None), machine_of(config, device))
    need = outlook.streamed_need or outlook.need
    assert need.draft.label == session.need.draft.label == "substitute draft (nf4)"
    assert outlook.fits[0].placement.fixed_bytes == session.placement.fixed_bytes


def test_where_nothing_runs_no_draft_is_looked_for(folder, monkeypatch):
    monkeypatch.setattr(doctor, "take_draft", lambda *asked: pytest.fail("a draft was looked for"))
    question = question_of_files(CPU, EngineConfig(target=str(folder), draft="auto"), folder, None)
    outlook = doctor._look(question, machine(host=1000))
    assert not outlook.can_run
    assert (outlook.draft, outlook.draft_note) == ("none", None)


def test_of_several_formats_the_draft_is_that_of_the_first_that_runs(folder, monkeypatch):
    asked = []

    def take(question, *others):
        asked.append(question.format_name)
        return None, "nothing drafts"

    monkeypatch.setattr(doctor, "take_draft", take)
    outlook = question_of_files(CPU, EngineConfig(target=str(folder), draft="auto"), folder, None)
    stored, *smaller = outlook.need.formats
    large = replace(stored, layer_bytes=(GB,) * len(stored.layer_bytes))
    need = replace(outlook.need, formats=(large, *smaller), scratch_bytes=0, head_scratch_bytes=0, prefill_tokens=0)
    for name in ("float32", "int8"):
        found = machine(host=10 * GB, budget=need.in_format(name).least_bytes)
        assert doctor._look(replace(outlook, need=need), found).draft_note == "nothing drafts"
    assert asked == ["float32", "int8"]
