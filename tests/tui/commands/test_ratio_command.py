import json
from pathlib import Path

import pytest

from runtime.bench.ratio_benchmark import RatioRun
from tests.support.session_factory import save_tiny_folder
from tui.cli import execute
from tui.commands.ratio_command import run_line


def test_the_last_line_is_the_report_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save_tiny_folder(tmp_path / "target", seed=37)
    prompts = tmp_path / "p.txt"
    prompts.write_text("the cat and the dog\nin the end\nthe sun and the sea\n")
    command = ["bench", "ratio", str(prompts), "--target", str(target), "--draft", str(target), "--tree", "6x6"]
    assert execute([*command, "--draft-format", "stored", "--max-new-tokens", "20", "--steps-per-pass", "5"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["temperature"] for run in record["runs"]] == [0.0, 0.6]
    assert record["draft"] == "target"
    assert [run["published_speedup"] for run in record["runs"]] == [9.5, 9.3]


def test_the_link_is_the_commands_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "ratio", "--emulate-link", "1GB/s"]) == 2
    assert "--steps-per-pass" in capsys.readouterr().err


def test_a_line_that_is_no_prompt_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("{\n")
    assert execute(["bench", "ratio", str(prompts)]) == 2
    assert "p.jsonl" in capsys.readouterr().err


def test_people_read_one_line_for_each_temperature() -> None:
    run = RatioRun(0.7, 0.5, 8.0, None, 9.5, 95, 10, 0.2, 0.75, 0.1, "link", "64x10")
    assert run_line(run) == (
        "temperature 0.7: 8.00x as fast as plain streaming, 0.500 s/token, 9.5 tokens per pass, last tree 64x10; "
        "link 75 %, computing 10 %, drafting 20 % of the time: bound by the link"
    )
