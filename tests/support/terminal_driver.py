"""Runs a program in a terminal of its own and tells when its answers to keys appear: for measuring, not for showing.

POSIX only. What the program prints is kept as bytes; nothing is drawn. Knows no Textual.
"""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Makes the terminal the one whose end ends the program, and becomes the program."""


class TerminalDriver:
    """A program and the far end of its terminal; a context manager that ends both."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], num_columns: int = 100, num_rows: int = 30
    ) -> None:
        self._near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", num_rows, num_columns, 0, 0))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TAKE_TERMINAL, *command],
                stdin=far,
                stdout=far,
                stderr=far,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(far)
        self._seen = bytearray()
        self._is_open = True

    @property
    def process_id(self) -> int:
        """Of the program."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while the program runs."""
        return self._process.poll()

    @property
    def num_unread_bytes(self) -> int:
        """What the program has printed since somebody last looked; a terminal holds about 4 kB."""
        return int.from_bytes(fcntl.ioctl(self._near, termios.FIONREAD, bytes(4)), sys.byteorder)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._near, keys.encode())

    def forget(self) -> None:
        """Read what has been printed so far, and look no more at it."""
        while self._read(0.0):
            pass
        self._seen.clear()

    def wait_for(self, *texts: str, timeout_seconds: float) -> float | None:
        """The time (perf_counter) at which the first of these texts had been printed, since `forget` or the start.

        None if none comes in time, or the program ends before.
        """
        wanted = [text.encode() for text in texts]
        end = time.perf_counter() + timeout_seconds
        while not any(text in self._seen for text in wanted):
            left = end - time.perf_counter()
            if left <= 0 or (not self._read(left) and self.exit_code is not None):
                return None
        return time.perf_counter()

    def last_of(self, *texts: str) -> str | None:
        """Which of these texts was printed last since `forget`; None if none was."""
        places = {text: self._seen.rfind(text.encode()) for text in texts}
        latest = max(places, key=places.__getitem__)
        return latest if places[latest] >= 0 else None

    def hang_up(self, *, timeout_seconds: float) -> int | None:
        """Close the terminal under the program; its exit code, or None if it still runs after this time."""
        os.close(self._near)
        self._is_open = False
        return self.end(timeout_seconds=timeout_seconds)

    def end(self, *, timeout_seconds: float) -> int | None:
        """Wait for the program to end, without reading its terminal; its exit code, or None if it still runs."""
        try:
            return self._process.wait(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def _read(self, timeout_seconds: float) -> bool:
        """Whether something was printed within this time."""
        if not select.select([self._near], [], [], timeout_seconds)[0]:
            return False
        try:
            piece = os.read(self._near, 1 << 16)
        except OSError:  # Linux says so when the program has closed its end
            piece = b""
        self._seen += piece
        if not piece:
            self._process.wait(timeout=60)
        return bool(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.exit_code is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._is_open:
            os.close(self._near)
