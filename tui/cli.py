"""The command line: the one place that reads arguments, prints and sets exit codes.

stdout is for results, stderr for progress. Whatever goes wrong ends in one line on stderr: 2 for input that cannot be
used, 1 for a failure while running, 130 for Ctrl-C, 143 for SIGTERM. The commands are imported once signals are heard,
and torch only when a model is opened.
"""

import errno
import gc
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from profiles.errors import OverstoryError
from tui.environment import prepare_libraries
from tui.interruption import CommandInterruptedError, Interruption
from tui.terminal_text import one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_LONGEST_SENTENCE = 2000


def execute(arguments: Sequence[str] | None = None, *, interruption: Interruption | None = None) -> int:
    """Run one command line and return its exit code; every error that leaves a command ends here."""
    interruption = interruption or Interruption()
    try:
        from tui.commands.app import app

        returned = app(args=arguments, prog_name="overstory", standalone_mode=False)
        sys.stdout.flush()
        if returned == 130:  # typer's way of saying KeyboardInterrupt
            return _fail(interruption.sentence(), interruption.exit_code)
        return returned if isinstance(returned, int) else 0
    except OverstoryError as error:
        return _fail(f"error: {error}", error.exit_code)
    except BrokenPipeError:
        return _reader_is_gone()
    except SystemExit as request:  # typer turns a closed pipe into this
        return request.code if isinstance(request.code, int) else 1
    except KeyboardInterrupt:
        return _fail(interruption.sentence(), interruption.exit_code)
    except CommandInterruptedError as outcome:
        return _fail(interruption.sentence(str(outcome)), interruption.exit_code)
    except OSError as error:
        if error.filename is not None:
            return _fail(f"error: {error.filename} cannot be used: {error.strerror}; mend that, or choose another", 1)
        if error.errno not in _FULL:
            return _unexpected(error)
        _discard(sys.stdout)
        return _fail(f"error: standard output takes no more: {error.strerror}; send it to where there is room", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error: click's own class or typer's copy of it
            sentence = error.format_message().rstrip(".")  # empty where no command was given: the help is printed
            command = getattr(getattr(error, "ctx", None), "command_path", "overstory")
            see = " See" if sentence.endswith("?") else "; see"
            return _fail(f"error: {sentence}{see} {command} --help", 2) if sentence else 2
        return _unexpected(error)


def main() -> NoReturn:
    """The console command."""
    interruption = Interruption()
    try:
        _open_streams()
        with interruption:
            prepare_libraries()
            exit_code = execute(interruption=interruption)
    except KeyboardInterrupt:  # before the first or after the last step of the command
        exit_code = _fail(interruption.sentence(), interruption.exit_code)
    try:
        sys.stdout.flush()  # not left to the interpreter's end, where nothing watches over a reader that has stopped
    except OSError:
        _discard(sys.stdout)
    gc.freeze()  # the system takes all memory back at once; looking for cycles first would cost a second
    sys.exit(exit_code)


def _fail(sentence: str, exit_code: int) -> int:
    if os.environ.get("OVERSTORY_DEBUG") == "1" and sys.exc_info()[0] is not None:
        traceback.print_exc()
    if len(sentence) > _LONGEST_SENTENCE:  # it repeats something endless that was typed
        sentence = f"{sentence[:500]} ... {sentence[-500:]}"
    sys.stderr.write(f"overstory: {one_line(sentence)}\n")
    sys.stderr.flush()
    return exit_code


def _unexpected(error: Exception) -> int:
    sentence = f"unexpected {type(error).__name__}: {error}; run again with OVERSTORY_DEBUG=1 for the traceback"
    return _fail(f"error: {sentence}", 1)


def _reader_is_gone() -> int:
    """Whoever read stdout has left: end quietly."""
    _discard(sys.stdout)
    return 141


def _discard(stream: TextIO) -> None:
    """Give the interpreter somewhere to flush what is left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _ClosedOutput(io.TextIOBase):
    """Standard output that was closed before the command began."""

    def write(self, text: str) -> int:
        """Raise OverstoryError: somebody expects this text."""
        raise OverstoryError("standard output is closed; leave it open, or let run write to a file with --output")


class _Stderr(io.TextIOWrapper):
    """Standard error: once it takes nothing, as a terminal that is gone, the command goes on without telling."""

    def write(self, text: str) -> int:
        """Return how many characters were written, or need not be."""
        try:
            return super().write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Send on what is still here, or forget it."""
        try:
            super().flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        _discard(self)
        super().flush()


def _open_streams() -> None:
    """Put something in the place of closed standard streams, so that no file of ours gets their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115
    sys.stdout = sys.stdout or _ClosedOutput()
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    if os.name == "posix":
        sys.stderr = _Stderr(open(2, "wb", closefd=False), line_buffering=True)  # noqa: SIM115
    for standard_stream in (sys.stdout, sys.stderr):
        if hasattr(standard_stream, "reconfigure"):  # Windows would otherwise use a code page that lacks most letters
            standard_stream.reconfigure(encoding="utf-8", errors="backslashreplace")
