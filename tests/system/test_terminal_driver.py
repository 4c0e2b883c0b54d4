"""A program in a terminal of its own: what it prints is seen, keys reach it, and it does not outlive the driver."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
if os.name == "posix":
    from tests.support.terminal_driver import TerminalDriver

ECHO = """
import os, sys, termios, tty
tty.setraw(0)
size = os.get_terminal_size(0)
os.write(1, f"size {size.columns}x{size.lines} ".encode())
while (key := os.read(0, 1)) != b"q":
    os.write(1, b"<" + key + b">")
"""


@pytest.fixture
def terminal() -> "Iterator[TerminalDriver]":
    with TerminalDriver([sys.executable, "-c", ECHO], environment=os.environ, num_columns=77, num_rows=22) as driver:
        assert driver.wait_for("size 77x22 ", timeout_seconds=30) is not None
        yield driver


def test_keys_reach_the_program_and_its_answers_are_seen(terminal: "TerminalDriver") -> None:
    terminal.forget()
    terminal.press("ab")
    assert terminal.wait_for("<b>", timeout_seconds=60) is not None
    assert terminal.last_of("<a>", "<b>", "<c>") == "<b>"
    terminal.forget()
    assert terminal.last_of("<a>", "<b>") is None


def test_what_never_comes_is_not_waited_for_longer_than_asked(terminal: "TerminalDriver") -> None:
    assert terminal.wait_for("never", timeout_seconds=0.01) is None
    assert terminal.exit_code is None


def test_a_program_that_ends_ends_the_waiting(terminal: "TerminalDriver") -> None:
    terminal.press("q")
    assert terminal.wait_for("never", timeout_seconds=30) is None
    assert terminal.exit_code == 0


def test_the_program_ends_with_the_driver() -> None:
    with TerminalDriver([sys.executable, "-c", ECHO], environment=os.environ) as driver:
        assert driver.wait_for("size", timeout_seconds=30) is not None
    assert driver.exit_code is not None


def test_a_program_whose_terminal_is_closed_is_told_so(terminal: "TerminalDriver") -> None:
    """A signal ends whoever does not listen to it."""
    assert terminal.hang_up(timeout_seconds=60) == -signal.SIGHUP
    assert terminal.exit_code == -signal.SIGHUP
