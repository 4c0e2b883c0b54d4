"""A line between app and child arrives whole, whatever libraries print, and the child gives way to the interface."""

import os
import subprocess
import sys
import threading

import psutil
import pytest

from profiles.child_process import child_environment
from tui.chat.engine.child_process import (
    NICENESS,
    OUT_OF_MEMORY_SCORE,
    lines_of,
    step_back,
    write_line,
)

NOISY = """
import os, subprocess, sys
from profiles.child_process import own_streams
from tui.chat.engine.child_process import lines_of, write_line
requests, reports = own_streams()
print("a library prints", flush=True)
subprocess.run(["echo", "its child prints"], check=True)
print("reads", repr(sys.stdin.read()), flush=True)
for line in lines_of(requests):
    write_line(reports, line.upper() + b"\\n")
"""


def test_only_our_own_lines_reach_stdout():
    finished = subprocess.run(
        [sys.executable, "-P", "-c", NOISY],
        input=b"one\ntwo\n",
        capture_output=True,
        check=True,
        env=child_environment(),
    )
    assert finished.stdout == b"ONE\nTWO\n"
    assert finished.stderr.splitlines() == [b"a library prints", b"its child prints", b"reads ''"]


def test_the_children_import_no_command_line_and_no_widget():
    program = "import sys, tui.chat.engine.host, tui.chat.models; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", program]
    finished = subprocess.run(command, capture_output=True, check=True, text=True, env=child_environment())
    loaded = set(finished.stdout.split())
    assert "tui.chat.engine.host" in loaded
    assert not loaded & {"torch", "textual", "rich", "typer", "tui.cli", "tui.commands", "tui.chat.widgets"}


def test_lines_come_whole_however_they_were_cut():
    reader, writer = os.pipe()
    pieces = [b"one\nt", b"w", b"o\n\nthree\nfour without an end"]

    def write() -> None:
        for piece in pieces:
            os.write(writer, piece)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert list(lines_of(reader)) == [b"one", b"two", b"", b"three"]
    thread.join()
    os.close(reader)


def test_a_line_longer_than_the_pipe_is_written_whole():
    reader, writer = os.pipe()
    line = b"x" * 3_000_000 + b"\n"

    def write() -> None:
        write_line(writer, line)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert list(lines_of(reader)) == [line[:-1]]
    thread.join()
    os.close(reader)


MODEST = """
import threading, psutil
from pathlib import Path
from tui.chat.engine.child_process import step_back
found, is_time = [], threading.Event()
def look():
    is_time.wait()
    found.append(Path(f"/proc/self/task/{threading.get_native_id()}/stat").read_text().rsplit(")")[1].split()[16])
threads = [threading.Thread(target=look) for _ in range(2)]
threads[0].start()
step_back()
threads[1].start()
is_time.set()
for thread in threads: thread.join()
print(psutil.Process().nice(), *found, Path("/proc/self/oom_score_adj").read_text())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_that_steps_back_is_nice_with_all_its_threads_and_goes_first():
    """Those that were there, and those that come: on a machine with a card it is known late that none computes."""
    finished = subprocess.run([sys.executable, "-c", MODEST], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == [str(NICENESS)] * 3 + [str(OUT_OF_MEMORY_SCORE)]


def test_a_system_without_such_files_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "Process", lambda: (_ for _ in ()).throw(psutil.AccessDenied()))
    step_back(process_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_both_files_are_written_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "Process", lambda: (_ for _ in ()).throw(psutil.AccessDenied()))
    for name in ("autogroup", "oom_score_adj"):
        (tmp_path / name).write_text("0")
    step_back(process_folder=tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {"autogroup": str(NICENESS), "oom_score_adj": str(OUT_OF_MEMORY_SCORE)}
