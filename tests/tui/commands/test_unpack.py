import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.model_factory import save_tiny_model
from tui import cli


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_model(
        "llama", tmp_path / "model", hidden_size=64, intermediate_size=128, dtype=torch.bfloat16, num_hidden_layers=2
    )


def test_it_ends_with_one_json_line_and_the_original(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, output = source.parent / "packed", source.parent / "unpacked"
    assert cli.execute(["prepare", str(source), "--format", "packed", "-o", str(packed)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["num_bytes"] < first["source_bytes"] and first["num_matrices"] == 14
    assert cli.execute(["unpack", str(packed), "--output", str(output), "-q"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == "" and (record["folder"], record["format"]) == (str(output), "original")
    assert record["num_bytes"] == first["source_bytes"]
    files = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    for name, tensor in load_file(source / "model.safetensors").items():
        assert torch.equal(load_file(output / files[name])[name], tensor)


def test_a_folder_that_is_not_packed_is_one_line_and_exit_code_2(source: Path, capsys) -> None:
    assert cli.execute(["unpack", str(source), "-o", str(source.parent / "unpacked")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "is not packed" in err
    assert {path.name for path in source.parent.iterdir()} == {"model"}
