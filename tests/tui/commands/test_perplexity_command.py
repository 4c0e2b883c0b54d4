import json
from pathlib import Path

import pytest

from tests.support.session_factory import save_tiny_folder
from tui import cli
from tui.environment import packaged_prompts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_folder(tmp_path / "model")


def measure(folder: Path, *options: str) -> int:
    return cli.execute(["bench", "perplexity", "--target", str(folder), *options])


def write_text(folder: Path, content: bytes) -> Path:
    path = folder.parent / "text.txt"
    path.write_bytes(content)
    return path


def test_it_ends_with_one_json_line(folder: Path, capsys) -> None:
    path = write_text(folder, b"the cat and the dog in the hat")
    assert measure(folder, "--text", str(path), "--device-memory", "min") == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == ""
    assert record["perplexity"] > 1
    assert record["num_tokens"] > 5
    assert (record["target"], record["text"]) == (str(folder), str(path))
    assert "relative_difference" not in record


def test_beside_transformers_both_agree(folder: Path, capsys) -> None:
    path = write_text(folder, b"the cat and the dog in the hat")
    assert measure(folder, "--text", str(path), "--beside-transformers", "--quiet") == 0
    record = json.loads(capsys.readouterr().out)
    assert abs(record["relative_difference"]) < 1e-5
    assert record["perplexity"] == pytest.approx(record["transformers_perplexity"], rel=1e-5)
    assert record["relative_difference"] == record["perplexity"] / record["transformers_perplexity"] - 1
    assert record["transformers_seconds"] > 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read: No such file"), (b"\xff\xfe", "it is not UTF-8"), (b"a", "the text has 1 tokens")],
)
def test_a_text_that_cannot_be_used_is_one_line_and_exit_code_2(folder: Path, capsys, content, sentence) -> None:
    path = folder.parent / "text.txt" if content is None else write_text(folder, content)
    assert measure(folder, "--text", str(path)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and sentence in err


def test_the_text_that_comes_with_it_is_plain_and_long_enough() -> None:
    content = packaged_prompts("perplexity.txt").read_text(encoding="utf-8")
    assert 6_000 <= len(content) <= 8_000
    assert content.isascii()
    assert "def longest_run" in content and "The ferry" in content
