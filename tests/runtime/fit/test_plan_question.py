import json
from dataclasses import replace

import pytest

from offload.units import LinkSpeed
from profiles.errors import ProfileError
from runtime.errors import OptionError
from runtime.fit import models, probes
from runtime.fit.machine import Basis
from runtime.fit.models import find_shape
from runtime.fit.plan_question import find_machine, resolve_question, under_request
from runtime.fit.request import MachineRequest, PlanRequest
from tests.support.doctor_fakes import finished
from tests.support.fit_needs import GB
from tests.support.plan_fakes import LLAMA_3_8B_CONFIG as CONFIG
from tests.support.plan_fakes import plan_machine, processor


def resolve(**fields):
    return resolve_question(PlanRequest(**fields))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path)


def test_a_format_may_be_asked_for_in_two_ways():
    named = resolve_question(PlanRequest(target="llama-3.3-70b:Q4_K_M"))
    chosen = resolve_question(PlanRequest(target="llama-3.3-70b", format="Q4_K_M"))
    assert named.target == chosen.target and named.format_name == chosen.format_name == "Q4_K_M"
    assert named.held_formats == ("stored", "int8", "nf4")  # of its draft, which is published in bfloat16


def test_a_gguf_file_of_a_hybrid_is_planned_and_said_to_be_out_of_reach():
    named = resolve_question(PlanRequest(target="qwen3.6-27b:Q4_K_M"))
    assert named.format_name == "Q4_K_M" and any("cannot be read yet" in note for note in named.notes)
    assert not any("cannot be read" in note for note in resolve_question(PlanRequest(target="qwen3.6-27b")).notes)


def test_a_file_of_the_hub_is_known_by_the_model_that_it_was_made_of():
    found = resolve_question(PlanRequest(target="bartowski/Llama-3.3-70B-Instruct-GGUF:Q4_K_M"))
    assert (found.target.name, found.format_name) == ("Llama-3.3-70B", "Q4_K_M")


def test_a_known_model_comes_with_its_usual_draft():
    question = resolve()
    assert (question.target.name, question.draft_name) == ("Llama-3-70B", "Llama-3-8B")
    assert (question.format_name, question.held_formats) == ("bfloat16", ("stored", "int8", "nf4"))
    assert (question.context_tokens, question.target.folder) == (4096, None)
    assert (question.request.search, question.request.cost) == ("best-first", "pipeline")


def test_a_model_without_a_usual_draft_drafts_for_itself():
    question = resolve(target="qwen2.5-0.5b")
    assert (question.draft_name, question.is_substitute, question.held_formats) == ("substitute", True, ("int8", "nf4"))


def test_a_substitute_is_never_held_like_its_target():
    question = resolve(draft="substitute", draft_format="stored")
    assert question.held_formats == ("int8",)


def test_no_draft_is_plain():
    question = resolve(draft="none")
    assert (question.draft, question.draft_name) == (None, "none")


def test_a_folder_comes_first_and_needs_no_weights(folder):
    question = resolve(target=folder, draft="llama-3.2-1b", draft_format="nf4", tree="64x10")
    assert question.target.num_parameters == find_shape("llama-3-8b").num_parameters
    assert (question.draft.name, question.held_formats, question.tree_shape) == ("Llama-3.2-1B", ("nf4",), (64, 10))


def test_what_is_published_quantized_has_one_format(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"load_in_4bit": True}}))
    question = resolve(target=str(tmp_path), draft="substitute")
    assert (question.format_names, question.held_formats) == (("nf4",), ("stored",))
    with pytest.raises(OptionError, match="has nf4"):
        resolve(target=str(tmp_path), format="int8")


def test_a_hub_name_that_is_not_known_is_asked_for(monkeypatch):
    asked = []

    def on_hub(name):
        asked.append(name)
        return replace(find_shape("llama-3-8b"), note="odd")

    monkeypatch.setattr(models, "shape_on_hub", on_hub)
    question = resolve(target="someone/some-8b")
    assert (asked, question.notes) == (["someone/some-8b"], ("odd",))
    assert resolve(target="meta-llama/Meta-Llama-3-8B-Instruct").target.name == "Llama-3-8B"
    assert len(asked) == 1


