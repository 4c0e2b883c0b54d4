"""What cannot be read is kept, under a name that nothing else has."""

from datetime import datetime

import pytest

from tui.chat.store.set_aside import set_aside

NOW = datetime(2026, 1, 31, 12, 0, 5)


def test_a_file_gets_a_name_that_says_why_and_when(tmp_path):
    (tmp_path / "notes.db").write_text("x")
    aside = set_aside(tmp_path / "notes.db", now=NOW)
    assert aside == tmp_path / "notes-damaged-20260131-120005.db"
    assert aside.read_text() == "x" and list(tmp_path.iterdir()) == [aside]


def test_nothing_is_written_over(tmp_path):
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
