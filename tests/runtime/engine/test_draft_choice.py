"""Which draft `auto` takes: found beside the target or in the hub's cache, priced, and told in a sentence."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from offload.checkpoint.hub_download import HuggingFaceHub
from offload.checkpoint.model_places import FoundModel
from offload.device import DeviceMemory
from offload.errors import CheckpointError
from runtime.config import EngineConfig
from runtime.engine import draft_choice, load_plan
from runtime.engine.draft_choice import (
    DraftChoice,
    choose_drafts,
    local_drafts,
    same_tokenizers,
    with_found_draft,
)
from runtime.engine.load_plan import LoadPlan
from runtime.errors import OptionError
from runtime.fit import probes
from runtime.fit.machine import Machine, reference_machine
from runtime.fit.models import known_shapes, shape_of_folder
from runtime.fit.plan_question import PlanQuestion, resolve_question
from runtime.fit.request import PlanRequest
from runtime.fit.shapes import ModelShape
from tests.support.fit_needs import GB
from tests.support.gguf_factory import gguf_model, write_gguf
from tests.support.model_factory import edit_config, save_tiny_model, save_tiny_tokenizer
from tests.support.plan_fakes import processor
from tests.support.session_factory import save_tiny_folder


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(HuggingFaceHub, "cache_folder", lambda self: folder)
    return folder


def save_config(folder: Path, name: str, **changes: Any) -> Path:
    """Write a known model's config.json, without weights."""
    models = json.loads(Path("profiles/builtin/models.json").read_text(encoding="utf-8"))["models"]
    config = next(model["config"] for model in models if model["name"] == name) | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def target_of(folder: Path, name: str = "Llama-3.3-70B", **changes: Any) -> ModelShape:
    return replace(shape_of_folder(save_config(folder, name, **changes)), folder=folder)


NF4 = {"quantization_config": {"load_in_4bit": True}}


def question_of(target: ModelShape) -> PlanQuestion:
    return PlanQuestion(request=PlanRequest(), target=target, draft=None, is_substitute=False, context_tokens=4096)


def card(name: str = "rtx-4090", host_bytes: int = 64 * GB) -> Machine:
    return replace(reference_machine(name), host_free_bytes=host_bytes)


def test_smaller_models_of_the_family_are_found_beside_the_target_and_in_the_cache(tmp_path: Path, hub: Path) -> None:
    models = tmp_path / "models"
    target = target_of(models / "target")
    save_config(models / "Llama-3.2-1B", "Llama-3.2-1B")
    save_config(models / "another family", "Qwen2.5-0.5B")
    save_config(models / "as large", "Llama-3-70B")
    old, new = (hub / "models--meta--Llama-3.1-8B" / "snapshots" / name for name in ("old", "new"))
    for age, folder in enumerate((new, old)):
        save_config(folder, "Llama-3.1-8B")
        os.utime(folder / "config.json", (10**9 - age, 10**9 - age))
    refs = hub / "models--meta--Llama-3.1-8B" / "refs"
    refs.mkdir()
    (refs / "main").write_text("new")
    found = {shape.name: shape.folder for shape in local_drafts(target)}
    assert found.keys() == {"Llama-3.2-1B", "meta/Llama-3.1-8B"}
    assert found["meta/Llama-3.1-8B"] in (old, new)


