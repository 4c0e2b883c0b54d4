import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import load_file, save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.copying.host_engine import HostCopyEngine
from offload.errors import CheckpointError
from offload.formats import draft_weight
from offload.formats.draft_weight import HeldFormat
from offload.formats.ggml_blocks import GgmlFormat
from offload.formats.quantized_group import QuantizedGroup
from offload.formats.stored_sizes import PIECE_BYTES, piece_elements
from offload.layer_slabs import read_slab, slab_views
from profiles.steps import finish
from runtime.model import architecture, model_loader
from runtime.model.layer_binding import ComputePlan
from runtime.model.model_loader import ModelFiles, SharedLayers, load_draft, read_others
from runtime.model.streamed_model import chain_input
from tests.support.model_factory import save_tiny_model
from tests.support.quantized_factory import save_quantized_folder
from tests.support.session_factory import save_tiny_folder

TOKENS = [5, 17, 40, 8]


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles.open(save_tiny_folder(tmp_path / "model", dtype=torch.bfloat16))


def logits_of(
    files: ModelFiles, held: HeldFormat = "stored", *, shared: SharedLayers | None = MappingProxyType({})
) -> torch.Tensor:
    """Of a substitute held in this format, or with `shared=None` of a draft; as stored it is the model itself."""
    with HostCopyEngine() as engine:
        others, compute = read_others(files, engine), ComputePlan(torch.float32)
        model = finish(load_draft(files, compute, held, engine, others=others, capacity=16, shared=shared))
    return model.logits(model.run_pass(chain_input(TOKENS, num_cached=0)))


@pytest.mark.parametrize(("held", "bound"), [("int8", 0.05), ("nf4", 0.4)])
def test_a_quantized_model_is_close_to_the_resident_one_and_not_equal(
    files: ModelFiles, held: HeldFormat, bound: float
) -> None:
    exact, rounded = logits_of(files), logits_of(files, held)
    assert 0 < (exact - rounded).norm() / exact.norm() < bound


def test_no_logit_of_a_target_in_bfloat16_is_rounded_to_it(files: ModelFiles) -> None:
    """In steps of an eighth the two largest of a row tie too often; a draft's are rounded where that is for free."""

    def logits(*, is_fast: bool) -> torch.Tensor:
        with HostCopyEngine() as engine:
            compute = ComputePlan(torch.bfloat16, is_fast=is_fast)
            others = read_others(files, engine)
            model = finish(load_draft(files, compute, "stored", engine, others=others, capacity=16, shared={}))
        return model.logits(model.run_pass(chain_input(TOKENS, num_cached=0)))

    target, draft = logits(is_fast=False), logits(is_fast=True)
    assert target.dtype == draft.dtype == torch.float32
    assert (target != target.bfloat16().float()).float().mean() > 0.9
    assert torch.equal(draft, draft.bfloat16().float())
    torch.testing.assert_close(target, draft, rtol=2**-7, atol=1e-2)


def test_shared_layers_are_bound_as_they_are_and_not_read(files: ModelFiles) -> None:
    """The substitute uses the target's resident layers: with all of them it is the target."""
    with HostCopyEngine() as engine:
        views = {i: (slab_views(layout, read_slab(layout, engine)), {}) for i, layout in enumerate(files.layouts)}
    exact, some = logits_of(files), {i: views[i] for i in (0, 2)}
    assert torch.equal(logits_of(files, "int8", shared=views), exact)
    errors = [(logits_of(files, "nf4", shared=shared) - exact).norm() for shared in (views, some, {})]
    assert errors[0] == 0 < errors[1] < errors[2]


def test_a_drafts_own_head_is_close_to_the_stored_one(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_weight, "measure_is_packed_faster", lambda compute: True)
    shared, own = logits_of(files, "int8"), logits_of(files, "int8", shared=None)
    assert 0 < (shared - own).norm() / shared.norm() < 0.02
    monkeypatch.setattr(draft_weight, "measure_is_packed_faster", lambda compute: False)
    assert torch.equal(logits_of(files, "int8", shared=None), logits_of(files, "int8"))
    assert torch.equal(logits_of(files, shared=None), logits_of(files))


