"""Starts our modules as child processes, wherever the program was started from.

A child speaks over pipes; whatever its libraries print must not get between them.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class EndedChild:
    """What became of a child that was run to its end."""

    exit_code: int | None
    """Negative for a signal, as `subprocess` has it; None where it was killed because its time was up."""
    output: str
    complaints: str
    """What it wrote to stderr; nothing where it was killed and could not be ended."""


def child_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs one of our modules; folders where the user happens to be are not looked into."""
    return (sys.executable, "-P", "-m", module, *arguments)


def child_environment(**changes: str) -> dict[str, str]:
    """Return our environment with our packages on the path, wherever the program was started from."""
    packages_folder = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([packages_folder, inherited] if inherited else [packages_folder])
    return {**os.environ, "PYTHONPATH": path, **changes}


def own_streams() -> tuple[int, int]:
    """In the child, return stdin and stdout as descriptors that nothing else has.

    From then on libraries and children of the child find nothing on stdin, and stderr in place of stdout.
    """
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def ending_words(exit_code: int) -> str:
    """Return how a process ended, as words behind `ended`: `with 1`, or `by SIGKILL` for a negative code."""
    if exit_code >= 0:
        return f"with {exit_code}"
    with suppress(ValueError):
        return f"by {signal.Signals(-exit_code).name}"
    return f"by signal {-exit_code}"


def finish_child(command: Sequence[str], *, limit_seconds: float, environment: Mapping[str, str]) -> EndedChild:
    """Run a command that reads nothing to its end, or for so long; return all that it wrote.

    One that is stuck in a driver, where no signal reaches it, is left there.
    """
    child = subprocess.Popen(
        list(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        output, complaints = child.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        return EndedChild(None, *_kill(child))
    except BaseException:
        _kill(child)
        raise
    return EndedChild(child.returncode, output, complaints)


def _kill(child: subprocess.Popen[str]) -> tuple[str, str]:
    """End the child; return what it wrote to stdout and stderr."""
    child.kill()
    try:
        return child.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired as error:
        output: str | bytes | None = error.output
        return output.decode(errors="replace") if isinstance(output, bytes) else output or "", ""
