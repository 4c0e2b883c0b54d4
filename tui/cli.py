"""The command line: the one place that reads arguments, prints and sets exit codes.

stdout is for results, stderr for progress. Whatever goes wrong ends in one line on stderr: 2 for input that cannot be
used, 1 for a failure while running, 130 for Ctrl-C, 143 for SIGTERM. torch is imported only when a model is opened.
"""

import errno
import gc
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from profiles.errors import OverstoryError
from tui.commands.bench import bench_app
from tui.commands.calibrate import calibrate
from tui.commands.chat import chat
from tui.commands.doctor import doctor
from tui.commands.plan import plan
from tui.commands.prepare import prepare
from tui.commands.run import compare, run
from tui.environment import quieten_libraries
from tui.interruption import Interruption
from tui.terminal_text import one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Command(TyperCommand):
    """A command whose `--help` shows switches as they are typed, without `<bool>`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments, switches without a name for a value."""
        parameters: list[Any] = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


app = typer.Typer(
    name="overstory",
    help="Run a language model that does not fit the device: streamed layers, a tree of drafts, exact text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
for _command in (run, compare, chat, calibrate, doctor, prepare, plan):
    app.command()(_command)
for _registered in (*app.registered_commands, *bench_app.registered_commands):
    _registered.cls = _Command


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        try:
            version = metadata.version("overstory")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        sys.stdout.write(f"overstory {version}\n")
        raise typer.Exit


@app.callback()
def overstory(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Run a language model that does not fit the device: streamed layers, a tree of drafts, exact text."""


def execute(arguments: Sequence[str] | None = None, *, interruption: Interruption | None = None) -> int:
    """Run one command line and return its exit code; every error that leaves a command ends here."""
    interruption = interruption or Interruption()
    try:
        returned = app(args=arguments, prog_name="overstory", standalone_mode=False)
        sys.stdout.flush()
        if returned == 130:
            return _fail(interruption.sentence, interruption.exit_code)
        return returned if isinstance(returned, int) else 0
    except OverstoryError as error:
        return _fail(f"error: {error}", error.exit_code)
    except BrokenPipeError:
        return _reader_is_gone()
    except SystemExit as request:  # typer turns a closed pipe into this
        return request.code if isinstance(request.code, int) else 1
    except KeyboardInterrupt:
        return _fail(interruption.sentence, interruption.exit_code)
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            return _unexpected(error)
        _discard_output()
        return _fail(f"error: standard output takes no more: {error.strerror}; send it to where there is room", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error: click's own class or typer's copy of it
            sentence = error.format_message().rstrip(".")  # empty where no command was given: the help is printed
            return _fail(f"error: {sentence}; see overstory --help", 2) if sentence else 2
        return _unexpected(error)


def main() -> NoReturn:
    """The console command."""
    _open_closed_streams()
    for standard_stream in (sys.stdout, sys.stderr):
        if hasattr(standard_stream, "reconfigure"):  # Windows would otherwise use a code page that lacks most letters
            standard_stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    quieten_libraries()
    with Interruption() as interruption:
        exit_code = execute(interruption=interruption)
    gc.freeze()  # the system takes all memory back at once; looking for cycles first would cost a second
    sys.exit(exit_code)


def _fail(sentence: str, exit_code: int) -> int:
    if os.environ.get("OVERSTORY_DEBUG") == "1" and sys.exc_info()[0] is not None:
        traceback.print_exc()
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"overstory: {one_line(sentence)}\n")
        sys.stderr.flush()
    return exit_code


def _unexpected(error: Exception) -> int:
    sentence = f"unexpected {type(error).__name__}: {error}; run again with OVERSTORY_DEBUG=1 for the traceback"
    return _fail(f"error: {sentence}", 1)


def _reader_is_gone() -> int:
    """Whoever read stdout has left: end quietly."""
    _discard_output()
    return 141


def _discard_output() -> None:
    """Give the interpreter somewhere to flush what is left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _ClosedOutput(io.TextIOBase):
    """Standard output that was closed before the command began."""

    def write(self, text: str) -> int:
        """Raise OverstoryError: somebody expects this text."""
        raise OverstoryError("standard output is closed; leave it open, or let run write to a file with --output")


def _open_closed_streams() -> None:
    """Put something in the place of closed standard streams, so that no file of ours gets their numbers."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115
    sys.stdout = sys.stdout or _ClosedOutput()
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
