"""`overstory score` from its file to its results."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.session_factory import save_tiny_folder
from tui import cli

LINES: list[Any] = [
    {"id": "a", "context": "the cat and", "continuation": " the dog"},
    {"id": "b", "context": "in the end", "continuation": " one", "weight": 1},
    {"id": "c", "context": "the cat and", "continuation": " the hat"},
    {"id": "d", "context": "", "continuation": "an other thing"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    return path


def score(texts: Path, folder: Path, *options: str) -> int:
    return cli.execute(["score", str(texts), "--target", str(folder), "--device", "cpu", *options])


def results_in(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_results_are_json_lines_in_the_order_of_the_texts(
    texts: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(texts, folder) == 1
    out, err = capsys.readouterr()
    results = results_in(out)
    assert [(result["id"], result["line"]) for result in results] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    assert f"{texts} line 2: unknown key 'weight'" in results[1]["error"]
    assert err == "overstory: error: 1 of 4 texts have no score; see `error` there\n"
    for result in results[:1] + results[2:]:
        assert result["log_likelihood"] < 0 and isinstance(result["is_greedy"], bool) and result["tokens"] > 0
        assert result["truncated_tokens"] == 0 and result["error"] is None


def test_a_file_of_results_is_gone_on_with(
    texts: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.jsonl"
    assert score(texts, folder, "--output", str(output)) == 1
    whole = {result["id"]: result for result in results_in(output.read_text())}
    lines = output.read_bytes().splitlines(keepends=True)
    kept = next(line for line in lines if json.loads(line)["error"] is None)
    output.write_bytes(kept + lines[-1][:20])
    assert score(texts, folder, "--output", str(output), "--resume") == 1
    results = {result["id"]: result for result in results_in(output.read_text())}
    assert results.keys() == whole.keys() and len(output.read_text().splitlines()) == 4
    for name, result in results.items():
        assert result == {**whole[name], "log_likelihood": pytest.approx(whole[name]["log_likelihood"], abs=1e-4)}
    texts.write_text("\n".join(json.dumps(line) for line in LINES if line["id"] != "b"))
    assert score(texts, folder, "--output", str(output), "--resume") == 0, "nothing is left, and no model opened"
    assert capsys.readouterr().out == ""


def test_results_of_another_kind_are_left_alone(
    texts: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.jsonl"
    answer = '{"id": "a", "text": "x", "error": null}\n'
    output.write_text(answer)
    assert score(texts, folder, "--output", str(output), "--resume") == 2
    assert "holds results in overstory's own format" in capsys.readouterr().err
    assert output.read_text() == answer


def test_what_is_longer_than_the_context_says_so(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"context": "one other thing " * 9, "continuation": "and"}))
    assert score(path, folder, "--context", "16") == 0
    (result,) = results_in(capsys.readouterr().out)
    assert result["context_tokens"] + result["tokens"] == 17 and result["truncated_tokens"] > 0
    assert score(path, folder) == 0
    (whole,) = results_in(capsys.readouterr().out)
    assert whole["truncated_tokens"] == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--resume"], "--resume needs the file to go on with; add --output FILE"),
        (["--draft", "none"], "No such option"),
    ],
)
def test_bad_options_are_one_line(
    texts: Path, folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert score(texts, folder, *options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and sentence in err
