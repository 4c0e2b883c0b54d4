"""A file is whole at any moment, a write that fails leaves no trace, and reading never waits for ever."""

import os
import stat
from pathlib import Path

import pytest

from profiles.files import read_regular_file, replace_content


def test_the_content_is_replaced_and_private(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    replace_content(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.name != "posix" or stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_content(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_content(tmp_path / "none" / "a", b"new")


def test_reading_wants_a_regular_file_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"1234")
    assert read_regular_file(path, max_bytes=4) == b"1234"
    with pytest.raises(ValueError, match="it has more than 3 bytes"):
        read_regular_file(path, max_bytes=3)
    with pytest.raises(OSError):
        read_regular_file(tmp_path, max_bytes=3)
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "none", max_bytes=3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_reading_a_pipe_does_not_wait_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is not a regular file"):
        read_regular_file(tmp_path / "pipe", max_bytes=3)
