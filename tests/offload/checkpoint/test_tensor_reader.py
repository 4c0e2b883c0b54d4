import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.checkpoint.tensor_reader import TensorReader
from offload.errors import CheckpointError
from tests.support.model_factory import save_tiny_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("reader") / "model"
    save_tiny_model("llama", folder, dtype=torch.bfloat16, max_shard_size="40KB")
    return Checkpoint.open(folder)


def test_elements_are_those_of_the_file(checkpoint: Checkpoint) -> None:
    files = {entry.file for entry in checkpoint.tensors.values()}
    assert len(files) > 1
    expected = {name: tensor for file in files for name, tensor in load_file(file).items()}
    with TensorReader() as reader:
        for name, entry in checkpoint.tensors.items():
            flat = expected[name].view(-1)
            assert torch.equal(reader.read_elements(entry, 3, 11), flat[3:11])
            assert torch.equal(reader.read_elements(entry, 0, flat.numel()), flat)
        assert reader.bytes_read == checkpoint.total_bytes + 16 * len(checkpoint.tensors)


def test_a_file_that_was_cut_off_is_a_sentence(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_tiny_model("llama", tmp_path / "model"))
    last = max(checkpoint.tensors.values(), key=lambda entry: entry.offset_bytes)
    with last.file.open("r+b") as file:
        file.truncate(last.offset_bytes + last.num_bytes - 1)
    with TensorReader() as reader, pytest.raises(CheckpointError, match="ends early"):
        reader.read_elements(last, 0, math.prod(last.shape))


def test_a_file_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_tiny_model("llama", tmp_path / "model"))
    entry = next(iter(checkpoint.tensors.values()))
    entry.file.unlink()
    with TensorReader() as reader, pytest.raises(CheckpointError, match="cannot be read"):
        reader.read_elements(entry, 0, 1)
