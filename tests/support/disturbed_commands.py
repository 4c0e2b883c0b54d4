"""Runs commands in processes of their own, to end them in every way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tests.support.paths import ROOT

PATIENCE_SECONDS = 120.0
"""More than any step takes beside two busy loops; what takes longer hangs."""

REAL = "from tui.cli import main; main()"
"""The command as it is."""
ECHOING = """
import sys, time
from tests.support.answer_fakes import echo, loading_of

def slowly(request):
    time.sleep(0.01)
    yield from echo(request)

sys.modules["runtime.engine.loading"] = loading_of(slowly)
from tui.cli import main
main()
"""
"""The command on a model that says what it is told, in capitals; it begins in a tenth of the time."""
SHARD_BY_SHARD = f"""
import time
from runtime.prepare import shards
save_file = shards.save_file

def slowly(*arguments, **settings):
    time.sleep(0.1)
    save_file(*arguments, **settings)

shards.save_file = slowly
{REAL}
"""
"""The command as it is, with a tenth of a second for each shard of a prepared folder."""


def on_a_disk_that_hangs(flag: Path) -> str:
    """The command as it is; while `flag` is there, no read of a layer returns, and the first one makes `flag`.met."""
    return f"""
import os, time
from pathlib import Path
flag, read = Path({str(flag)!r}), os.preadv

def preadv(*arguments):
    while flag.exists():
        flag.with_suffix(".met").touch()
        time.sleep(0.01)
    return read(*arguments)

os.preadv = preadv
{REAL}
"""


class DisturbedCommand:
    """One command under way; a context manager that ends it."""

    def __init__(self, program: str, *arguments: object, stdout: int | IO[bytes] = subprocess.DEVNULL) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, is_reached: Callable[[], bool]) -> None:
        """Wait until something is so; fail if the command ends before."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not is_reached():
            assert self._process.poll() is None, f"ended with {self._process.returncode} before: {self.errors()}"
            assert time.monotonic() < end, "it hangs"
            time.sleep(0.002)

    def send(self, *names: str) -> None:
        """Send signals, as fast as they can be sent."""
        for name in names:
            self._process.send_signal(getattr(signal, name))

    def end(self) -> int:
        """Wait for its end and return its exit code."""
        return self._process.wait(timeout=PATIENCE_SECONDS)

    def errors(self) -> str:
        """Return what it wrote to stderr; only once it has ended."""
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()

    def __enter__(self) -> "DisturbedCommand":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
