"""The benchmarks from the command line: one JSON line on stdout, progress elsewhere."""

import json
from pathlib import Path

import pytest

from tests.support.session_factory import save_tiny_folder
from tui.cli import execute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", seed=2)


def test_rounds_end_with_one_json_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "round", "--target", str(folder), "--draft", str(folder), "--emulate-link", "50MB/s"]
    assert execute([*arguments, "--tree", "8x4", "--rounds", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["num_nodes"], record["num_levels"], len(record["rounds"])) == (8, 4, 2)
    assert record["ratio"] > 0


def test_the_round_benchmark_has_a_tree_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "round", "--target", str(folder), "--draft", str(folder), "--emulate-link", "50MB/s"]
    assert execute([*arguments, "--rounds", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["num_nodes"], record["num_levels"]) == (64, 10)


def test_streams_end_with_one_json_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "stream", "--target", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["num_streamed_layers"] == 4


def test_a_benchmark_without_a_streamed_layer_says_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "round", "--target", str(folder), "--draft", "none"]) == 2
    assert "no layer streams here" in capsys.readouterr().err
