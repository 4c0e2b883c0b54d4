"""What a process that limited itself may still do; each is tried in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from profiles.child_process import child_environment
from runtime.tokenizer.limits import MEMORY_BYTES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has none of these limits")


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    program = f"import os, sys\nfrom pathlib import Path\nfrom runtime.tokenizer.limits import *\n{code}"
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=child_environment())


GUARDED = """
folder, secret = map(Path, sys.argv[1:3])
guard = FileGuard()
guard.start()
def tried(what):
    try:
        what()
        return "done"
    except PermissionError as error:
        return str(error)
def connect():
    import socket
    socket.create_connection(("127.0.0.1", 1), timeout=1)
def start():
    import subprocess
    subprocess.run(["true"])
inside = folder / "inside.json"
print(tried(inside.read_bytes))
with guard.opened([folder]):
    for what in (inside.read_bytes, secret.read_bytes, (folder / "link").read_bytes, lambda: inside.write_bytes(b"x"),
                 lambda: os.listdir(folder), lambda: os.listdir("/etc"), inside.unlink, connect, start,
                 lambda: os.system("true"), (folder / "pipe").read_bytes, (folder / "large").read_bytes):
        print(tried(what))
import colorsys, html.entities
"""


def test_only_the_models_folder_and_pythons_own_files_are_opened(tmp_path: Path) -> None:
    import os

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "inside.json").write_text("{}")
    (tmp_path / "secret").write_text("private")
    (folder / "link").symlink_to("../secret")
    os.mkfifo(folder / "pipe")
    (folder / "large").touch()
    os.truncate(folder / "large", 6 * 10**9)
    finished = run(GUARDED, folder, tmp_path / "secret")
    assert finished.stderr == ""
    before, inside, secret, link, writing, listing, listing_etc, *others = finished.stdout.splitlines()
    assert (inside, listing) == ("done", "done")
    for refused in (before, secret, link, listing_etc):
        assert "lies outside the model folder" in refused
    assert writing == "a tokenizer writes no file"
    *changes, pipe, large = others
    assert len(changes) == 4 and all(change.endswith("is not for a tokenizer") for change in changes)
    assert "not a regular file" in pipe and "has 6.00 GB" in large
    assert (folder / "inside.json").read_text() == "{}"


def test_memory_has_a_bound() -> None:
    code = (
        "limit_memory(10**9)\nx = bytearray(9 * 10**8)\ntry:\n    bytearray(9 * 10**8)\nexcept MemoryError: print('no')"
    )
    assert run(code).stdout == "no\n"
    assert MEMORY_BYTES < 2**30  # a gibibyte of growth is what all of the damaged inputs are held to


def test_no_file_grows(tmp_path: Path) -> None:
    finished = run("limit_memory(10**9)\nPath(sys.argv[1]).write_bytes(b'x' * 99)", tmp_path / "x")
    assert "File too large" in finished.stderr
    assert (tmp_path / "x").read_bytes() == b""


def test_computing_has_an_end_and_waiting_is_no_computing() -> None:
    code = "import signal, time\nwith limited_time(0.05): time.sleep(0.2)\nprint('waited', flush=True)\n"
    finished = run(code + "with limited_time(0.05):\n    while True: pass")
    assert (finished.stdout, -finished.returncode) == ("waited\n", 27)  # SIGPROF