def test_the_context_is_at_most_what_the_model_can():
    question = resolve(context_tokens=100_000)
    assert question.context_tokens == 8192
    assert question.notes == ("Llama-3-70B has 8192 positions, so the context is that",)
    assert resolve(target="llama-3.1-70b", context_tokens=100_000).context_tokens == 100_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "q4"}, "format is 'q4'; it must be one of auto, bfloat16"),
        ({"format": "float32"}, "Llama-3-70B has bfloat16, int8, nf4"),
        ({"draft_format": "q4"}, "draft_format is 'q4'"),
        ({"context_tokens": 1}, "context_tokens is 1"),
        ({"context_tokens": 1 << 40}, "context_tokens is"),
        ({"temperature": -1.0}, "temperature is -1;"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"tree": "10x20"}, "tree is '10x20'"),
        ({"tree": "nonsense"}, "tree is 'nonsense'"),
        ({"tree": "64x10", "draft": "none"}, "a tree needs a draft"),
        ({"search": "magic"}, "search is 'magic'; it must be one of best-first, dp"),
        ({"cost": "free"}, "cost is 'free'; it must be one of pipeline, paper"),
        ({"target": "lama-3-70b"}, "the target 'lama-3-70b' is not known; did you mean llama-3-70b"),
        ({"draft": "qwen2.5-0.6b"}, "the draft 'qwen2.5-0.6b' is not known; did you mean qwen2.5-0.5b"),
    ],
)
def test_nonsense_is_one_sentence(fields, words):
    with pytest.raises(OptionError) as caught:
        resolve(**fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def find(tmp_path, **fields):
    return finished(find_machine(MachineRequest(**fields), cache_folder=tmp_path))


def test_a_built_in_machine_measures_nothing(tmp_path):
    machine, said = find(tmp_path, machine="l40")
    assert (machine.name, said, list(tmp_path.iterdir())) == ("L40", [], [])


def test_budgets_and_rates_are_applied(tmp_path):
    machine, _ = find(
        tmp_path,
        machine="l40",
        device_memory_bytes=8 * GB,
        host_memory_bytes=64 * GB,
        link=LinkSpeed(5e9, 1e-5),
        disk=LinkSpeed(7e9),
    )
    assert (machine.device_budget_bytes, machine.host_budget_bytes) == (8 * GB, 64 * GB)
    assert (machine.link.speed, machine.disk.speed) == (LinkSpeed(5e9, 1e-5), LinkSpeed(7e9))
    assert (machine.link.basis, machine.pcie_generation, machine.is_host_assumed) == (Basis.GIVEN, None, False)
    assert not machine.is_link_emulated
    assert find(tmp_path, machine="l40", device_memory_bytes=0)[0].device_budget_bytes == 0
    assert under_request(processor(), MachineRequest(link=LinkSpeed(5e9))).is_link_emulated


def test_this_machine_is_measured(tmp_path, monkeypatch):
    seen = []

    def measure(device, *, cache_folder, model_folder):
        seen.append((device, cache_folder, model_folder))
        yield "measuring"
        return plan_machine()

    monkeypatch.setattr(probes, "this_machine", measure)
    machine, said = find(tmp_path, device="xpu:1", link=LinkSpeed(3e9))
    assert (machine.name, said, seen) == ("Some Card", ["measuring"], [("xpu:1", tmp_path, None)])
    assert machine.link.speed == LinkSpeed(3e9)


def test_a_built_in_machine_has_no_device_of_this_one():
    with pytest.raises(OptionError, match="--device is of this machine"):
        MachineRequest(machine="l40", device="cuda:0")


def test_an_unknown_machine_is_refused(tmp_path):
    with pytest.raises(ProfileError, match="not a built-in machine"):
        find(tmp_path, machine="z80")
