"""What is decided before anything is read: device, dtype, budgets, and where every layer goes."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offload.device import DeviceMemory
from offload.errors import BudgetError
from offload.residency_plan import Tier
from profiles.errors import BadInputError
from runtime.config import EngineConfig
from runtime.engine import load_plan, need_of_files
from runtime.engine.load_plan import MOST_RESIDENT_TEXTS, LoadPlan, check_plan
from runtime.errors import OptionError
from runtime.fit import probes
from runtime.fit.machine import reference_machine
from runtime.fit.models import known_shapes
from runtime.fit.plan import make_plan
from runtime.fit.plan_question import resolve_question
from runtime.fit.request import PlanRequest
from tests.support.fit_needs import GB
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer
from tests.support.session_factory import request, save_tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", dtype=torch.bfloat16)


def build(folder: Path, **settings: Any) -> LoadPlan:
    config = EngineConfig(**({"target": str(folder), "draft": "none", "context_tokens": 64} | settings))
    return LoadPlan.build(config)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had a device with 300 MB free; no tensor is ever put there by a plan."""
    monkeypatch.setattr(load_plan, "select_device", lambda text: torch.device("xpu", 0))
    monkeypatch.setattr(probes, "device_memory", lambda device: DeviceMemory(300_000_000, 400_000_000))


def test_on_a_processor_matmuls_are_float32_and_everything_free_is_filled(folder: Path) -> None:
    plan = build(folder, device="cpu")
    assert (plan.device, plan.dtype, plan.is_host) == (torch.device("cpu"), torch.float32, True)
    assert set(plan.residency.tiers) == {Tier.RESIDENT}
    assert plan.placement.stage_bytes == 0


def test_on_an_accelerator_matmuls_run_in_the_stored_type(folder: Path, accelerator: None) -> None:
    assert build(folder).dtype == torch.bfloat16
    assert build(folder, compute_dtype="float32").dtype == torch.float32


