"""Folders that `prepare` packed compute what their originals do, to the last bit, as targets and as drafts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from offload.checkpoint.checkpoint import Checkpoint
from offload.formats.packed import PackedFormat
from runtime.config import EngineConfig
from runtime.engine.load_plan import LoadPlan
from runtime.fit.models import shape_of_folder
from runtime.model.model_loader import ModelFiles
from tests.support.packed_factory import ASKED, ask, save_packed_folder
from tests.support.session_factory import answer, open_tiny

WAYS: dict[str, dict[str, Any]] = {
    "all resident": {},
    "all on disk": {"num_residents": 0},
    "some in host memory": {"link": "10GB/s", "num_residents": 1, "host_memory_bytes": 700_000, "disk_link": "5GB/s"},
    "tree": {"num_residents": 1, "draft": "draft", "tree": "12x5"},
    "substitute": {"num_residents": 1, "draft": "substitute", "tree": "8x4"},
    "substitute of shared layers": {"draft": "substitute", "tree": "8x4", "share_layers": True},
}
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_packed_folder(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_packed_folder(tmp_path_factory.mktemp("draft"), "qwen2", seed=9)


@pytest.mark.parametrize("way", WAYS)
def test_every_logit_is_that_of_the_original(way: str, target: Pair, draft: Pair) -> None:
    settings = dict(WAYS[way])
    if settings.get("draft") == "draft":
        settings["draft"] = draft[0]
    found = []
    for folder in target:
        with open_tiny(folder, **settings) as opened:
            found.append(ask(opened))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1].view(torch.int32), found[1][1].view(torch.int32))


@pytest.mark.parametrize("held", ["stored", "int8", "nf4"])
def test_a_packed_draft_is_held_as_its_original(held: str, target: Pair, draft: Pair, tmp_path: Path) -> None:
    """The last two sessions take an NF4 draft from where the first one of each left it."""
    rounds = []
    for folder in (*draft, *draft):
        settings = {"draft": folder, "tree": "12x5", "draft_format": held, "num_residents": 1}
        with open_tiny(target[0], **settings) as opened:
            finished, text = answer(opened, ASKED[0])
            rounds.append((text, finished.statistics.rounds))
    assert rounds == rounds[:1] * 4


def test_a_draft_takes_as_much_memory_as_its_original(draft: Pair) -> None:
    original, packed = (ModelFiles.open(folder) for folder in draft)
    for held in ("stored", "int8", "nf4"):
        sizes = zip(original.draft_layer_bytes(held), packed.draft_layer_bytes(held), strict=True)
        assert all(size <= more <= 1.02 * size + 8192 for size, more in sizes)


def test_layers_are_three_quarters_of_the_file_s_bytes_in_one_piece(target: Pair) -> None:
    original, packed = (ModelFiles.open(folder) for folder in target)
    assert packed.is_packed and not packed.is_quantized and not original.is_packed
    for stored, layout, formats in zip(original.payload_bytes, packed.layouts, packed.formats, strict=True):
        assert 0.75 * stored < layout.payload_bytes < 0.77 * stored
        assert layout.is_phase_aligned and len(layout.ranges) == len(layout.moves) == 1
        assert formats and all(isinstance(found, PackedFormat) for found in formats.values())
    assert torch.equal(
        torch.tensor(original.other_bytes(torch.device("cpu"))), torch.tensor(packed.other_layout.slab_bytes)
    )


def test_its_sizes_are_told_before_it_is_opened(target: Pair) -> None:
    shape = shape_of_folder(target[1])
    plan = LoadPlan.build(EngineConfig(target=str(target[1]), draft="none", context_tokens=64))
    stored, *quantized = plan.need.formats
    assert [layers.name for layers in shape.formats] == ["packed", "int8", "nf4"]
    assert (stored.name, *(layers.name for layers in quantized)) == ("packed", "int8", "nf4")
    assert shape.note is None
    assert abs(shape.formats[0].total_bytes - stored.total_bytes) <= 0.03 * stored.total_bytes + 6 * 8192
    original = LoadPlan.build(EngineConfig(target=str(target[0]), draft="none", context_tokens=64))
    assert quantized[1].total_bytes <= original.need.formats[2].total_bytes + 6 * 8192


def test_transformers_refuses_it(target: Pair) -> None:
    """It does not know how the matrices are stored, and must not load them as if they were ordinary ones."""
    assert Checkpoint.open(target[1]).is_packed
    with pytest.raises(Exception, match=r"(?i)mismatch|overstory"):
        AutoModelForCausalLM.from_pretrained(target[1])
