"""A process is told from all others, also from one that has its number later."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tui.chat.store.writers import is_writing, writer_token


def test_this_process_is_writing():
    assert is_writing(writer_token())
    assert writer_token() == writer_token()


PROGRAM = "from tui.chat.store.writers import writer_token; print(writer_token(), flush=True); input()"


def test_a_process_that_ended_is_not():
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdin is not None and other.stdout is not None
        token = other.stdout.readline()
        assert is_writing(token) and token.strip() != writer_token()
        other.stdin.write("\n")
        other.stdin.close()
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
            assert not is_writing(token)  # it has ended, but its parent has not asked how
    assert not is_writing(token)


def test_another_process_of_the_same_number_is_not():
    number, started_at = writer_token().split()
    assert is_writing(f"{number} {float(started_at) + 1:.2f}")  # the clock was set in between
    assert not is_writing(f"{number} {float(started_at) - 3600:.2f}")


@pytest.mark.parametrize("token", ["", "x", "1", "1 2 3", "x 1", "-5 1", f"{10**30} 1", f"{2**31} 1", "0 nan"])
def test_what_is_no_token_is_not(token):
    assert not is_writing(token)
