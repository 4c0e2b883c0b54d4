"""A session decides on packing as its plan does, once, and says so in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch

from offload.formats import packed
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.engine.packing import NOTHING_PACKS
from runtime.fit.models import shape_of_folder
from runtime.fit.place import PACKED
from runtime.model.model_loader import ModelFiles
from tests.support.model_factory import save_tiny_model, save_tiny_tokenizer

SIZES = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("packable")
    return save_tiny_tokenizer(save_tiny_model("llama", found, dtype=torch.bfloat16, **SIZES))


def plan_of(folder: Path, **settings: Any) -> LoadPlan:
    return LoadPlan.build(EngineConfig(target=str(folder), draft="none", context_tokens=64, **settings))


def rates(monkeypatch: pytest.MonkeyPatch, *, bfloat16: float, packed_: float) -> None:
    monkeypatch.setattr(packed, "measure_rates", lambda: {"bfloat16": bfloat16, PACKED: packed_})


def test_auto_packs_behind_a_slow_link_and_says_what_it_spares(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates(monkeypatch, bfloat16=4e9, packed_=1e9)
    plan = plan_of(folder, link="10MB/s")
    assert plan.config.pack == "on" and plan.placement.format_name == PACKED
    stored = plan_of(folder, link="10MB/s", pack="off")
    assert 0.74 < plan.placement.streamed_bytes / stored.placement.streamed_bytes < 0.76
    assert plan.packing_note is not None
    assert "12 bits an element" in plan.packing_note and "move in every pass" in plan.packing_note
    assert plan.packing_note.endswith("--pack off keeps them as stored")
    assert stored.packing_note is None


@pytest.mark.parametrize(("link", "rate"), [(None, 1e9), ("100GB/s", 1e9), ("10MB/s", 1e6)])
def test_auto_keeps_layers_as_stored_where_unpacking_costs_more_than_it_spares(
    link: str | None, rate: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates(monkeypatch, bfloat16=4e9, packed_=rate)
    plan = plan_of(folder, link=link)
    assert plan.config.pack == "off" and plan.packing_note is None and plan.need.stored is None


@pytest.mark.parametrize("draft", ["auto", "substitute", "folder"])
def test_packing_is_decided_with_any_draft(draft: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: a session with a draft of several formats ended in an AssertionError, as no speed was known yet."""
    rates(monkeypatch, bfloat16=4e9, packed_=1e9)
    named = str(folder) if draft == "folder" else draft
    plan = LoadPlan.build(EngineConfig(target=str(folder), draft=named, context_tokens=64, link="10MB/s"))
    assert plan.config.pack in ("on", "off")


def test_what_does_not_pack_is_said_where_it_was_asked_for(tmp_path: Path) -> None:
    folder = save_tiny_tokenizer(save_tiny_model("llama", tmp_path, **SIZES))
    assert plan_of(folder, link="10MB/s").config.pack == "off"
    plan = plan_of(folder, link="10MB/s", pack="on")
    assert plan.packing_note == NOTHING_PACKS and plan.placement.format_name == "float32"


def test_sizes_and_files_say_the_same_of_packed_layers(folder: Path) -> None:
    shape = shape_of_folder(folder)
    need = shape.need(None, context_tokens=64, max_nodes=1, compute_item_bytes=4)
    of_shape, packing = shape.packed(need, 4).layers, ModelFiles.open(folder).packing()
    assert packing is not None
    assert of_shape.total_bytes == pytest.approx(sum(each.layout.slab_bytes for each in packing), rel=0.02)


def test_measuring_what_unpacking_takes_is_quick_and_done_once() -> None:
    found = packed.measure_rates()
    assert set(found) == {"bfloat16", PACKED} and min(found.values()) > 0
    assert packed.measure_rates() is found
