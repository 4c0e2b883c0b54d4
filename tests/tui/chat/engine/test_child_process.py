"""Libraries that print do not get between the lines of a child, and a line is a line however it arrives."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from tui.chat.engine.child_process import child_command, child_environment, lines_of, write_line

NOISY = """
import os, subprocess, sys
from tui.chat.engine.child_process import lines_of, own_streams, write_line
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


def test_a_child_finds_our_packages_and_keeps_the_users_own_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/some/where")
    environment = child_environment(ANSWER="42")
    packages, others = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(packages) / "tui" / "chat").is_dir()
    assert (others, environment["ANSWER"]) == ("/some/where", "42")
    monkeypatch.delenv("PYTHONPATH")
    assert child_environment()["PYTHONPATH"] == packages
    assert child_command("tui.chat.x") == (sys.executable, "-P", "-m", "tui.chat.x")
