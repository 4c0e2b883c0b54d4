"""`run --dry-run`: what it says, and that it answers and writes nothing."""

import json
from pathlib import Path

import pytest
import torch

from runtime.fit import probes
from tests.support.batch_files import chat_line, write_lines
from tests.support.plan_fakes import processor
from tests.support.session_factory import save_tiny_folder
from tui import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("model") / "target", dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    def measure(device, **_):
        yield "measuring"
        return processor()

    monkeypatch.setattr(probes, "this_machine", measure)


def run(path: Path, folder: Path, *options):
    return cli.execute(["run", str(path), "--target", str(folder), "--dry-run", *map(str, options)])


def prompt_file(path, *names):
    path.write_text("".join(json.dumps({"id": name, "prompt": name, "max_new_tokens": 8}) + "\n" for name in names))
    return path


def words(text):
    return " ".join(text.split())


def test_a_dry_run_says_what_a_run_would_take_and_writes_nothing(folder, tmp_path, capsys):
    path, output = prompt_file(tmp_path / "prompts.jsonl", "the cat", "the dog", "a bird"), tmp_path / "results.jsonl"
    with path.open("a") as file:
        file.write('{"prompt": 2}\n')
    assert run(path, folder, "--raw", "--draft", "none", "--output", output) == 0
    out, err = capsys.readouterr()
    assert not output.exists() and err == ""
    told = words(out)
    assert "prompts 3 prompts to answer, 1 cannot be answered" in told
    assert "at most 24 of answers" in told and "3 prompts share a pass" in told
    assert "passes at most 8" in told and "time at most 0:00:00 (hours:minutes:seconds)" in told
    assert "computing measured here: made up" in told
    assert "prompt is 2; it must be text" in told


def test_what_is_done_already_is_counted_and_the_file_stays_as_it_is(folder, tmp_path, capsys):
    path, output = prompt_file(tmp_path / "prompts.jsonl", "one", "two", "three"), tmp_path / "results.jsonl"
    left = '{"id": "one", "text": "1", "error": null}\n{"id": "two", "text": null, "error": "no"}\n{"id": "th'
    output.write_text(left)
    assert run(path, folder, "--raw", "--draft", "none", "--output", output) == 2
    assert "already holds something; add --resume" in capsys.readouterr().err
    assert run(path, folder, "--raw", "--draft", "none", "--output", output, "--resume") == 0
    assert "2 prompts to answer, 1 answered already" in words(capsys.readouterr().out)
    assert output.read_text() == left
    assert run(path, folder, "--raw", "--draft", "none", "--output", output, "--resume", "--limit", "1") == 0
    assert "at most 8 of answers" in words(capsys.readouterr().out)


def test_no_model_is_looked_for_where_nothing_is_left(tmp_path, capsys):
    path, output = prompt_file(tmp_path / "prompts.jsonl", "one"), tmp_path / "results.jsonl"
    output.write_text('{"id": "one", "text": "1", "error": null}\n')
    assert run(path, tmp_path / "nothing", "--output", output, "--resume") == 0
    assert capsys.readouterr().out.split() == ["prompts", "0", "prompts", "to", "answer,", "1", "answered", "already"]


def test_a_batch_of_openais_is_read_too(folder, tmp_path, capsys):
    path = write_lines(tmp_path / "batch.jsonl", chat_line("a", "one", n=2), chat_line("b", "two"))
    assert run(path, folder, "--draft", "none") == 0
    assert "3 prompts" in words(capsys.readouterr().out)


def test_hostile_lines_reach_the_terminal_as_text(folder, tmp_path, capsys):
    path = prompt_file(tmp_path / "prompts.jsonl", "one")
    with path.open("a") as file:
        file.write(json.dumps({"id": "\x1b[2J[bold]x", "prompt": 2}) + "\n")
    assert run(path, folder, "--raw", "--draft", "none") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "[bold]x" in out


def test_other_machines_are_not_predicted(folder, tmp_path, capsys):
    assert run(prompt_file(tmp_path / "prompts.jsonl", "the cat"), folder, "--ray", "local") == 2
    assert "--dry-run predicts a run of this machine alone" in capsys.readouterr().err