def test_the_held_format_follows_the_files_the_wish_and_the_measurement(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_loader, "fastest_format", lambda dtype, device: "nf4")
    compute = (torch.float32, torch.device("cpu"))
    assert files.held_format("auto", *compute, is_substitute=False) == "nf4"
    assert files.held_format("int8", *compute, is_substitute=True) == "int8"
    assert files.held_format("stored", *compute, is_substitute=False) == "stored"
    assert files.held_format("stored", *compute, is_substitute=True) == "int8"
    quantized = ModelFiles.open(save_quantized_folder(tmp_path / "q", "nf4"))
    assert quantized.held_format("int8", *compute, is_substitute=True) == "stored"
    assert quantized.draft_layer_bytes("stored") == tuple(layout.slab_bytes for layout in quantized.layouts)


def test_layers_and_the_rest_cover_the_file(files: ModelFiles) -> None:
    total = sum(files.payload_bytes) + files.other_layout.payload_bytes
    assert total == files.checkpoint.total_bytes


def test_the_bytes_of_a_drafts_layer_follow_from_its_shapes(files: ModelFiles) -> None:
    """Four layers: q and o 32x32, k and v 16x32, gate and up 64x32, down 32x64, and two norms of 32 in float32."""
    elements = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    rows = 2 * 32 + 2 * 16 + 2 * 64 + 32
    assert files.draft_layer_bytes("int8") == (elements + 12 * rows + 4 * 64,) * 4
    nested_bytes = 7 * 4 * 257
    assert files.draft_layer_bytes("nf4") == (elements // 2 + elements // 64 + nested_bytes + 4 * 64,) * 4
    assert files.draft_head_bytes("int8") == 96 * (32 + 12) and files.draft_head_bytes("nf4") == 0


def test_cache_bytes_are_keys_and_values_of_the_kv_heads(files: ModelFiles) -> None:
    assert files.cache_bytes_per_token(torch.float32) == 2 * 4 * 2 * 8 * 4
    workspace = files.workspace(torch.bfloat16)
    assert workspace.pass_bytes(1, 16) == (4 * 32 + 2 * 8 + 3 * 64 + 16) * 2 + 16


def test_a_tied_head_shares_the_embeddings_bytes(tmp_path: Path) -> None:
    tied = ModelFiles.open(save_tiny_model("gemma3", tmp_path / "tied"))
    assert not any(tensor.name == "lm_head.weight" for tensor in tied.other_layout.tensors)
    assert logits_of(tied).shape == (4, 96)


def test_beside_an_accelerator_the_input_embeddings_wait_in_host_memory(files: ModelFiles) -> None:
    cpu, accelerator = torch.device("cpu"), torch.device("cuda")
    assert files.table_layout is not None and [tensor.shape for tensor in files.table_layout.tensors] == [(96, 32)]
    assert files.table_layout.payload_bytes + files.rest_layout.payload_bytes == files.other_layout.payload_bytes
    assert (files.table_bytes(cpu), files.other_bytes(cpu)) == (0, files.other_layout.slab_bytes)
    assert files.table_bytes(accelerator) == files.table_layout.slab_bytes
    assert files.other_bytes(accelerator) == files.rest_layout.slab_bytes


def test_embeddings_that_are_the_head_too_stay_on_the_device(tmp_path: Path) -> None:
    tied = ModelFiles.open(save_tiny_model("gemma3", tmp_path / "tied"))
    assert tied.table_layout is None and tied.table_bytes(torch.device("cuda")) == 0
    assert tied.other_bytes(torch.device("cuda")) == tied.other_layout.slab_bytes


def save_as_blocks(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A tiny model whose matrices are Q8_0 blocks, tables and heads too, and one of their numbers in float32."""
    from gguf import GGMLQuantizationType, quants

    def find(checkpoint: Checkpoint, name: str, shape: tuple[int, int]) -> QuantizedGroup | None:
        entry = checkpoint.tensors[name]
        raw = {"": replace(entry, shape=(entry.num_bytes,))}
        return QuantizedGroup(GgmlFormat(shape, "Q8_0"), raw) if entry.dtype == "U8" else None

    monkeypatch.setattr(architecture, "find_group", find)
    monkeypatch.setattr(Checkpoint, "is_quantized", property(lambda checkpoint: True))
    save_tiny_model(kind, folder / "dense")
    shutil.copytree(folder / "dense", folder / "blocks")
    tensors = load_file(folder / "dense" / "model.safetensors")
    blocks, dense = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2:
            rows = quants.quantize(tensor.float().numpy(), GGMLQuantizationType.Q8_0)
            blocks[name] = torch.from_numpy(rows)
            dense[name] = torch.from_numpy(quants.dequantize(rows, GGMLQuantizationType.Q8_0))
    save_file(blocks, folder / "blocks" / "model.safetensors", {"format": "pt"})
    save_file(dense, folder / "dense" / "model.safetensors", {"format": "pt"})
    return folder / "blocks", folder / "dense"


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_tables_and_heads_of_blocks_are_those_of_their_numbers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of its own, and one that is tied to the table."""
    blocks, dense = map(ModelFiles.open, save_as_blocks(tmp_path, kind, monkeypatch))
    assert (blocks.table_layout is None) == (dense.table_layout is None) == (kind == "gemma3")
    expected = logits_of(dense)
    torch.testing.assert_close(logits_of(blocks), expected, rtol=1e-4, atol=1e-4)
    for held, bound in (("int8", 0.05), ("nf4", 0.4)):
        for shared in ({}, None):
            assert 0 < (logits_of(blocks, held, shared=shared) - expected).norm() / expected.norm() < bound


def test_a_draft_of_blocks_is_held_as_is_fastest_and_measured_as_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks, dense = map(ModelFiles.open, save_as_blocks(tmp_path, "llama", monkeypatch))
    assert blocks.is_quantized and blocks.is_widened and not dense.is_widened
    cpu, accelerator = torch.device("cpu"), torch.device("cuda")
    for fastest, on_cpu, elsewhere in (("nf4", "nf4", "nf4"), ("int8", "int8", "int8"), ("stored", "int8", "stored")):
        monkeypatch.setattr(model_loader, "fastest_format", lambda dtype, device, fastest=fastest: fastest)
        assert blocks.held_format("auto", torch.float32, cpu, is_substitute=False) == on_cpu
        assert blocks.held_format("auto", torch.float32, accelerator, is_substitute=False) == elsewhere
    assert blocks.held_format("stored", torch.float32, cpu, is_substitute=False) == "stored"
    assert blocks.held_format("stored", torch.float32, cpu, is_substitute=True) == "int8"
    assert blocks.draft_layer_bytes("int8") == dense.draft_layer_bytes("int8")
    assert blocks.draft_layer_bytes("stored") == tuple(layout.slab_bytes for layout in blocks.layouts)


def test_a_model_of_blocks_alone_counts_as_one_made_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vectors are float32, whatever it was made in; its head is widened wherever it is multiplied."""
    blocks, dense = map(ModelFiles.open, save_as_blocks(tmp_path, "llama", monkeypatch))
    assert (blocks.stored_dtype, dense.stored_dtype) == (torch.bfloat16, torch.float32)
    meta = torch.device("meta")
    assert not blocks.multiplies_head_to_float32(torch.bfloat16, meta)
    assert blocks.head_scratch_elements(torch.bfloat16, meta) == 96 * 32
    assert blocks.scratch_elements(torch.bfloat16, meta) >= 96 * 32
    num_bytes = 2 * blocks.scratch_elements(torch.bfloat16, meta)
    assert blocks.scratch_bytes(torch.bfloat16, meta) == num_bytes + PIECE_BYTES * piece_elements(is_host=False)
    assert dense.scratch_bytes(torch.bfloat16, meta) == 2 * dense.scratch_elements(torch.bfloat16, meta)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        ModelFiles.open(tmp_path)
