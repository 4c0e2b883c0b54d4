"""A chat that is disturbed in every way loses no word that was sent, and none of an answer that was on the screen."""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.session_factory import save_tiny_folder
from tui.chat.store.store import ConversationStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX"),
]
if os.name == "posix":
    from tests.support.terminal_driver import TerminalDriver

PATIENCE_SECONDS = 240.0
"""Two apps and their engines start at the same time, on two cores that other tests use too."""
PASTE_SECONDS = 1.0
"""From a prompt's last letter to Enter: a paste must have ended."""


class Story:
    """One folder of conversations, and the apps that write into it; a token takes a tenth of a second."""

    def __init__(self, root: Path) -> None:
        self.database = root / "data" / "conversations.db"
        self._target = save_tiny_folder(root / "target", seed=37)
        never_ending(self._target)
        self._environment = {
            **os.environ,
            "OVERSTORY_DATA": str(self.database.parent),
            "OVERSTORY_CONFIG": str(root / "config"),
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm-256color",
        }

    @contextmanager
    def app(self) -> Iterator["TerminalDriver"]:
        slowly = ("--draft", "none", "--device-memory", "min", "--emulate-link", "1.5MB/s", "--context", "1024")
        program = "from tui.cli import main; main()"
        command = [sys.executable, "-c", program, "chat", "--target", str(self._target), *slowly]
        with TerminalDriver(command, environment=self._environment) as terminal:
            assert terminal.wait_for("Ask something", timeout_seconds=PATIENCE_SECONDS) is not None
            yield terminal

    def ask(self, terminal: "TerminalDriver", words: str) -> str:
        """Send a prompt, and wait for the first words of its answer; return them."""
        terminal.press(words)
        assert terminal.wait_for(words[-4:], timeout_seconds=PATIENCE_SECONDS) is not None
        time.sleep(PASTE_SECONDS)
        terminal.press("\r")
        self.until(lambda: len(self.answer_to(words)) >= 4, terminal)
        return self.answer_to(words)

    def until(self, is_so: Callable[[], bool], terminal: "TerminalDriver") -> None:
        """Read the terminal until something is so."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            terminal.forget()
            assert terminal.exit_code is None, f"the app ended with {terminal.exit_code}"
            assert time.monotonic() < end, f"not in {PATIENCE_SECONDS:g} s; saved is {self.saved()}"
            time.sleep(0.05)

    def ended(self, terminal: "TerminalDriver") -> int | None:
        """Read the terminal until the app has ended, and return its exit code."""
        end = time.monotonic() + PATIENCE_SECONDS
        while terminal.exit_code is None and time.monotonic() < end:
            terminal.forget()
            time.sleep(0.05)
        return terminal.exit_code

    def saved(self) -> list[list[str]]:
        """What is saved of every conversation."""
        with ConversationStore(self.database) as store:
            return [[each.content for each in store.messages(one.id)] for one in store.list_conversations()]

    def answer_to(self, words: str) -> str:
        """What is saved of the answer to this prompt."""
        pairs = itertools.chain.from_iterable(map(itertools.pairwise, self.saved()))
        return next((answer for prompt, answer in pairs if prompt == words), "")


def never_ending(folder: Path) -> None:
    """Take a model's end token away: else one answer in some thirty ends within its first letters."""
    keys = {"config": "eos_token_id", "generation_config": "eos_token_id", "tokenizer_config": "eos_token"}
    for name, key in keys.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: None}))


def engines_of(*apps: "TerminalDriver") -> list[psutil.Process]:
    """Return the engines and what they have begun."""
    return [child for app in apps for child in psutil.Process(app.process_id).children(recursive=True)]


def test_no_word_is_lost_with_the_engine_or_the_app(tmp_path: Path) -> None:
    """Each is killed in the middle of an answer, and two apps write into one database at the same time."""
    story = Story(tmp_path)
    said: dict[str, str] = {}
    with story.app() as terminal:
        said["first prompt"] = story.ask(terminal, "first prompt")
        (engine,) = psutil.Process(terminal.process_id).children()
        engine.kill()
        story.until(lambda: not psutil.pid_exists(engine.pid), terminal)
        os.kill(terminal.process_id, signal.SIGKILL)
    with story.app() as terminal, story.app() as other:
        said["second prompt"] = story.ask(terminal, "second prompt")
        said["third prompt"] = story.ask(other, "third prompt")
        engines = engines_of(terminal, other)
        os.kill(terminal.process_id, signal.SIGKILL)
        os.kill(other.process_id, signal.SIGTERM)
        assert story.ended(other) == 143
    assert psutil.wait_procs(engines, timeout=PATIENCE_SECONDS)[1] == []
    for words, answer in said.items():
        assert story.answer_to(words).startswith(answer)


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_terminal_that_is_not_read_holds_up_no_end(tmp_path: Path, name: str, exit_code: int) -> None:
    """As after Ctrl-S, or behind a connection that hangs: drawing into it never returned, and no signal was heard."""
    story = Story(tmp_path)
    with story.app() as terminal:
        answer = story.ask(terminal, "first prompt")
        end = time.monotonic() + PATIENCE_SECONDS
        while terminal.num_unread_bytes < 4000:
            assert time.monotonic() < end
            time.sleep(0.1)
        os.kill(terminal.process_id, getattr(signal, name))
        assert terminal.end(timeout_seconds=PATIENCE_SECONDS) == exit_code
    assert story.answer_to("first prompt").startswith(answer)


def test_words_go_on_into_a_database_that_is_moved_away(tmp_path: Path) -> None:
    story = Story(tmp_path)
    with story.app() as terminal:
        said = {"first prompt": story.ask(terminal, "first prompt")}
        moved = story.database.parent.rename(tmp_path / "elsewhere")
        story.database = moved / story.database.name
        terminal.press("\x1b")
        assert terminal.wait_for("stopped", timeout_seconds=PATIENCE_SECONDS) is not None
        said["second prompt"] = story.ask(terminal, "second prompt")
        terminal.press("\x11")
        assert story.ended(terminal) == 0
    for words, answer in said.items():
        assert story.answer_to(words).startswith(answer)
