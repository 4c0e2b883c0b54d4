"""A file is there completely or not at all, nobody else's business, and kept where it cannot be read."""

import os
import stat
from datetime import datetime

import pytest

from tui.chat.store.private_files import create_private_file, replace_private_file, set_aside

NOW = datetime(2026, 1, 31, 12, 0, 5)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_file_and_folder_are_for_their_owner_alone(tmp_path):
    path = tmp_path / "a" / "notes.txt"
    replace_private_file(path, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    created = tmp_path / "b" / "notes.txt"
    create_private_file(created, b"x")
    assert stat.S_IMODE(created.stat().st_mode) == 0o600


def test_replacing_leaves_one_file_with_the_new_content(tmp_path):
    path = tmp_path / "notes.txt"
    replace_private_file(path, b"old")
    replace_private_file(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    """People keep their settings together in one folder and link to them."""
    link = tmp_path / "notes.txt"
    link.symlink_to(tmp_path / "kept" / "notes.txt")
    replace_private_file(link, b"new")
    assert link.is_symlink() and (tmp_path / "kept" / "notes.txt").read_bytes() == b"new"


def test_creating_refuses_a_file_that_is_there(tmp_path):
    path = tmp_path / "notes.txt"
    create_private_file(path, b"first")
    with pytest.raises(FileExistsError):
        create_private_file(path, b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [replace_private_file, create_private_file])
def test_a_file_in_the_place_of_the_folder_is_no_file_that_is_there_already(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="Not a directory"):
        write(tmp_path / "file" / "notes.txt", b"x")


@pytest.mark.parametrize("write", [replace_private_file, create_private_file])
def test_a_disk_that_fills_up_leaves_nothing_new(tmp_path, monkeypatch, write):
    def refuse(_handle):
        raise OSError(28, "No space left on device")

    kept = tmp_path / "kept.txt"
    replace_private_file(kept, b"kept")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "notes.txt", b"x")
    with pytest.raises(OSError, match="No space left"):
        replace_private_file(kept, b"x")
    assert list(tmp_path.iterdir()) == [kept] and kept.read_bytes() == b"kept"


def test_a_file_that_is_set_aside_gets_a_name_that_says_why_and_when(tmp_path):
    (tmp_path / "notes.db").write_text("x")
    aside = set_aside(tmp_path / "notes.db", now=NOW)
    assert aside == tmp_path / "notes-damaged-20260131-120005.db"
    assert aside.read_text() == "x" and list(tmp_path.iterdir()) == [aside]


def test_nothing_is_written_over_by_what_is_set_aside(tmp_path):
    path = tmp_path / "notes.db"
    names = []
    for number in range(3):
        path.write_text(str(number))
        names.append(set_aside(path, now=NOW).name)
    assert names == [f"notes-damaged-20260131-120005{ending}.db" for ending in ("", "-2", "-3")]
    assert [(tmp_path / name).read_text() for name in names] == ["0", "1", "2"]


def test_companions_go_along_if_they_are_there(tmp_path):
    for ending in ("", "-wal"):
        (tmp_path / f"notes.db{ending}").write_text(ending)
    aside = set_aside(tmp_path / "notes.db", now=NOW, companions=("-wal", "-shm"))
    assert sorted(file.name for file in tmp_path.iterdir()) == [aside.name, f"{aside.name}-wal"]
    assert (tmp_path / f"{aside.name}-wal").read_text() == "-wal"


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        set_aside(tmp_path / "notes.db", now=NOW)
