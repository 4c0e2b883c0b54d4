"""Ends a command in order when it is asked to, once: Ctrl-C, SIGTERM of a service manager, SIGHUP of a closed terminal.

The first request raises KeyboardInterrupt in the main thread, wherever it is; asked again while the command puts things
in order, nothing changes. What has not ended after a while, such as a read from a disk that hangs, is left behind.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Self

GRACE_SECONDS = 10.0
"""More than any command needs to put in order what it has open."""
_NAMES = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal is gone"}


def end_within(seconds: float, exit_code: int, *, sentence: str = "") -> None:
    """End this process after a while, whatever it waits for; only for what has saved all that is to be kept."""

    def end() -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(sentence)
            sys.stderr.flush()
        os._exit(exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


class Interruption:
    """A context manager: the signals that ask this process to end raise one KeyboardInterrupt meanwhile."""

    def __init__(self) -> None:
        self._asked_by: str | None = None

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells and service managers expect it."""
        return 128 + int(getattr(signal, self._asked_by or "SIGINT"))

    @property
    def sentence(self) -> str:
        """What is told once the command has ended."""
        return f"{_NAMES[self._asked_by or 'SIGINT']}; what was written is kept"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked_by is not None:
            return
        self._asked_by = signal.Signals(number).name
        left = f"overstory: {self.sentence}; what did not end within {GRACE_SECONDS:g} seconds was left behind\n"
        end_within(GRACE_SECONDS, self.exit_code, sentence=left)
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._set(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Ignore the signals from now on: this process is ending, and one more must change nothing about how."""
        self._set(signal.SIG_IGN)

    def _set(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for name in _NAMES:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, handler)
