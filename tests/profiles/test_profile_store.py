"""One file per device, replaced in one step; what cannot be believed is refused by name and never silently used."""

import json
import math
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.errors import ProfileError, StaleProfileError
from profiles.machine_profile import DeviceIdentity, MachineProfile
from profiles.pair_profile import PairProfile
from profiles.profile_store import (
    MAX_FILE_BYTES,
    load_machine_profile,
    profile_path,
    save_profile,
)
from profiles.records import from_record, parse_record, to_record
from tests.support.profile_factory import DEVICE, machine_profile
from tui import cli


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "as needed"
    assert load_machine_profile(folder, DEVICE) is None
    path = save_profile(folder, machine_profile())
    assert path == profile_path(folder, DEVICE)
    assert load_machine_profile(folder, DEVICE) == machine_profile()
    assert [file.name for file in folder.iterdir()] == ["machine-cuda-geforce-rtx-4060-ti.json"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    save_profile(tmp_path, machine_profile())
    newer = machine_profile(pin_budget_bytes=7)
    save_profile(tmp_path, newer)
    assert load_machine_profile(tmp_path, DEVICE) == newer
    assert len(list(tmp_path.iterdir())) == 1


def test_devices_do_not_share_a_file(tmp_path: Path) -> None:
    other = replace(DEVICE, name="GeForce RTX 3090")
    save_profile(tmp_path, machine_profile())
    assert load_machine_profile(tmp_path, other) is None


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b\\c:d*?", "显卡", "x" * 1000, "\x00"])
def test_no_name_of_a_device_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    device = DeviceIdentity("cuda", name, "1")
    path = save_profile(tmp_path, machine_profile(device=device))
    assert path.parent == tmp_path and load_machine_profile(tmp_path, device) is not None


def test_a_profile_of_another_driver_is_stale_and_says_so(tmp_path: Path) -> None:
    path = save_profile(tmp_path, machine_profile())
    with pytest.raises(StaleProfileError) as caught:
        load_machine_profile(tmp_path, replace(DEVICE, driver_version="561.00"))
    message = str(caught.value)
    assert str(path) in message and "driver 560.94" in message and "driver 561.00" in message and "delete" in message


def test_a_profile_of_another_device_under_this_name_is_stale(tmp_path: Path) -> None:
    """Names that differ only in what a file name cannot hold, and files copied from another machine."""
    save_profile(tmp_path, machine_profile())
    with pytest.raises(StaleProfileError, match="GeForce-RTX 4060 Ti"):
        load_machine_profile(tmp_path, replace(DEVICE, name="GeForce-RTX 4060 Ti"))


def damaged(**changes: object) -> bytes:
    return json.dumps({**to_record(machine_profile()), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (damaged()[:-1], "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "does not hold a JSON object"),
        (b'{"schema_version": 1, "schema_version": 1}', "the key 'schema_version' stands twice"),
        (b'{"schema_version": NaN}', "not a finite number"),
        (b'{"schema_version": 1e999}', "not a finite number"),
        (damaged(schema_version=3), "schema_version is 3; this program reads version 2"),
        (damaged(schema_version=1), "schema_version is 1; this program reads version 2"),
        (damaged(pin_budget_bytes=-1), "pin_budget_bytes is -1; expected a whole number"),
        (damaged(link_bytes_per_second="fast"), "link_bytes_per_second is 'fast'; expected a number"),
        (damaged(device_memory_bytes=None), "device_memory_bytes is None"),
        (b" " * (MAX_FILE_BYTES + 1), "more than 4194304 bytes"),
    ],
)
def test_damage_is_one_sentence_with_the_file_and_the_next_step(tmp_path: Path, content: bytes, reason: str) -> None:
    path = profile_path(tmp_path, DEVICE)
    path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load_machine_profile(tmp_path, DEVICE)
    message = str(caught.value)
    assert str(path) in message and reason in message and message.endswith("delete it to measure again")
    assert "\n" not in message
    assert path.read_bytes() == content


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    profile_path(tmp_path, DEVICE).mkdir()
    with pytest.raises(ProfileError, match=r"it cannot be read \(Is a directory\)"):
        load_machine_profile(tmp_path, DEVICE)
    with pytest.raises(ProfileError, match="cannot be written"):
        save_profile(tmp_path, machine_profile())
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_the_files_place_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(profile_path(tmp_path, DEVICE))
    with pytest.raises(ProfileError, match="not a regular file"):
        load_machine_profile(tmp_path, DEVICE)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_while_saving_leaves_the_old_profile_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    save_profile(tmp_path, machine_profile())

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse) if failing == "fsync" else monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ProfileError, match=r"cannot be written \(No space left on device\)"):
        save_profile(tmp_path, machine_profile(pin_budget_bytes=1))
    monkeypatch.undo()
    assert load_machine_profile(tmp_path, DEVICE) == machine_profile()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_new_content_is_on_the_disk_before_the_name_points_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        steps.append("fsync")
        fsync(handle)

    def note_replace(neighbour: Path, path: Path) -> Path:
        steps.append("replace")
        assert neighbour.parent == path.parent and json.loads(neighbour.read_bytes())
        return rename(neighbour, path)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    save_profile(tmp_path, machine_profile())
    assert steps == ["fsync", "replace"]


def test_two_writers_leave_one_whole_profile(tmp_path: Path) -> None:
    def save(budget: int) -> None:
        for _ in range(20):
            save_profile(tmp_path, machine_profile(pin_budget_bytes=budget))

    writers = [threading.Thread(target=save, args=(budget,)) for budget in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    loaded = load_machine_profile(tmp_path, DEVICE)
    assert loaded is not None and loaded.pin_budget_bytes in (1, 2)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_profile_error_reaches_the_user_as_one_line_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StaleProfileError("this profile is another machine's")

    monkeypatch.setattr("tui.commands.run.read_prompts_or_batch", refuse)
    assert cli.execute(["run", "prompts.txt"]) == 2
    assert capsys.readouterr().err == "overstory: error: this profile is another machine's\n"


def test_an_older_schema_version_is_stale(tmp_path: Path) -> None:
    profile_path(tmp_path, DEVICE).write_bytes(damaged(schema_version=1))
    with pytest.raises(StaleProfileError, match=r"schema_version is 1; .*delete it to measure again"):
        load_machine_profile(tmp_path, DEVICE)


def test_files_that_an_earlier_version_wrote_are_read() -> None:
    """One of each kind as it was written when checks were spelled out field by field."""
    folder = Path(__file__).parent / "stored"
    for kind, pattern in ((MachineProfile, "machine-*.json"), (PairProfile, "pair-*.json")):
        (path,) = folder.glob(pattern)
        record = parse_record(path.read_bytes())
        assert json.loads(json.dumps(to_record(from_record(kind, record)))) == record


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"is not written, .*: link_latency_seconds is nan; expected a number"):
        save_profile(tmp_path, machine_profile(link_latency_seconds=math.nan))
    assert not list(tmp_path.iterdir())
