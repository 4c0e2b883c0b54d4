"""A terminal that is closed under the chat app ends app and engine; it once left both behind, with a core at work."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.session_factory import save_tiny_folder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")]
if os.name == "posix":
    from tests.support.terminal_driver import TerminalDriver

START = "from tui.cli import main; main()"


def test_a_closed_terminal_ends_app_and_engine(tmp_path: Path) -> None:
    target = save_tiny_folder(tmp_path / "target")
    environment = {
        **os.environ,
        "OVERSTORY_DATA": str(tmp_path),
        "OVERSTORY_CONFIG": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
    }
    command = [sys.executable, "-c", START, "chat", "--target", str(target), "--context", "128"]
    with TerminalDriver(command, environment=environment) as terminal:
        assert terminal.wait_for("ready", timeout_seconds=120) is not None
        engine = psutil.Process(terminal.process_id).children(recursive=True)
        assert engine
        assert terminal.hang_up(timeout_seconds=30) == 129
    assert psutil.wait_procs(engine, timeout=30)[1] == []
