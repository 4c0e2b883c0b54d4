"""A child that is watched: what it reads, how it ends, and its last words."""

import os
import sys
from pathlib import Path

import pytest

from runtime.bench.peers.runner import Answer, WatchedProcess, bytes_between, forget_files


def watched(program: str, **settings: bool) -> WatchedProcess:
    return WatchedProcess((sys.executable, "-S", "-c", program), environment=os.environ, **settings)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count otherwise, or not at all")
def test_what_a_child_and_its_own_child_read_from_disk_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    reading = f"import sys; open({str(path)!r}, 'rb').read(); print(flush=True); sys.stdin.read()"
    inside = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-S', '-c', {reading!r}]))"
    for program in (reading, inside):
        forget_files([path])
        process = watched(program, has_pipes=True)
        try:
            assert process.child.stdout is not None
            process.child.stdout.readline()
            read = process.bytes_read()
        finally:
            process.end()
        assert read is not None
        if path.stat().st_blocks and not _is_in_memory(tmp_path):
            assert read >= 1 << 20


def _is_in_memory(folder: Path) -> bool:
    """Whether the file system has no disk below it, so that nothing is ever read from one."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    containing = [mount for mount in mounts if folder.is_relative_to(mount[1])]
    return max(containing, key=lambda mount: len(mount[1]))[2] in ("tmpfs", "ramfs")


def test_forgetting_files_touches_no_byte_and_minds_no_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    forget_files([path, tmp_path / "missing"])
    assert path.read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('no\\n  room')", "ended with 1: no room"),
        ("pass", "ended with 0: it said nothing"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "ended by SIGKILL (the system does this where memory runs out): it said nothing",
        ),
        ("import sys; sys.exit('a' * 5000 + 'end')", "ended with 1: " + "a" * 297 + "end"),
    ],
)
def test_how_a_child_ended_is_told_with_its_last_words(program: str, words: str) -> None:
    process = watched(program)
    assert process.ending() == words
    assert not process.is_running
    process.end()


def test_a_child_that_minds_no_request_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.bench.peers.runner._GRACE_SECONDS", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = watched(deaf, has_pipes=True)
    assert process.child.stdout is not None
    process.child.stdout.readline()
    assert process.ending() == "stopped answering"
    process.end()
    assert not process.is_running


def test_a_count_that_is_missing_leaves_none() -> None:
    assert bytes_between(3, 10) == 7
    assert bytes_between(None, 10) is None and bytes_between(3, None) is None


def test_an_answer_of_one_token_has_no_rate() -> None:
    answer = Answer(
        text="a",
        token_ids=(1,),
        num_tokens=1,
        num_passes=1,
        first_seconds=1.0,
        decode_seconds=0.0,
        decode_tokens=0,
        told_seconds_per_token=None,
        bytes_read=None,
    )
    assert answer.seconds_per_token is None
