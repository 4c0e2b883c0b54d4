"""Ends a command in order when it is asked to, once: Ctrl-C, SIGTERM of a service manager, SIGHUP of a closed terminal.

The first request raises KeyboardInterrupt in the main thread, wherever it is; asked again while the command puts things
in order, nothing changes. What has not ended after a while is left behind: a read from a disk that hangs, a reader of
stdout that has stopped. A thread sees to that, since the main thread may be stuck where no signal reaches Python.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Self

GRACE_SECONDS = 10.0
"""More than any command needs to put in order what it has open."""
_TELLING_SECONDS = 1.0
_NAMES = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal is gone"}


class CommandInterruptedError(Exception):
    """Ends a command that was interrupted; its text says what is kept and how to go on."""


def end_within(seconds: float, exit_code: int) -> None:
    """End this process after a while, whatever it waits for; only for what has saved all that is to be kept."""
    timer = threading.Timer(seconds, os._exit, (exit_code,))
    timer.daemon = True
    timer.start()


class Interruption:
    """A context manager: the signals that ask this process to end raise one KeyboardInterrupt meanwhile."""

    def __init__(self) -> None:
        self._asked_by: int | None = None
        self._bell: socket.socket

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells and service managers expect it."""
        return 128 + (self._asked_by or signal.SIGINT)

    def sentence(self, outcome: str = "what was written is kept") -> str:
        """Return what is told once the command has ended."""
        return f"{_NAMES[signal.Signals(self._asked_by or signal.SIGINT).name]}; {outcome}"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked_by is None:
            self._asked_by = number
            with suppress(OSError):  # an event loop may have taken the wakeup descriptor over
                self._bell.send(bytes((number,)))
            raise KeyboardInterrupt

    def _watch(self, ringing: socket.socket) -> None:
        """Wait for the first request, then for the end of the process, and bring that about."""
        while (number := ringing.recv(1)) and number[0] not in _numbers():
            pass
        if not number:
            ringing.close()  # and otherwise not, since the system goes on ringing
            return
        time.sleep(GRACE_SECONDS)
        self._asked_by = self._asked_by or number[0]
        left = f"overstory: {self.sentence()}; what did not end within {GRACE_SECONDS:g} seconds was left behind\n"
        teller = threading.Thread(target=_tell, args=(left,), daemon=True)  # stderr may take nothing either
        teller.start()
        teller.join(_TELLING_SECONDS)
        os._exit(self.exit_code)

    def __enter__(self) -> Self:
        ringing, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        threading.Thread(target=self._watch, args=(ringing,), name="interruption", daemon=True).start()
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._set(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Ignore the signals from now on if there was one: the next must change nothing about how this process ends."""
        self._set(signal.SIG_DFL if self._asked_by is None else signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        if self._asked_by is None:
            self._bell.close()

    def _set(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in _numbers():
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, handler)


def _numbers() -> list[signal.Signals]:
    return [number for number in signal.Signals if number.name in _NAMES]  # Windows has no SIGHUP


def _tell(sentence: str) -> None:
    with suppress(OSError):
        os.write(2, sentence.encode())
