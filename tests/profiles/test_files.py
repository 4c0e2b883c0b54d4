"""A file is whole at any moment, a failed write leaves no trace, reading never waits for ever, and JSON is strict."""

import errno
import os
import stat
from pathlib import Path

import pytest

from profiles.files import lock, parse_json_text, read_regular_file, replace_content


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


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}),
        (b"[]", []),
        (b'"\\u001b"', "\x1b"),
        (b"1e3", 1000.0),
    ],
)
def test_what_is_json_is_read(raw: bytes, value: object) -> None:
    assert parse_json_text(raw) == value


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": 1} x', "Extra data"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "b": {"\\n": 1, "\\n": 2}}', r"the key '\\n' stands twice"),
        (b"NaN", "'NaN' is not a finite number"),
        (b"-Infinity", "is not a finite number"),
        (b"1e999", "'1e999' is not a finite number"),
        (b"9" * 5000, "digits"),
    ],
)
def test_anything_else_is_a_value_error(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json_text(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="locks are POSIX")
@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, pytest.param(errno.EBADF, id="a folder on NFS")]
)
def test_a_file_system_without_locks_is_worked_on_without(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock(0)
