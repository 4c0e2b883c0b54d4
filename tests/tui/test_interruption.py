import os
import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tui.interruption import Interruption

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


def test_the_first_signal_interrupts_and_the_next_ones_change_nothing():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with Interruption() as interruption:
            assert (interruption.exit_code, interruption.sentence) == (130, "interrupted; what was written is kept")
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert (interruption.exit_code, interruption.sentence) == (143, "terminated; what was written is kept")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


HANGING = """
import threading
from tui import interruption
interruption.GRACE_SECONDS = 0.05
with interruption.Interruption():
    try:
        print("ready", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        threading.Event().wait()
"""


def test_what_does_not_end_is_left_behind():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HANGING]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err == (
        b"overstory: terminated; what was written is kept; what did not end within 0.05 seconds was left behind\n"
    )
