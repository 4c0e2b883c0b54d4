"""Every line of a file of texts is a request or a sentence."""

import io
import json
from pathlib import Path

import pytest

from runtime.errors import PromptFileError
from runtime.prompts.prompt_file import BadLine
from runtime.scoring.score_file import Score, ScoreRequest, ScoreResult, read_score_requests


def written(folder: Path, *lines: bytes | dict[str, object]) -> Path:
    path = folder / "texts.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_lines_are_requests_in_order(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        b'\xef\xbb\xbf{"context": "the c\xc3\xa4t", "continuation": " sat"}\r',
        b"",
        {"context": "", "continuation": " ", "id": 7},
    )
    assert read_score_requests(path) == [
        ScoreRequest(id="1", context="the cät", continuation=" sat", line_number=1),
        ScoreRequest(id="7", context="", continuation=" ", line_number=3),
    ]


def test_each_bad_line_is_one_sentence_and_costs_itself(tmp_path: Path) -> None:
    good = {"context": "a", "continuation": "b"}
    cases: list[tuple[bytes | dict[str, object], str]] = [
        ({"context": "a"}, "continuation is missing; a line is"),
        ({"continuation": "a"}, "context is missing; a line is"),
        ({"context": 3, "continuation": "b"}, "context is 3; it must be text"),
        ({"context": "a", "continuation": ["b"]}, "continuation is ['b']; it must be text"),
        ({"context": None, "continuation": "b"}, "context is null"),
        ({"context": "a", "continuation": ""}, "continuation is empty"),
        ({"context": "a", "continuation": "\ud800"}, "half of a surrogate pair"),
        ({**good, "temperature": 1}, "unknown key 'temperature'; the keys are context, continuation, id"),
        ({**good, "id": 1.5}, "id is 1.5"),
        ({**good, "id": "first"}, "the id 'first' is already that of line 1"),
        (b'{"context": "\xe4", "continuation": "b"}', "not UTF-8: it holds the byte 0xe4"),
        (b'["a", "b"]', "expected a JSON object"),
        (b"nothing", "not valid JSON"),
        (b'{"context": "a", "context": "b", "continuation": "c"}', "stands twice"),
    ]
    path = written(tmp_path, {**good, "id": "first"}, *(line for line, _ in cases), {**good, "id": "last"})
    first, *bad, last = read_score_requests(path)
    assert isinstance(first, ScoreRequest) and isinstance(last, ScoreRequest)
    for number, (item, (_, sentence)) in enumerate(zip(bad, cases, strict=True), start=2):
        assert isinstance(item, BadLine) and item.line_number == number
        assert f"{path} line {number}: " in item.error and sentence in item.error
        assert "\n" not in item.error and len(item.error) < 700


def test_a_file_that_cannot_be_used_as_a_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="cannot be read: No such file"):
        read_score_requests(tmp_path / "none.jsonl")
    with pytest.raises(PromptFileError, match="holds nothing to score; a line is"):
        read_score_requests(written(tmp_path, b"", b" "))


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"context": "a", "continuation": "b"}\n{}'))
    monkeypatch.setattr("sys.stdin", stdin)
    request, bad = read_score_requests("-")
    assert isinstance(request, ScoreRequest)
    assert isinstance(bad, BadLine) and bad.error.startswith("standard input line 2: ")


def test_all_records_have_the_same_keys() -> None:
    score = Score(-0.0, False, num_tokens=2, num_context_tokens=3, num_truncated=0)
    done = ScoreResult(id="a", line_number=1, score=score).to_record()
    failed = ScoreResult(id="b", line_number=2, error="no").to_record()
    assert done == {
        "id": "a",
        "line": 1,
        "log_likelihood": 0.0,
        "is_greedy": False,
        "tokens": 2,
        "context_tokens": 3,
        "truncated_tokens": 0,
        "error": None,
    }
    assert list(failed) == list(done)
    assert [value for value in failed.values() if value is not None] == ["b", 2, "no"]
