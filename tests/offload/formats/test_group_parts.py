import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from offload.checkpoint.checkpoint import Checkpoint
from offload.errors import CheckpointError
from offload.formats.group_parts import check_part, read_part, require_part, wrong_part


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    save_file({"x.weight": torch.tensor([1, 2], dtype=torch.int32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({}))
    return Checkpoint.open(tmp_path)


def test_a_part_is_found_and_read(checkpoint: Checkpoint) -> None:
    entry = require_part(checkpoint, "x.weight", checkpoint.tensors["x.weight"])
    check_part(entry, "I32", (2,))
    check_part(entry, ("F32", "I32"), (2,))
    assert read_part(entry) == bytes([1, 0, 0, 0, 2, 0, 0, 0])


def test_every_fault_is_a_sentence_with_names(checkpoint: Checkpoint) -> None:
    entry = checkpoint.tensors["x.weight"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'x\.scale' that the quantized 'x\.weight' needs"):
        require_part(checkpoint, "x.scale", entry)
    with pytest.raises(CheckpointError, match=r"has type I32 and shape \[2\]; expected F32 or BF16 of \[3\], which"):
        check_part(entry, ("F32", "BF16"), (3,))
    assert str(wrong_part(entry, "is so", "other")).endswith("model.safetensors is so; expected other")


def test_a_file_that_shrank_or_went_is_a_sentence(checkpoint: Checkpoint) -> None:
    entry = checkpoint.tensors["x.weight"]
    entry.file.write_bytes(entry.file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="ends after 5 bytes"):
        read_part(entry)
    entry.file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_part(entry)
