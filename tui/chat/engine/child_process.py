"""What the app's child processes have in common: how they are started, and whose standard streams they have.

A child speaks lines of JSON over pipes; whatever its libraries print must not get between them.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path


def child_command(module: str) -> tuple[str, ...]:
    """This interpreter on one of our modules; folders where the user happens to be are not looked into."""
    return (sys.executable, "-P", "-m", module)


def child_environment(**changes: str) -> dict[str, str]:
    """Ours, with our packages on the path, wherever the app was started from."""
    packages_folder = str(Path(__file__).resolve().parents[3])
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([packages_folder, inherited] if inherited else [packages_folder])
    return {**os.environ, "PYTHONPATH": path, **changes}


def own_streams() -> tuple[int, int]:
    """In the child: (stdin, stdout) as descriptors of its own.

    From then on libraries and children of the child find nothing on stdin, and stderr in place of stdout.
    """
    requests, reports = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, reports


def lines_of(descriptor: int) -> Iterator[bytes]:
    """Whole lines from a pipe until it ends, without a lock that a thread could hold at the interpreter's end."""
    rest = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def write_line(descriptor: int, line: bytes) -> None:
    """Write all of a line. Raises OSError if nobody reads."""
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
