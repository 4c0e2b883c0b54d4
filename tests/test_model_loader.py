from pathlib import Path

import pytest
import torch
from model_factory import save_tiny_model
from session_factory import save_tiny_folder

from offload.errors import CheckpointError
from offload.host_copy_engine import HostCopyEngine
from runtime.model.model_loader import ComputePlan, EmptyModel, ModelFiles, read_others
from runtime.model.streamed_model import chain_input

TOKENS = [5, 17, 40, 8]


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    return ModelFiles.open(save_tiny_folder(tmp_path / "model", dtype=torch.bfloat16))


def resident_logits(files: ModelFiles, *, is_int8: bool) -> torch.Tensor:
    with HostCopyEngine() as engine:
        empty = EmptyModel.build(files, ComputePlan(torch.float32), others=read_others(files, engine))
        load = empty.quantized if is_int8 else empty.resident
        model = load(files.slabs, engine, capacity=16)
    return model.logits(model.run_pass(chain_input(TOKENS, num_cached=0)))


def test_a_quantized_model_is_close_to_the_resident_one_and_not_equal(files: ModelFiles) -> None:
    exact, rounded = resident_logits(files, is_int8=False), resident_logits(files, is_int8=True)
    assert 0 < (exact - rounded).norm() / exact.norm() < 0.05


def test_layers_and_the_rest_cover_the_file(files: ModelFiles) -> None:
    total = sum(files.slabs.payload_bytes) + files.other_layout.payload_bytes
    assert total == files.checkpoint.total_bytes


def test_int8_bytes_are_elements_and_row_scales(files: ModelFiles) -> None:
    """Four layers: q and o 32x32, k and v 16x32, gate and up 64x32, down 32x64, and two norms of 32."""
    elements = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32
    rows = 2 * 32 + 2 * 16 + 2 * 64 + 32 + 2 * 32
    assert files.int8_bytes == 4 * (elements + 4 * rows)


def test_cache_bytes_are_keys_and_values_of_the_kv_heads(files: ModelFiles) -> None:
    assert files.cache_bytes_per_token(torch.float32) == 2 * 4 * 2 * 8 * 4
    assert files.workspace_bytes(2, torch.float32) > files.workspace_bytes(1, torch.float32) > 0


def test_a_tied_head_shares_the_embeddings_bytes(tmp_path: Path) -> None:
    tied = ModelFiles.open(save_tiny_model("gemma3", tmp_path / "tied"))
    assert not any(tensor.name == "lm_head.weight" for tensor in tied.other_layout.tensors)
    assert resident_logits(tied, is_int8=False).shape == (4, 96)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        ModelFiles.open(tmp_path)
