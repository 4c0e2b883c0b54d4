import json
from pathlib import Path

import pytest

from runtime.bench.draft_benchmark import DraftFormatReport, DraftStep
from tests.support.session_factory import save_tiny_folder
from tui.cli import execute
from tui.commands.draft_bench_command import format_lines


def test_the_last_line_is_the_report_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save_tiny_folder(tmp_path / "target", seed=37)
    prompts = tmp_path / "p.txt"
    prompts.write_text("the cat and the dog\n")
    command = ["bench", "draft", str(prompts), "--target", str(target), "--max-new-tokens", "6", "--repeats", "1"]
    assert execute([*command, "--draft-format", "nf4", "--tree", "6x3"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [item["held"] for item in record["formats"]] == ["nf4"]
    assert record["formats"][0]["num_positions"] == 6


def test_a_line_that_is_no_prompt_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("{\n")
    assert execute(["bench", "draft", str(prompts)]) == 2
    assert "p.jsonl" in capsys.readouterr().err


def test_a_format_is_shown_with_its_errors() -> None:
    steps = (DraftStep(1, 0.012, 0.01), DraftStep(4, 0.02, 0.02))
    lines = format_lines(DraftFormatReport("int8", 5_000_000, steps, (0.9, 0.05), (0.01, 0.02), 400))
    assert lines == [
        "int8: layers 5 MB; step by width 1: 12 ms, 4: 20 ms",
        "int8: acceptance by rank 0.900 (±0.010) 0.050 (±0.020) over 400 positions",
    ]
