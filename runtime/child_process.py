"""Starts our modules as child processes, wherever the program was started from.

A child speaks over pipes; whatever its libraries print must not get between them.
"""

import os
import sys
from pathlib import Path


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
