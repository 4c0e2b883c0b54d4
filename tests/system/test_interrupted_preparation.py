"""A preparation that is killed, stopped or out of disk goes on to the same bytes, or says why it cannot."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from offload.errors import WriteError
from profiles.errors import BadInputError
from runtime.prepare import shards
from runtime.prepare.shards import JOURNAL_NAME
from tests.support.model_factory import save_tiny_model
from tests.support.paths import ROOT
from tests.support.small_preparations import WIDE, Asked, contents, finish, interrupt, request, save_source


def end_at(limit: int, asked: Asked) -> bool:
    """Prepare in a child that dies, as if by kill -9, before its `limit`-th step on the disk; whether it got that far.

    Every writing, flush and rename of a shard, a folder or the journal is such a step.
    """
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    num_steps = 0

    def dying(action):
        def act(*args, **settings):
            nonlocal num_steps
            num_steps += 1
            if num_steps == limit:
                os._exit(9)
            return action(*args, **settings)

        return act

    try:
        os.fsync, shards.save_file = dying(os.fsync), dying(shards.save_file)
        Path.unlink, Path.replace, Path.rename = dying(Path.unlink), dying(Path.replace), dying(Path.rename)
        finish(asked)
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [("nf4", True), ("packed", False)], ids=["nf4", "packed"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="dies in a child process")
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    tmp_path: Path, options: tuple[str, bool], stride: int
) -> None:
    source = save_tiny_model("llama", tmp_path / "model", num_hidden_layers=2, dtype=torch.bfloat16, **WIDE)
    _, whole = finish(request(source, tmp_path / "whole", *options))
    expected = contents(whole.folder)
    num_kept = []
    for limit in count(1, stride):
        output = tmp_path / f"killed-{limit}"
        asked = request(source, output, *options)
        if not end_at(limit, asked):
            break
        assert not output.exists() or (output / JOURNAL_NAME).exists()
        progress, prepared = finish(asked)
        num_kept.append(prepared.num_kept_shards)
        assert contents(prepared.folder) == expected
        assert not progress or progress[-1].num_done_bytes == prepared.source_bytes
        assert not list(tmp_path.glob(f"killed-{limit}.partial"))
    assert limit > 50
    assert num_kept == sorted(num_kept)
    assert set(num_kept) == {0, 1, 2, 3, 4}


KILLED = """
import sys
from itertools import count
from pathlib import Path
from runtime.events import LoadProgress
from runtime.prepare.preparation import prepare_model
for event in prepare_model(sys.argv[1], Path(sys.argv[2]), weight_format="int8"):
    if isinstance(event, LoadProgress) and event.what.startswith("layer 3 "):
        print("at layer 2", flush=True)
        sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
@pytest.mark.slow
def test_a_real_kill_keeps_what_is_finished(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "prepared")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"at layer 2\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    progress, prepared = finish(request(source, tmp_path / "prepared", "int8"))
    assert prepared.num_kept_shards == 2
    assert [event.what for event in progress if "kept" in event.what] == [
        f"layer {n} of 4 layers, kept" for n in (1, 2)
    ]
    _, fresh = finish(request(source, tmp_path / "fresh", "int8"))
    assert contents(prepared.folder) == contents(fresh.folder)


def test_other_options_or_a_changed_source_are_refused_on_resuming(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    interrupt(request(source, tmp_path / "prepared"))
    before = contents(tmp_path / "prepared.partial")
    with pytest.raises(BadInputError, match=r"begun with another format \(nf4 then, int8 now\)"):
        finish(request(source, tmp_path / "prepared", "int8"))
    with pytest.raises(BadInputError, match=r"begun with another double quantization \(False then, True now\)"):
        finish(request(source, tmp_path / "prepared", "nf4", True))
    os.utime(source / "model.safetensors")
    with pytest.raises(BadInputError, match="begun with another state of the model's files; delete it"):
        finish(request(source, tmp_path / "prepared"))
    shutil.copytree(source, tmp_path / "copy")
    with pytest.raises(BadInputError, match="begun with another model folder"):
        finish(request(tmp_path / "copy", tmp_path / "prepared"))
    assert contents(tmp_path / "prepared.partial") == before


def test_a_shard_that_was_damaged_meanwhile_is_made_again(tmp_path: Path) -> None:
    source = save_source(tmp_path / "model")
    asked = request(source, tmp_path / "prepared")
    interrupt(asked)
    shard = tmp_path / "prepared.partial" / "model-00001-of-00006.safetensors"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    progress, prepared = finish(asked)
    assert (prepared.folder / shard.name).read_bytes() == raw
    assert prepared.num_kept_shards == 1
    assert progress[-1].num_done_bytes == progress[-1].num_bytes


class FullDisk:
    """A disk that takes `room` bytes in all; what does not fit is left half written."""

    def __init__(self, room: int) -> None:
        self.room = room

    def save_file(self, tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        """As safetensors' own, whose errors hold the system's in their text."""
        try:
            self.write_bytes(file, save(tensors, metadata))
        except OSError:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)") from None

    def write_bytes(self, file: Path, content: bytes) -> None:
        self.room -= len(content)
        with file.open("wb") as opened:
            opened.write(content[: len(content) + min(0, self.room)])
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path: Path, monkeypatch) -> None:
    """At every size of the disk: one sentence, and with room again the same bytes as without the interruption."""
    source = save_source(tmp_path / "model")
    _, fresh = finish(request(source, tmp_path / "fresh"))
    expected, asked = contents(fresh.folder), request(source, tmp_path / "prepared")
    num_failures = 0
    for room in range(1000, 10**6, 45_000):
        disk = FullDisk(room)
        with monkeypatch.context() as patch:
            patch.setattr(shards, "save_file", disk.save_file)
            patch.setattr(Path, "write_bytes", lambda file, content, disk=disk: disk.write_bytes(file, content))
            try:
                finish(asked)
            except WriteError as error:
                num_failures += 1
                assert "No space left on device; make room and run the same command again to go on" in str(error)
                assert not (tmp_path / "prepared").exists()
                assert not list((tmp_path / "prepared.partial").glob("*.tmp"))
            else:
                break
    assert num_failures >= 3
    assert contents(tmp_path / "prepared") == expected
