import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.support.paths import ROOT
from tui.interruption import Interruption

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


ENDING = """
import signal
from tui.interruption import Interruption
with Interruption() as interruption:
    print(interruption.exit_code, interruption.sentence())
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        print("asked")
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
signal.raise_signal(signal.SIGTERM)
print(interruption.exit_code, interruption.sentence("all is well"))
"""
HANGING = """
import os, sys, threading
from tui import interruption
interruption.GRACE_SECONDS = 0.05
with interruption.Interruption():
    try:
        print("ready", flush=True)
        {waiting}
    except KeyboardInterrupt:
        threading.Event().wait()
"""
STUCK = "import ctypes; lock = ctypes.CDLL(None).pthread_mutex_lock; a = bytes(64); lock(a); lock(a)"
"""As in a read from a disk that does not answer: no signal makes it return to Python."""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a mutex of zeros is one of Linux")


def start(program: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes)


def test_the_first_signal_interrupts_and_the_next_ones_change_nothing():
    with start(ENDING) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.decode().splitlines() == [
        "130 interrupted; what was written is kept",
        "asked",
        "143 terminated; all is well",
    ]


@pytest.mark.parametrize(
    "waiting",
    [
        pytest.param("threading.Event().wait()", id="in Python"),
        pytest.param(STUCK, id="in a call of the system", marks=linux_only),
    ],
)
def test_what_does_not_end_is_left_behind(waiting):
    with start(HANGING.format(waiting=waiting)) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 143
    assert err == (
        b"overstory: terminated; what was written is kept; what did not end within 0.05 seconds was left behind\n"
    )


def test_a_stderr_that_takes_nothing_holds_up_no_end():
    """As of a terminal after Ctrl-S."""
    full = "import fcntl; fcntl.fcntl(2, fcntl.F_SETFL, 0); os.set_blocking(2, False)\n"
    full += "        try:\n            while True: os.write(2, b'x' * 4096)\n"
    full += "        except BlockingIOError: os.set_blocking(2, True)\n"
    program = HANGING.format(waiting=full + "        print('full', flush=True); threading.Event().wait()")
    with start(program) as process:
        assert process.stdout.readline() == b"ready\n"
        assert process.stdout.readline() == b"full\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143


def test_nothing_stays_where_no_signal_came():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    threads = threading.active_count()
    try:
        with Interruption():
            assert threading.active_count() == threads + 1
        assert signal.set_wakeup_fd(-1) == -1
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for thread in threading.enumerate():
        if thread.name == "interruption":
            thread.join()
    assert threading.active_count() == threads


def test_a_signal_that_was_ignored_stays_ignored():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    others = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
        assert interruption.exit_code == 130
    finally:
        signal.signal(signal.SIGHUP, before)
        for number, handler in others.items():
            signal.signal(number, handler)
