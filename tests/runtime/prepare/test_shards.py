"""A folder that is complete or not there, the shards in it, and whatever may interrupt or spoil them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from offload.errors import WriteError
from profiles.errors import BadInputError
from runtime.prepare import shards
from runtime.prepare.shards import JOURNAL_NAME, PartialFolder
from tests.support.paths import ROOT

REQUEST = {"format": "nf4", "files": {"a": (1, 2)}}
TENSORS = {
    "b.scale": torch.randn(7),
    "a.weight": torch.randn(5, 3).to(torch.bfloat16),
    "c.half": torch.randn(2, 2).to(torch.float16),
    "rows": torch.arange(-6, 6, dtype=torch.int8).view(3, 4),
    "codes": torch.arange(9, dtype=torch.uint8).view(9, 1),
    "scalar": torch.tensor(0, dtype=torch.uint8),
    "none": torch.empty(0, 4),
}


def write(partial: PartialFolder, name: str, value: float = 1.0) -> None:
    partial.write_shard(name, {"x": torch.full((9,), value)})


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
        (first.folder / "b.tmp").write_bytes(b"half")
        (first.folder / ".tmpXy12").write_bytes(b"safetensors' own half")
    again = PartialFolder(tmp_path / "model", REQUEST)
    assert again.kept_bytes == (again.folder / "a").stat().st_size
    with again.begin():
        assert names(again.folder) == {"a", JOURNAL_NAME}
        assert again.is_finished("a")
        assert not again.is_finished("b")
        assert again.shards == first.shards


def test_a_shard_holds_the_tensors_and_the_journal_what_is_in_it(tmp_path: Path) -> None:
    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        partial.write_shard("a", TENSORS)
    loaded = load_file(partial.folder / "a")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    with safe_open(partial.folder / "a", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    remembered = PartialFolder(tmp_path / "model", REQUEST).shards["a"]
    assert set(remembered.tensor_names) == set(TENSORS)
    assert remembered.tensor_bytes == sum(tensor.numel() * tensor.element_size() for tensor in TENSORS.values())


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system what is behind a descriptor")
def test_a_file_gets_its_name_after_its_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss of power, a name without its bytes would pass for a finished shard's."""
    order = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        order.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        order.append(f"name {target.name}")
        return replace(path, target)

    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(Path, "replace", note_replace)
        write(partial, "a")
        partial.write_file("b", b"{}")
    expected = [[f"flush {name}.tmp", f"name {name}", "flush model.partial"] for name in ("a", JOURNAL_NAME, "b")]
    assert order == [step for steps in expected for step in steps]


LIMITED = """
import resource, signal, sys, torch
from collections.abc import Callable
from pathlib import Path
from offload.errors import WriteError
from runtime.prepare.shards import PartialFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
partial = PartialFolder(Path(sys.argv[1]), {})
with partial.begin():
    for write, name, content in (
        (partial.write_shard, "a", {"x": torch.zeros(50_000)}),
        (partial.write_file, "b", bytes(200_000)),
    ):
        try:
            write(name, content)
        except WriteError as error:
            print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_system_that_refuses_to_write_more_is_a_sentence(tmp_path: Path) -> None:
    """No injected error: the kernel's own refusal, at the 100,000th byte."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "model")]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    sentences = [line.partition(" ")[2] for line in finished.stdout.splitlines()]
    assert (
        sentences
        == [
            "cannot be written: File too large; make room and run the same command again to go on "
            "(what is finished is kept)"
        ]
        * 2
    )
    assert names(tmp_path / "model.partial") == {JOURNAL_NAME}


def test_a_failure_that_names_no_cause_of_the_system_is_told_as_it_is(tmp_path: Path, monkeypatch) -> None:
    def fail(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        raise SafetensorError("Error while serializing: something new")

    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        monkeypatch.setattr(shards, "save_file", fail)
        with pytest.raises(WriteError, match=r"a cannot be written: Error while serializing: something new; mend that"):
            write(partial, "a")
    assert names(partial.folder) == {JOURNAL_NAME}


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
    again = PartialFolder(tmp_path / "model", REQUEST)
    with again.begin():
        assert not again.is_finished("a")
        write(again, "a")
        assert again.is_finished("a")


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


@pytest.mark.parametrize("journal", ["", "[]", "{}", '{"schema_version": 2, "request": {}, "shards": {"a": {"x": 1}}}'])
def test_an_unreadable_journal_is_a_sentence(tmp_path: Path, journal: str) -> None:
    folder = tmp_path / "model.partial"
    folder.mkdir()
    (folder / JOURNAL_NAME).write_text(journal)
    with pytest.raises(BadInputError, match="cannot be read; delete"):
        PartialFolder(tmp_path / "model", REQUEST)


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model.partial"
    folder.mkdir()
    (folder / JOURNAL_NAME).write_text(json.dumps({"schema_version": 1, "request": REQUEST, "files": {}}))
    with pytest.raises(BadInputError, match="another version"):
        PartialFolder(tmp_path / "model", REQUEST)


def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be used: File name too long; choose another output"):
        PartialFolder(tmp_path / ("x" * 300), REQUEST)


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def moved_and_another_in_its_place(folder: Path) -> None:
    moved(folder)
    folder.mkdir()


@pytest.mark.skipif(os.name != "posix", reason="an open folder cannot be moved on Windows")
@pytest.mark.parametrize("interfere", [moved, moved_and_another_in_its_place, shutil.rmtree])
@pytest.mark.parametrize("is_last", [False, True], ids=["before a file", "before the end"])
def test_a_folder_that_is_moved_away_meanwhile_is_never_published_without_its_files(
    tmp_path: Path, interfere: Callable[[Path], None], is_last: bool
) -> None:
    """The rest was written into a new folder, which got the name although its first shards were elsewhere."""
    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        write(partial, "a")
        interfere(partial.folder)
        with pytest.raises(WriteError, match="was moved or removed while it was written; move it back"):
            partial.publish() if is_last else write(partial, "b")
    assert not partial.target.exists()
    assert list(tmp_path.glob("model.partial/*")) == []


def test_a_shard_that_is_removed_meanwhile_is_missed(tmp_path: Path) -> None:
    partial = PartialFolder(tmp_path / "model", REQUEST)
    with partial.begin():
        write(partial, "a")
        (partial.folder / "a").unlink()
        with pytest.raises(WriteError, match=r"a was removed; run the same command again"):
            partial.publish()
    assert not partial.target.exists()


def test_a_refusal_leaves_no_empty_folder_behind(tmp_path: Path) -> None:
    """As where another process had just given the folder its name."""
    late = PartialFolder(tmp_path / "model", REQUEST)
    first = PartialFolder(tmp_path / "model", REQUEST)
    with first.begin():
        write(first, "a")
        first.publish()
    with pytest.raises(BadInputError, match="exists and is not empty"), late.begin():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_two_at_work_on_one_folder_are_kept_apart(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first, second = PartialFolder(tmp_path / "model", REQUEST), PartialFolder(tmp_path / "model", REQUEST)
    with first.begin():
        with pytest.raises(BadInputError, match=r"process [0-9]+ is at work on"), second.begin():
            pass
        write(first, "a")
    with second.begin():
        assert second.is_finished("a")


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"), PartialFolder(tmp_path / "file/model", REQUEST).begin():
        pass
