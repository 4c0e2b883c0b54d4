"""Our children find our packages, wherever the program was started from."""

import os
import sys
from pathlib import Path

from profiles.child_process import child_command, child_environment


def test_a_child_finds_our_packages_and_keeps_the_users_own_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/some/where")
    environment = child_environment(ANSWER="42")
    packages, others = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(packages) / "tui" / "chat").is_dir()
    assert (others, environment["ANSWER"]) == ("/some/where", "42")
    monkeypatch.delenv("PYTHONPATH")
    assert child_environment()["PYTHONPATH"] == packages
    assert child_command("tui.chat.x") == (sys.executable, "-P", "-m", "tui.chat.x")
