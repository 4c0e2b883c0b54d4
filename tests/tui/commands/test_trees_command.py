"""`bench trees` as it is typed; what it counts is in test_tree_benchmark.py."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from runtime.bench.tree_benchmark import CountedTree, TreeReport
from tests.support.session_factory import save_tiny_folder
from tui.cli import execute
from tui.commands.trees_command import tree_line, tree_table


def test_the_last_line_is_the_report_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save_tiny_folder(tmp_path / "target", seed=37)
    prompts = tmp_path / "p.txt"
    prompts.write_text("the cat and the dog\nonce upon a time\n")
    command = ["bench", "trees", str(prompts), "--target", str(target), "--nodes", "6", "--levels", "3"]
    assert execute([*command, "--temperature", "0", "--max-new-tokens", "16", "--context", "128"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [tree["kind"] for tree in record["trees"]] == ["static", "dynamic"]
    assert all(1 <= tree["tokens_per_pass"] <= 3 for tree in record["trees"])
    assert record["gains"][0][:2] == [0.0, 6]


def test_people_read_a_line_for_each_tree_and_a_table_of_gains() -> None:
    static = CountedTree(0.6, "static", 64, 25, 8.0, 0.5, 40, 1.5, 24.0)
    dynamic = replace(static, kind="dynamic", tokens_per_pass=10.0, draft_steps=20.2)
    assert tree_line(static) == (
        "temperature 0.6: static tree of 64 nodes: 8.00 (±0.50) tokens per pass over 40 rounds, 24.0 draft steps in "
        "1.50 s"
    )
    file = io.StringIO()
    Console(file=file, width=100).print(tree_table(TreeReport("target", "draft", 12, (static, dynamic))))
    (line,) = [line for line in file.getvalue().splitlines() if "1.25x" in line]
    assert [cell.strip() for cell in line.split("│")[1:5]] == ["0.6", "64", "8.00 ±0.50 (24)", "10.00 ±0.50 (20)"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--draft", "none"], "--draft none"),
        (["--tree", "64x10"], "--nodes and --levels"),
        (["--nodes", "8"], "8 is less than the 25"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(options: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "trees", *options]) == 2
    assert word in capsys.readouterr().err