def test_gguf_files_are_found_wherever_people_have_them(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the target, in the folders around it, in the hub's cache and with other programs; not its own parts."""
    large, small = (gguf_model("llama", num_hidden_layers=layers) for layers in (8, 1))
    models = tmp_path / "models"
    target = write_gguf(models / "large" / "large.gguf", large, kind="llama", types=("Q8_0",), num_parts=2)
    places = {
        "beside": models / "large" / "beside.gguf",
        "around": models / "small" / "around.gguf",
        "owner/name/cached": hub / "models--owner--name" / "snapshots" / "new" / "cached.gguf",
        "other": tmp_path / "other program" / "other.gguf",
    }
    for place in places.values():
        write_gguf(place, small, kind="llama", types=("Q4_0", "Q8_0"))
    (models / "large" / "mmproj.gguf").write_bytes(b"GGUF")
    (models / "large" / "damaged.gguf").write_bytes(b"GGUF")
    other = FoundModel("ollama:other:1b", places["other"], 1)
    monkeypatch.setattr(draft_choice, "models_of_others", lambda: iter([other]))
    assert {shape.name for shape in local_drafts(shape_of_folder(target))} == places.keys()
    blob = tmp_path / "blobs" / "sha256-0"
    blob.parent.mkdir()
    (models / "large" / "beside.gguf").rename(blob)
    assert local_drafts(shape_of_folder(blob)) == []


def test_a_folder_and_a_gguf_file_draft_for_each_other(tmp_path: Path, hub: Path) -> None:
    large, small = (gguf_model("llama", num_hidden_layers=layers) for layers in (8, 1))
    models = tmp_path / "models"  # also what lies beside the folder of a file is looked at
    folder, file = models / "folder", models / "file.gguf"
    large.save_pretrained(folder)
    write_gguf(file, small, kind="llama", types=("Q8_0",))
    assert [shape.folder for shape in local_drafts(shape_of_folder(folder))] == [file]
    small.save_pretrained(folder)
    write_gguf(file, large, kind="llama", types=("Q8_0",))
    assert [shape.folder for shape in local_drafts(shape_of_folder(file))] == [folder]


def test_the_owner_of_a_gguf_file_is_told_of_drafts_as_such_files(tmp_path: Path) -> None:
    file = tmp_path / "Llama-3.3-70B-Q4_K_M.gguf"
    file.touch()
    target = replace(known_shapes()["Llama-3.3-70B"].stored_as("Q4_K_M"), name=file.stem, folder=file)
    sentence = choose_drafts(question_of(target), card(), []).sentence(None)
    assert sentence is not None and "GB, less as a GGUF file): " in sentence


def test_folders_that_mean_harm_are_passed_over(tmp_path: Path) -> None:
    models = tmp_path / "models"
    target = target_of(models / "target")
    outside = save_config(tmp_path / "outside", "Llama-3.2-1B") / "config.json"
    for name in ("link", "pipe", "huge", "nonsense", "nothing", "crowded", "cut off"):
        (models / name).mkdir()
    (models / "link" / "config.json").symlink_to(outside)
    os.mkfifo(models / "pipe" / "config.json")
    with (models / "huge" / "config.json").open("wb") as opened:
        opened.truncate(10 * GB)
    (models / "nonsense" / "config.json").write_text('{"vocab_size": true, "num_hidden_layers": -1}')
    save_config(models / "crowded", "Llama-3.2-1B")
    for number in range(draft_choice.MAX_ENTRIES):
        (models / "crowded" / f"{number}.txt").touch()
    (save_config(models / "cut off", "Llama-3.2-1B") / "model.safetensors").write_bytes(b"\xff" * 9)
    (models / "loop").symlink_to(models / "loop")
    (models / "file").touch()
    assert local_drafts(target) == []


def test_fifty_folders_are_looked_into_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of computing: beside busy processes it ends sooner, with what it has seen."""
    monkeypatch.setattr(draft_choice, "SCAN_SECONDS", 60.0)
    target = target_of(tmp_path / "models" / "target")
    for number in range(50):
        save_config(tmp_path / "models" / f"draft {number}", "Llama-3.2-1B")
    begun = time.process_time()
    assert len(local_drafts(target)) == 50
    assert time.process_time() - begun < 1


def test_a_slow_disk_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(tmp_path / "models" / "target")
    for number in range(9):
        save_config(tmp_path / "models" / f"draft {number}", "Llama-3.2-1B")
    clock = iter(range(100))
    monkeypatch.setattr(draft_choice.time, "monotonic", lambda: 0.4 * next(clock))
    assert len(local_drafts(target)) == 2


def test_beside_a_70b_in_nf4_on_24_gb_a_model_of_its_family_drafts_and_no_substitute(tmp_path: Path) -> None:
    target = target_of(tmp_path / "Llama-3.3-70B", **NF4)
    drafts = [shape_of_folder(save_config(tmp_path / name, name)) for name in ("Llama-3.1-8B", "Llama-3.2-1B")]
    choice = choose_drafts(question_of(target), card(), drafts)
    assert [one.is_substitute for one in choice.found] == [False, False]
    best = choice.found[0]
    assert best.held == "nf4"
    assert best.seconds_per_token == min(one.seconds_per_token for one in choice.found)
    assert choice.plain_seconds is not None and best.seconds_per_token < choice.plain_seconds / 2
    sentence = choice.sentence(best)
    assert sentence is not None and sentence.startswith(f"drafting with {best.shape.name} (nf4), which was found on")
    assert "times the speed of plain streaming" in sentence and "downloading" not in sentence


def test_where_nothing_is_found_the_usual_draft_is_named(tmp_path: Path) -> None:
    choice = choose_drafts(question_of(target_of(tmp_path / "Llama-3.3-70B", **NF4)), card(), [])
    assert choice.found == ()
    sentence = choice.sentence(None)
    assert sentence is not None and sentence.startswith("nothing drafts, since the model's own substitute takes 35")
    assert "overstory run --draft meta-llama/Llama-3" in sentence and "is worth downloading" in sentence


def test_a_model_that_nobody_knows_goes_on_with_its_substitute_and_nothing_is_said(tmp_path: Path) -> None:
    target = target_of(tmp_path / "mine", "Llama-3.1-8B", intermediate_size=14080)
    choice = choose_drafts(question_of(target), card("rtx-4060-ti-16gb"), [])
    assert [one.draft for one in choice.found] == ["substitute"]
    assert choice.sentence(choice.found[0]) is None


def test_a_fine_tune_is_known_by_its_sizes_and_a_tokenizer_that_nobody_compared_is_told(tmp_path: Path) -> None:
    choice = choose_drafts(question_of(target_of(tmp_path / "Hermes-4-70B", **NF4)), card(), [])
    sentence = choice.sentence(None)
    assert sentence is not None and "overstory run --draft meta-llama/Llama-3" in sentence
    assert "if its tokenizer turns out to be the same" in sentence
    named = choose_drafts(question_of(target_of(tmp_path / "Llama-3.3-70B", **NF4)), card(), []).sentence(None)
    assert named is not None and "turns out" not in named


def test_a_model_that_is_not_here_gets_the_first_usual_draft_that_fits_or_none() -> None:
    asked = resolve_question(PlanRequest(target="llama-3.3-70b:Q4_K_M"))
    small = with_found_draft(asked, replace(card(), device_budget_bytes=6 * GB))
    assert small.draft is not None and small.draft.name == "Llama-3.2-1B"
    none = with_found_draft(resolve_question(PlanRequest(target="gemma-4-31b")), card())
    assert none.draft is None and none.notes[-1].startswith("no draft that is known for it fits")


def test_of_drafts_as_good_as_equal_the_largest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(tmp_path / "mine")
    seconds = {"Llama-3.1-8B": 1.01, "Llama-3.2-1B": 1.0, "Llama-3.2-3B": 1.5}
    found = [draft_choice.FoundDraft(name, known_shapes()[name], "nf4", each) for name, each in seconds.items()]
    ordered = [one.draft for one in draft_choice._best_first(found)]
    assert ordered == ["Llama-3.1-8B", "Llama-3.2-1B", "Llama-3.2-3B"]
    assert target.folder is not None


def test_a_processor_s_substitute_stays_where_no_smaller_model_is_found(tmp_path: Path) -> None:
    target = target_of(tmp_path / "mine", "Qwen2.5-7B")
    choice = choose_drafts(question_of(target), processor(speed=None, host_free_bytes=14 * GB), [])
    assert [(one.draft, one.held) for one in choice.found] == [("substitute", "int8")]


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had a device; no tensor is ever put there by a plan."""
    monkeypatch.setattr(load_plan, "select_device", lambda text: torch.device("xpu", 0))
    monkeypatch.setattr(probes, "device_memory", lambda device: DeviceMemory(300_000_000, 400_000_000))


def large_target(folder: Path) -> Path:
    save_tiny_model("llama", folder, num_hidden_layers=16, dtype=torch.bfloat16)
    return save_tiny_tokenizer(folder)


def test_a_session_takes_the_model_with_the_same_tokenizer(
    tmp_path: Path, accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only looks alike is passed over, as is one whose files do not hold what they promise."""

    def folders_first(*asked: Any) -> DraftChoice:
        """So small a target, half of it embeddings, would draft best itself."""
        choice = choose_drafts(*asked)
        return replace(choice, found=tuple(sorted(choice.found, key=lambda one: one.is_substitute)))

    monkeypatch.setattr(draft_choice, "choose_drafts", folders_first)
    target = large_target(tmp_path / "models" / "target")
    good = save_tiny_folder(tmp_path / "models" / "good", dtype=torch.bfloat16)
    other = save_tiny_folder(tmp_path / "models" / "other", dtype=torch.bfloat16)
    save_tiny_tokenizer(other, order_seed=1)
    broken = save_tiny_folder(tmp_path / "models" / "broken", dtype=torch.bfloat16)
    edit_config(broken, intermediate_size=16)
    config = EngineConfig(target=str(target), draft="auto", context_tokens=64, device_memory_bytes=0)
    plan = LoadPlan.build(config)
    assert plan.draft is not None and plan.draft.checkpoint.folder == good
    assert plan.draft_name == "good" and plan.residency.streamed_layers
    assert plan.draft_note is not None and plan.draft_note.startswith("drafting with good (")
    needed = LoadPlan.build(config, needs_draft=True)
    assert (needed.config, needed.draft_note) == (plan.config, plan.draft_note)
    alone = large_target(tmp_path / "alone" / "target")
    assert LoadPlan.build(replace(config, target=str(alone))).draft_name == "substitute"


def test_where_everything_stays_nothing_is_looked_for(
    tmp_path: Path, accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_choice, "local_drafts", lambda target: pytest.fail("a draft was looked for"))
    target = large_target(tmp_path / "target")
    plan = LoadPlan.build(EngineConfig(target=str(target), draft="auto", context_tokens=64))
    assert (plan.draft_name, plan.draft_note) == ("none", None)


def test_where_everything_stays_what_needs_a_draft_takes_the_one_that_a_session_may(
    tmp_path: Path, accelerator: None
) -> None:
    """The substitute, whose profile decides there whether it is loaded; and it is said that a session loads none."""
    target = large_target(tmp_path / "models" / "target")
    save_tiny_folder(tmp_path / "models" / "smaller", dtype=torch.bfloat16)
    config = EngineConfig(target=str(target), draft="auto", context_tokens=64)
    plan = LoadPlan.build(config, needs_draft=True)
    assert (plan.draft_name, plan.residency.streamed_layers) == ("substitute", ())
    assert plan.draft_note is not None and plan.draft_note.startswith("everything stays in memory, where a session")
    named = LoadPlan.build(replace(config, draft="substitute"), needs_draft=True)
    assert (named.draft_name, named.draft_note) == ("substitute", None)


def test_what_needs_a_draft_says_what_to_give_where_none_fits(tmp_path: Path, accelerator: None) -> None:
    """Found: the default was a substitute, also where that cannot fit."""
    target = large_target(tmp_path / "target")
    plain = EngineConfig(target=str(target), draft="none", context_tokens=64, device_memory_bytes=0)
    least_bytes = LoadPlan.build(plain).placement.device_bytes
    config = replace(plain, draft="auto", device_memory_bytes=least_bytes)
    session = LoadPlan.build(config)
    assert session.config.is_plain and session.draft_note is not None
    with pytest.raises(OptionError) as refusal:
        LoadPlan.build(config, needs_draft=True)
    assert str(refusal.value) == (
        f"a draft is needed here, but {session.draft_note}; give --draft the folder or hub name of a smaller model "
        "with the same tokenizer"
    )
    assert session.draft_note.startswith("nothing drafts, since the model's own substitute takes ")


def test_plan_takes_the_draft_that_a_session_takes(tmp_path: Path) -> None:
    """Beside a folder; of a model that is not here it takes the usual one."""
    save_config(tmp_path / "models" / "Llama-3.2-1B", "Llama-3.2-1B")
    target = target_of(tmp_path / "models" / "Llama-3.3-70B", **NF4)
    for folder in (tmp_path / "models").iterdir():
        (folder / "tokenizer.json").write_text("{}")
    asked = resolve_question(PlanRequest(target=str(target.folder)))
    found = with_found_draft(asked, card())
    assert found.draft is not None and found.draft.folder == tmp_path / "models" / "Llama-3.2-1B"
    assert found.notes[-1].startswith("drafting with Llama-3.2-1B (nf4), which was found on this machine")
    assert not found.is_substitute
    known = resolve_question(PlanRequest(target="llama-3.3-70b"))
    assert with_found_draft(known, card()) is known


def test_plan_streams_plainly_where_no_draft_fits(tmp_path: Path) -> None:
    target = target_of(tmp_path / "Llama-3.3-70B", **NF4)
    found = with_found_draft(resolve_question(PlanRequest(target=str(target.folder))), card())
    assert (found.draft, found.draft_name, found.is_substitute) == (None, "none", False)
    assert found.notes[-1].startswith("nothing drafts")


def test_tokenizers_that_would_have_to_be_loaded_are_few(tmp_path: Path) -> None:
    """And where nobody may wait for one, none is."""
    target = save_config(tmp_path / "target", "Llama-3.3-70B")
    shape = known_shapes()["Llama-3.2-1B"]
    drafts = [
        draft_choice.FoundDraft(str(save_config(tmp_path / str(number), "Llama-3.2-1B")), shape, "nf4", 1.0)
        for number in range(5)
    ]
    own = draft_choice.FoundDraft("substitute", shape, "nf4", 2.0)
    asked = []

    def tokenizer() -> Any:
        asked.append(1)
        raise CheckpointError("it is damaged")

    assert list(same_tokenizers([*drafts, own], target, tokenizer)) == [own]
    assert len(asked) == draft_choice.MAX_TOKENIZERS
    assert list(same_tokenizers([*drafts, own], target, None)) == [own]
