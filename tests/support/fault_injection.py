"""Reads that fail, end early or kill their thread at chosen calls, and a count of what such faults leave open."""

import errno
import os
import threading
from collections.abc import Callable

import psutil
import pytest

from tests.support.session_factory import request

ASKED = request(max_new_tokens=12)
needs_preadv = pytest.mark.skipif(not hasattr(os, "preadv"), reason="faults are injected at os.preadv")


def what_is_open() -> tuple[int, int]:
    """(threads, files) of this process, without the thread that watches over the libraries' progress bars."""
    return sum(thread.name != "tqdm_monitor" for thread in threading.enumerate()), len(psutil.Process().open_files())


class Faults:
    """Stands where os.preadv is, and misbehaves at chosen calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_calls = 0
        self.at: dict[int, Callable[[], int | None]] = {}
        """By call: what happens instead; None goes on as usual, a number is returned as what was read."""
        self._read = os.preadv
        monkeypatch.setattr(os, "preadv", self)

    def __call__(self, descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        self.num_calls += 1
        fault = self.at.pop(self.num_calls, None)
        found = None if fault is None else fault()
        return self._read(descriptor, buffers, offset, flags) if found is None else found

    def soon(self, num_calls: int, fault: Callable[[], int | None]) -> None:
        """After so many more reads."""
        self.at[self.num_calls + 1 + num_calls] = fault


def raise_io_error() -> int:
    raise OSError(errno.EIO, "Input/output error")


def end_of_file() -> int:
    return 0


class Dies(BaseException):
    """What ends a thread."""


def kill_thread() -> int:
    raise Dies("shot")
