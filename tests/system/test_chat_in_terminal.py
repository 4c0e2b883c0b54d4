"""The chat in a real terminal with the demo model, from the first key to the next start."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from runtime.engine.demo_model import DEMO_MODEL_NAME
from tests.support.paths import ROOT

PATIENCE_SECONDS = 240.0
_LOOK_SECONDS = 0.05
SLOWLY = ("--device-memory", "min", "--emulate-link", "0.3GB/s")
"""A pass takes most of a second, so that an answer can be watched."""
pytestmark = [
    pytest.mark.real,
    pytest.mark.usefixtures("demo_folder"),
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux, the terminal that tests can read"),
]


class Terminal:
    """A tmux server of its own, with the chat in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_starts = 0

    @property
    def _tmux(self) -> list[str]:
        """The command for this start's server: one that was killed may still be there for a moment."""
        return ["tmux", "-S", str(self._folder / f"tmux-{self._num_starts}"), "-f", "/dev/null"]

    def start(self, *options: str) -> None:
        self._num_starts += 1
        command = [sys.executable, "-c", "from tui.cli import main; main()", "chat", *options]
        variables = {
            "OVERSTORY_DATA": str(self._folder / "data"),
            "OVERSTORY_CONFIG": str(self._folder / "config"),
            "PYTHONPATH": str(ROOT),
            "TERM": "tmux-256color",
        }
        given = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        line = f"{' '.join(given)} {shlex.join(command)}; echo EXIT $?; exec cat"
        self._run("new-session", "-d", "-x", "100", "-y", "30", line)

    def keys(self, *names: str) -> None:
        self._run("send-keys", *names)

    def type(self, text: str) -> None:
        self._run("send-keys", "-l", text)

    @property
    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    @property
    def processes(self) -> list[psutil.Process]:
        """The app and the engine, as long as they live."""
        shell = psutil.Process(int(self._run("list-panes", "-F", "#{pane_pid}")))
        return [each for each in shell.children(recursive=True) if each.name() != "cat"]

    def until(self, pattern: str) -> str:
        """Look until the screen shows it; returns the screen."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while re.search(pattern, screen := self.screen) is None:
            assert time.monotonic() < deadline, f"{pattern!r} did not appear:\n{screen}"
            time.sleep(_LOOK_SECONDS)
        return screen

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def terminal(tmp_path):
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


def letters_of_answer(screen: str) -> int:
    """Letters that the screen shows of the last answer."""
    lines = [line.lstrip(" ▌") for line in screen.splitlines() if line.startswith("  ▌")]
    names = [index for index, line in enumerate(lines) if line.startswith(DEMO_MODEL_NAME)]
    return len("".join(lines[names[-1] + 1 :])) if names else 0


def test_launch_ask_stop_ask_again_quit_and_find_it_again(terminal):
    terminal.start("--temperature", "0", "--max-new-tokens", "400", *SLOWLY)
    terminal.until("Ask something")
    assert not re.search(r"● ready", terminal.screen), "the first paint does not wait for the model"

    terminal.type("Write a long story about a fox and an owl.")  # waits for the model
    terminal.keys("Enter")
    terminal.until(r"▌ you\n")
    seen = set()
    while len(seen) < 4:
        seen.add(letters_of_answer(terminal.until(r"▌ you\n")))
        assert "tokens per pass" not in terminal.screen, "the answer ended before it could be watched"
    assert sorted(seen)[-1] > 0, "text arrives piece by piece"

    terminal.keys("Escape")
    terminal.until("stopped")

    terminal.type("What is the capital of France? Answer in one word.")
    terminal.keys("Enter")
    terminal.until(r"(?s)capital of France.*Paris.*tok/s")
    terminal.until("● ready")

    assert len(terminal.processes) >= 2
    terminal.keys("C-q")
    terminal.until("EXIT 0")
    assert terminal.processes == []

    terminal.close()
    terminal.start("--target", str(ROOT / "missing"))
    terminal.until("Dismiss")
    terminal.keys("Escape")
    terminal.keys("C-f")
    terminal.until("Search all")
    terminal.type("capital")
    terminal.until(r"1 found")
    terminal.keys("Enter")
    screen = terminal.until("Paris")
    assert "capital of France" in screen
    terminal.keys("C-c")
    terminal.until("again to quit")
    terminal.keys("C-c")
    terminal.until("EXIT 0")
    assert terminal.processes == []
