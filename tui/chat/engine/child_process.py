"""Makes the app's child processes yield to the app, and carries lines of JSON between the two."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

NICENESS = 5
"""Of 19: a quarter of a core's time beside a program that wants all of it, and all of it alone. The interface wants
little and is served at once; more niceness would only hand the engine's time to whatever else computes here."""
OUT_OF_MEMORY_SCORE = 500
"""Of 1000: Linux ends the process with the highest score first."""


def step_back(*, process_folder: Path = Path("/proc/self")) -> None:
    """In the child, yield the cores to the app and be the one to go when memory runs out, as far as the system lets it.

    A pass on a processor keeps every core busy for seconds; the interface needs one of them for a millisecond at a
    time, and at once. Not for passes on a card, which wait for the thread that feeds them.
    """
    import psutil  # here, since the app imports this module too and starts sooner without it

    with suppress(psutil.Error, OSError):
        psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICENESS))
    for thread in (process_folder / "task").glob("*"):  # Linux counts niceness by thread
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)
    # On a Linux desktop each session is a group, and niceness counts only among those of one group.
    for name, value in (("autogroup", NICENESS), ("oom_score_adj", OUT_OF_MEMORY_SCORE)):
        with suppress(OSError), (process_folder / name).open("r+") as file:
            file.write(str(value))


def lines_of(descriptor: int) -> Iterator[bytes]:
    """Yield whole lines from a pipe until it ends, without a lock that a thread could hold at the interpreter's end."""
    rest = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def write_line(descriptor: int, line: bytes) -> None:
    """Write all of a line. Raises OSError if nobody reads."""
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
