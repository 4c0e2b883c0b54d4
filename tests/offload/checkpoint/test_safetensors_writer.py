import errno
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from offload.checkpoint import safetensors_writer
from offload.checkpoint.safetensors_writer import OutgoingTensor, WrittenFile, write_safetensors
from offload.errors import WriteError
from tests.support.generator_ends import drained
from tests.support.paths import ROOT

TENSORS = {
    "b.scale": torch.randn(7),
    "a.weight": torch.randn(5, 3).to(torch.bfloat16),
    "c.half": torch.randn(2, 2).to(torch.float16),
    "rows": torch.arange(-6, 6, dtype=torch.int8).view(3, 4),
    "codes": torch.arange(9, dtype=torch.uint8).view(9, 1),
    "scalar": torch.tensor(0, dtype=torch.uint8),
    "none": torch.empty(0, 4),
    "turned": torch.randn(3, 4).t(),
    "long": torch.tensor([1, -1]),
}


def outgoing(tensors=TENSORS):
    return [OutgoingTensor.from_tensor(name, tensor) for name, tensor in tensors.items()]


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    sizes, written = drained(write_safetensors(file, outgoing()))
    loaded = load_file(file)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    raw = file.read_bytes()
    assert sizes[-1] == len(raw) == written.num_bytes
    assert sizes == sorted(sizes)
    assert written.sha256 == hashlib.sha256(raw).hexdigest()
    assert set(written.tensor_names) == set(TENSORS)
    assert written.tensor_bytes == sum(tensor.numel() * tensor.element_size() for tensor in TENSORS.values())


def test_tensors_lie_aligned_to_their_items(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    _, written = drained(write_safetensors(file, outgoing()))
    sizes = [TENSORS[name].element_size() for name in written.tensor_names]
    assert sizes == sorted(sizes, reverse=True)
    assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 8 == 0


def test_pieces_are_asked_for_only_when_their_turn_has_come(tmp_path: Path) -> None:
    asked = []

    def pieces():
        for part in (b"ab", b"cd"):
            asked.append(part)
            yield memoryview(part)

    steps = write_safetensors(tmp_path / "a", [OutgoingTensor("x", "U8", (4,), pieces)])
    next(steps)
    assert asked == []
    next(steps)
    assert asked == [b"ab"]
    drained(steps)
    assert torch.equal(load_file(tmp_path / "a")["x"], torch.tensor(list(b"abcd"), dtype=torch.uint8))


def test_an_abandoned_file_is_removed(tmp_path: Path) -> None:
    steps = write_safetensors(tmp_path / "a", outgoing())
    next(steps)
    assert (tmp_path / "a").exists()
    steps.close()
    assert not (tmp_path / "a").exists()


class FullDisk:
    """A file on a disk that takes `room` bytes."""

    def __init__(self, file, room):
        self._opened = file.open("wb")
        self._room = room

    def write(self, piece):
        self._room -= len(piece)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._opened.write(piece)

    def __getattr__(self, name):
        return getattr(self._opened, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._opened.close()


@pytest.mark.parametrize("room", [0, 10, 1700])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch, room: int) -> None:
    monkeypatch.setattr(safetensors_writer, "create_file", lambda file: FullDisk(file, room))
    tensors = [OutgoingTensor.from_tensor("x", torch.zeros(500)), OutgoingTensor.from_tensor("y", torch.zeros(9))]
    with pytest.raises(
        WriteError, match=r"a\.safetensors cannot be written: No space left.*make room and run the same"
    ):
        drained(write_safetensors(tmp_path / "a.safetensors", tensors))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_whoever_makes_the_bytes_passes_through(tmp_path: Path) -> None:
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drained(write_safetensors(tmp_path / "a", [OutgoingTensor("x", "U8", (1,), broken)]))
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from offload.errors import WriteError
from offload.checkpoint.safetensors_writer import OutgoingTensor, write_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    list(write_safetensors(Path(sys.argv[1]), [OutgoingTensor.from_tensor("x", torch.zeros(50_000))]))
except WriteError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_system_that_refuses_to_write_more_is_a_sentence(tmp_path: Path) -> None:
    """No injected error: the kernel's own refusal, at the 100,000th byte."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a.safetensors")]
    finished = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    assert "cannot be written: File too large; make room and run the same command again" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_record_of_a_file_survives_json() -> None:
    written = WrittenFile(3, "00", ("a", "b"), 2)
    assert WrittenFile.from_record(json.loads(json.dumps(asdict(written)))) == written
