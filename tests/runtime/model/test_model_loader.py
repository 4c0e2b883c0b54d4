from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from offload.copying.host_engine import HostCopyEngine
from offload.errors import CheckpointError
from offload.formats import draft_weight
from offload.formats.draft_weight import HeldFormat
from offload.layer_slabs import read_slab, slab_views
from profiles.steps import finish
from runtime.model import model_loader
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


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        ModelFiles.open(tmp_path)
