import json
from pathlib import Path

import pytest
import torch

from offload.checkpoint.partial_folder import JOURNAL_NAME, PartialFolder
from offload.checkpoint.safetensors_writer import OutgoingTensor, write_safetensors
from offload.errors import WriteError
from profiles.errors import BadInputError
from tests.support.generator_ends import drained

REQUEST = {"format": "nf4", "files": {"a": (1, 2)}}


def write(partial: PartialFolder, name: str, value: float = 1.0) -> None:
    steps = write_safetensors(partial.temporary(name), [OutgoingTensor.from_tensor("x", torch.full((9,), value))])
    partial.accept(name, drained(steps)[1])


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_folder_appears_complete_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    partial = PartialFolder(target, REQUEST)
    assert not target.parent.exists()
    with partial.begin():
        write(partial, "a")
        partial.write_file("sub/b.json", b"{}")
        assert not target.exists()
        assert names(partial.folder) == {"a", "sub", JOURNAL_NAME}
        partial.publish()
    assert names(target) == {"a", "sub"}
    assert (target / "sub" / "b.json").read_bytes() == b"{}"
    assert names(target.parent) == {"model"}


def test_finished_files_are_found_again_and_leftovers_removed(tmp_path: Path) -> None:
    first = PartialFolder(tmp_path / "model", REQUEST)
    with first.begin():
        write(first, "a")
        first.temporary("b").write_bytes(b"half")
    again = PartialFolder(tmp_path / "model", REQUEST)
    assert again.kept_bytes == (again.folder / "a").stat().st_size
    with again.begin():
        assert names(again.folder) == {"a", JOURNAL_NAME}
        assert again.is_finished("a")
        assert not again.is_finished("b")
        assert again.files == first.files


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_not_finished(tmp_path: Path, damage: str) -> None:
    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        write(partial, "a")
        write(partial, "b")
        file = partial.folder / "a"
        raw = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(raw[:-1] if damage == "cut" else raw[:-1] + b"\x01")
        assert not partial.is_finished("a")
        assert partial.is_finished("b")
    assert set(PartialFolder(tmp_path / "model", REQUEST).files) == {"b"}


def test_another_request_is_refused_in_a_sentence_and_nothing_changes(tmp_path: Path) -> None:
    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        write(partial, "a")
    before = (partial.folder / JOURNAL_NAME).read_bytes()
    with pytest.raises(BadInputError, match=r"begun with another format \(nf4 then, int8 now\); delete it"):
        PartialFolder(tmp_path / "model", {**REQUEST, "format": "int8"})
    with pytest.raises(BadInputError, match="begun with another files; delete it"):
        PartialFolder(tmp_path / "model", {**REQUEST, "files": {"a": (1, 3)}})
    assert (partial.folder / JOURNAL_NAME).read_bytes() == before


def test_an_occupied_target_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    partial = PartialFolder(target, REQUEST)
    with partial.begin():
        write(partial, "a")
        partial.publish()
    assert names(target) == {"a"}
    with pytest.raises(BadInputError, match="exists and is not empty"):
        PartialFolder(target, REQUEST)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="is not a folder"):
        PartialFolder(tmp_path / "file", REQUEST)


def test_a_folder_that_fills_up_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    partial = PartialFolder(tmp_path / "model", REQUEST)
    with pytest.raises(WriteError), partial.begin():
        write(partial, "a")
        partial.target.mkdir()
        (partial.target / "precious").write_text("")
        partial.publish()
    assert names(partial.target) == {"precious"}
    assert names(partial.folder) == {"a", JOURNAL_NAME}


def test_somebody_elses_partial_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model.partial"
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(BadInputError, match="is not ours"):
        PartialFolder(tmp_path / "model", REQUEST)
    assert names(folder) == {"thesis.tex"}


def test_a_folder_abandoned_before_its_journal_was_written_is_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "model.partial"
    folder.mkdir()
    (folder / f"{JOURNAL_NAME}.tmp").write_text("{")
    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        assert names(folder) == {JOURNAL_NAME}


def test_a_journal_left_in_the_finished_folder_is_only_removed(tmp_path: Path) -> None:
    """Killed between the last rename and the removal of the journal."""
    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        write(partial, "a")
    partial.folder.rename(partial.target)
    again = PartialFolder(tmp_path / "model", REQUEST)
    assert again.is_published
    again.publish()
    assert names(again.target) == {"a"}


@pytest.mark.parametrize("journal", ["", "[]", "{}", '{"schema_version": 1, "request": {}, "files": {"a": {"x": 1}}}'])
def test_an_unreadable_journal_is_a_sentence(tmp_path: Path, journal: str) -> None:
    folder = tmp_path / "model.partial"
    folder.mkdir()
    (folder / JOURNAL_NAME).write_text(journal)
    with pytest.raises(BadInputError, match="cannot be read; delete"):
        PartialFolder(tmp_path / "model", REQUEST)


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model.partial"
    folder.mkdir()
    (folder / JOURNAL_NAME).write_text(json.dumps({"schema_version": 2, "request": REQUEST, "files": {}}))
    with pytest.raises(BadInputError, match="another version"):
        PartialFolder(tmp_path / "model", REQUEST)


def test_two_at_work_on_one_folder_are_kept_apart(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first, second = PartialFolder(tmp_path / "model", REQUEST), PartialFolder(tmp_path / "model", REQUEST)
    with first.begin():
        with pytest.raises(BadInputError, match="another process is at work"), second.begin():
            pass
        write(first, "a")
    with second.begin():
        assert second.is_finished("a")


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"), PartialFolder(tmp_path / "file/model", REQUEST).begin():
        pass
