import os
import threading
from pathlib import Path

import pytest

from offload.checkpoint import strict_json
from offload.checkpoint.strict_json import parse_json, read_json, read_start
from offload.errors import CheckpointError
from profiles.errors import quote


def test_an_object_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, null]}', where="x") == {"a": [1, 2.5, None]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[1]",
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": -Infinity}',
        b'\xff{"a": 1}',
        b"[" * 99999,
    ],
)
def test_anything_else_is_one_sentence_that_names_the_place(raw: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^the place (is|holds)") as caught:
        parse_json(raw, where="the place")
    assert "\n" not in str(caught.value)


def test_a_disk_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load waited for ever for the header of its first file."""
    file = tmp_path / "config.json"
    file.write_text("{}")
    answers = threading.Event()
    fstat = os.fstat

    def hang(descriptor: int) -> os.stat_result:
        answers.wait()
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", hang)
    monkeypatch.setattr(strict_json, "PATIENCE_SECONDS", 0.05)
    before = threading.active_count()
    with pytest.raises(CheckpointError, match=r"has not been read within 0\.05 seconds; check that the disk still"):
        read_json(file, max_bytes=8)
    answers.set()
    for thread in threading.enumerate():
        if thread.name == "read config.json":
            thread.join()
    assert threading.active_count() == before


def test_a_file_above_its_limit_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"a": 1}')
    assert read_json(file, max_bytes=8) == {"a": 1}
    with pytest.raises(CheckpointError, match="at most 7"):
        read_json(file, max_bytes=7)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        read_start(tmp_path / "no", num_bytes=1)
    with pytest.raises(CheckpointError, match="regular"):
        read_start(tmp_path, num_bytes=1)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="regular"):
            read_start(tmp_path / "pipe", num_bytes=1)


def test_quoted_values_are_short_and_printable() -> None:
    assert len(quote("x" * 10_000)) <= 80
    assert quote("a\x1b[31m\n") == repr("a\x1b[31m\n")