def test_a_device_without_bfloat16_computes_in_float16_and_says_so(
    folder: Path, accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(folder).dtype_note is None
    monkeypatch.setattr(need_of_files, "has_bfloat16", lambda device: False)
    for module in (load_plan, need_of_files):
        monkeypatch.setattr(module, "device_name", lambda device: "Tesla T4")
    plan = build(folder)
    assert plan.dtype == torch.float16
    assert plan.dtype_note is not None and plan.dtype_note.startswith("Tesla T4 does not multiply bfloat16, so that")
    for chosen in ("float16", "float32"):
        assert build(folder, compute_dtype=chosen).dtype_note is None
    with pytest.raises(BadInputError, match="Tesla T4 does not multiply bfloat16; give --compute-dtype float16, or"):
        build(folder, compute_dtype="bfloat16")


def test_an_accelerators_budget_is_what_it_has_free_less_a_reserve(folder: Path, accelerator: None) -> None:
    assert build(folder).placement.device_budget_bytes == 300_000_000 - (192 << 20) - int(0.03 * 300_000_000)


def test_an_accelerator_that_does_not_say_needs_a_budget(
    folder: Path, accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "device_memory", lambda device: None)
    with pytest.raises(BudgetError, match="does not say how much memory is free; give --device-memory"):
        build(folder)
    assert build(folder, device_memory_bytes=10**9).placement.device_budget_bytes == 10**9


def test_a_load_is_checked_as_if_what_an_open_session_holds_were_free(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_plan, "select_device", lambda text: torch.device("xpu", 0))
    monkeypatch.setattr(probes, "device_memory", lambda device: DeviceMemory(1_000_000, 400_000_000))
    config = EngineConfig(target=str(folder), draft="none", context_tokens=64)
    check_plan(config, held_bytes=300_000_000)
    for refused, held_bytes in ((config, 0), (replace(config, device_memory_bytes=1000), 300_000_000)):
        with pytest.raises(BudgetError):
            check_plan(refused, held_bytes=held_bytes)
    with pytest.raises(BadInputError):
        check_plan(replace(config, target="/no/such/folder"), held_bytes=300_000_000)


def test_what_an_accelerator_cannot_hold_waits_in_host_memory(folder: Path, accelerator: None) -> None:
    plan = build(folder, device_memory_bytes=0)
    assert set(plan.residency.tiers) == {Tier.HOST}
    assert plan.placement.stage_bytes == 0


def test_what_host_memory_cannot_hold_passes_through_stages(folder: Path, accelerator: None) -> None:
    plan = build(folder, device_memory_bytes=0, host_memory_bytes=0)
    assert set(plan.residency.tiers) == {Tier.DISK}
    assert plan.placement.stage_bytes == 2 * max(plan.residency.layer_bytes)


def test_fewer_residents_are_a_plan_of_its_own(folder: Path, accelerator: None) -> None:
    """What their memory may be worth elsewhere is decided before anything is read."""
    least = build(folder, device_memory_bytes=0).placement.device_bytes
    sizes = build(folder, device_memory_bytes=0).residency.layer_bytes
    plan = build(folder, device_memory_bytes=least + max(sizes) + 100)
    fewer = [plan.with_fewer_residents(number) for number in range(3)]
    assert fewer[0].placement == plan.placement
    assert [each.placement.num_resident_layers for each in fewer] == [1, 0, 0]
    assert [each.placement.num_host_layers for each in fewer] == [len(sizes) - 1, len(sizes), len(sizes)]
    assert fewer[2].placement.device_bytes == least


@pytest.mark.parametrize("kv_format", ["exact", "int8"])
def test_fewer_residents_let_more_keys_and_values_travel(kv_format: str, folder: Path, accelerator: None) -> None:
    """Each leaves the memory of its weights; what the ring then needs, also to widen narrow rows, is in the plan."""
    settings = {"kv_cache": "host", "kv_format": kv_format}
    least = build(folder, device_memory_bytes=0, **settings).placement
    size, cache = max(least.residency.layer_bytes), max(least.residency.cache_bytes)
    plan = build(folder, device_memory_bytes=least.device_bytes + size + cache, **settings)
    assert plan.placement.num_resident_layers == 1
    for number in range(3):
        fewer = plan.with_fewer_residents(number)
        given_up = min(number, 1) * size
        assert least.device_bytes <= fewer.placement.device_bytes <= plan.placement.device_bytes - given_up
        assert fewer.placement.num_resident_layers == max(0, 1 - number)
        assert fewer.residency.row_bytes == plan.residency.row_bytes == fewer.need.row_bytes
        assert sum(fewer.row_bytes.values()) * fewer.need.capacity_tokens == fewer.placement.travelling_bytes


@pytest.mark.parametrize(
    ("settings", "has_stages"),
    [
        ({"host_memory_bytes": 0}, False),  # the emulated link is then the disk itself, slowed down
        ({"host_memory_bytes": 0, "disk_link": "1GB/s"}, True),
        ({"host_memory_bytes": 40_000}, True),
        ({}, False),
    ],
)
def test_an_emulated_link_has_stages_where_a_disk_is_behind_it(
    folder: Path, settings: dict[str, Any], has_stages: bool
) -> None:
    assert (build(folder, device="cpu", link="1GB/s", **settings).placement.stage_bytes > 0) == has_stages


def test_a_device_that_is_not_here_is_refused_before_any_folder_is_opened() -> None:
    config = EngineConfig(target="/nowhere", device="nosuch:0")
    with pytest.raises(BadInputError, match="there is no device of type 'nosuch' here"):
        LoadPlan.build(config)


def test_an_accelerator_may_verify_larger_trees_than_a_processor(folder: Path, accelerator: None) -> None:
    settings = {"draft": "substitute", "draft_format": "int8", "device_memory_bytes": 10**9}
    assert build(folder, **settings).need.max_nodes == 1024
    assert build(folder, **settings, tree="16x4").need.max_nodes == 16


def test_where_the_substitute_does_not_fit_the_sentence_names_the_way_to_another_draft(
    folder: Path, accelerator: None
) -> None:
    with pytest.raises(BudgetError, match=r"; --draft auto takes a smaller model of its family, if one is here$"):
        build(folder, draft="substitute", device_memory_bytes=1)
    with pytest.raises(BudgetError) as refused:
        build(folder, device_memory_bytes=1)
    assert "--draft" not in str(refused.value)


@pytest.mark.parametrize("every", [9, pytest.param(2, marks=pytest.mark.slow)])
def test_a_session_holds_its_draft_as_its_plan_says(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one in `every` of pairs of sizes and cards, with a fused kernel and without, where the plan finds room."""
    pairs = [("Llama-3.3-70B", "Llama-3.1-8B"), ("Llama-3.1-8B", "Llama-3.2-1B"), ("Qwen2.5-32B", None)]
    machines = [
        replace(reference_machine(name), has_fused_nf4=is_fused, host_free_bytes=160 * GB)
        for name, is_fused in product(("rtx-4060-ti-16gb", "rtx-4090", "l40"), (True, False))
    ]
    found = []
    for (target, draft), machine, context_tokens in list(product(pairs, machines, (4096, 16384)))[::every]:
        folders = [config_folder(tmp_path, name) for name in (target, draft) if name is not None]
        files = [ModelFilesOfConfig(folder) for folder in folders]
        config = EngineConfig(
            target=str(folders[0]), draft="substitute" if draft is None else str(folders[1]), pack="off"
        )
        monkeypatch.setattr(load_plan, "find_memory", lambda device, machine=machine, **budgets: machine)
        held = load_plan.with_held(
            config,
            files[0],  # type: ignore[arg-type]
            files[1] if draft else None,  # type: ignore[arg-type]
            usual_context_tokens=context_tokens,
            device=torch.device("cuda", 0),
        ).draft_format
        request = PlanRequest(
            target=str(folders[0]),
            draft="substitute" if draft is None else draft,
            context_tokens=context_tokens,
            pack="off",
        )
        try:
            planned = make_plan(resolve_question(request), machine)
        except BudgetError:
            continue
        found.append((held, planned.main.draft_held))
    assert len(found) > 20 / every
    if every == 2:
        assert {held for held, _ in found} == {"nf4", "stored", "int8"}
    assert all(held == planned for held, planned in found)


class ModelFilesOfConfig:
    """A folder with nothing but its config.json."""

    keeps_format = False

    def __init__(self, folder: Path) -> None:
        self.checkpoint = SimpleNamespace(folder=folder)
        self.config = SimpleNamespace(max_position_embeddings=known_shapes()[folder.name].max_context_tokens)


def config_folder(parent: Path, name: str) -> Path:
    """Write the config.json of a known model below `parent`."""
    models = json.loads(Path("profiles/builtin/models.json").read_text(encoding="utf-8"))["models"]
    config = next(model["config"] for model in models if model["name"] == name)
    (parent / name).mkdir(exist_ok=True)
    (parent / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return parent / name


def batch_of(folder: Path, num_requests: int, **settings: object) -> LoadPlan:
    config = EngineConfig(target=str(folder), context_tokens=128, **{"draft": "none", "num_texts": None, **settings})
    return LoadPlan.build(config, requests=[request()] * num_requests)


def test_as_many_texts_share_a_pass_as_there_are_prompts_and_room(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_tiny_tokenizer(save_tiny_model("llama", folder, intermediate_size=8192, num_hidden_layers=8))
    least = batch_of(folder, 1, device_memory_bytes=0).placement.device_bytes
    assert [batch_of(folder, count).need.num_texts for count in (1, 2, 5)] == [1, 2, 5]
    assert batch_of(folder, 9, num_texts=3).need.num_texts == 3
    assert batch_of(folder, 2, num_texts=3).need.num_texts == 2
    tight = batch_of(folder, 9, device_memory_bytes=least + 40_000)
    assert 1 <= tight.need.num_texts < 9
    with pytest.raises(BudgetError):
        batch_of(folder, 9, num_texts=9, device_memory_bytes=least + 40_000)


def test_a_small_model_that_stays_in_memory_answers_some_texts_together(tmp_path: Path) -> None:
    """Its layers have fewer bytes than the keys and values of a few texts, which made clients of it wait for one
    another."""
    folder = save_tiny_folder(tmp_path / "model")
    assert batch_of(folder, 20).need.num_texts == MOST_RESIDENT_TEXTS
    for streams in ({"device_memory_bytes": 0}, {"draft": "substitute"}):
        assert batch_of(folder, 20, **streams).need.num_texts < MOST_RESIDENT_TEXTS


def test_keys_and_values_that_travel_are_those_of_one_text(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    settings = {"kv_cache": "host", "link": "1GB/s", "device_memory_bytes": 0}
    assert batch_of(folder, 4, **settings).need.num_texts == 1
    with pytest.raises(OptionError, match="--batch 4"):
        batch_of(folder, 4, num_texts=4, **settings)


def test_what_fits_whole_is_opened_also_where_streaming_it_would_not_fit(folder: Path) -> None:
    """It was refused with the words that it fits: passes over layers that stream may be longer than others."""
    config = EngineConfig(target=str(folder), draft="none", context_tokens=2048, num_texts=3)
    need = LoadPlan.build(config).need
    plan = LoadPlan.build(replace(config, device_memory_bytes=need.least_bytes - 1))
    assert not plan.residency.streamed_layers and plan.placement.device_bytes < need.least_bytes
    with pytest.raises(BudgetError, match="the budget is"):
        LoadPlan.build(replace(config, device_memory_bytes=plan.placement.device_bytes - 1))


def test_every_text_has_its_keys_and_values_and_all_trees_share_the_nodes(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    alone, together = (batch_of(folder, 4, num_texts=number, draft="substitute").need for number in (1, 4))
    assert together.text_nodes == together.max_nodes // 2 and alone.text_nodes == alone.max_nodes == together.max_nodes
    assert together.cached_tokens == 4 * (128 + together.text_nodes)
    fixed = [sum(size for name, size in need.fixed_entries().items() if "keys" in name) for need in (alone, together)]
    assert fixed[1] == pytest.approx(fixed[0] * together.cached_tokens / alone.cached_tokens)


def test_draft_and_packing_are_chosen_for_passes_of_all_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were priced as those of one prompt, in which a draft's steps cost less beside a pass."""
    asked = []

    def watch(question: Any, *rest: Any) -> Any:
        asked.append(question.request.num_prompts)
        return take_draft(question, *rest)

    take_draft = load_plan.take_draft
    monkeypatch.setattr(load_plan, "take_draft", watch)
    folder = save_tiny_folder(tmp_path / "model")
    for count in (1, 5):
        plan = batch_of(folder, count, draft="auto", tree="4x3", num_texts=8)
        question = load_plan.question_beside(plan.config, plan.target, None, usual_context_tokens=128)
        assert question.request.num_prompts == plan.need.num_texts == count
    assert asked == [1, 5]
