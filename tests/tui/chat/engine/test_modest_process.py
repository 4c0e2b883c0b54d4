"""The engine's process gives way to the interface, in time and in memory."""

import subprocess
import sys

import psutil
import pytest

from tui.chat.engine.modest_process import NICENESS, OUT_OF_MEMORY_SCORE, step_back

PROGRAM = """
import threading, psutil
from pathlib import Path
from tui.chat.engine.modest_process import step_back
step_back()
found = []
thread = threading.Thread(target=lambda: found.append(Path(f"/proc/self/task/{threading.get_native_id()}/stat")
    .read_text().rsplit(")")[1].split()[16]))
thread.start(); thread.join()
print(psutil.Process().nice(), found[0], Path("/proc/self/oom_score_adj").read_text())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_that_steps_back_is_nice_with_all_its_threads_and_goes_first():
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == [str(NICENESS), str(NICENESS), str(OUT_OF_MEMORY_SCORE)]


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
