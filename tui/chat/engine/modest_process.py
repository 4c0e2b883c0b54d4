"""Makes a process step back behind the app: it yields the cores, and is the one to go when memory runs out.

A pass keeps every core busy for seconds; the interface needs one of them for a millisecond at a time, and at once.
"""

from contextlib import suppress
from pathlib import Path

import psutil

NICENESS = 5
"""Of 19: a quarter of a core's time beside a program that wants all of it, and all of it alone. The interface wants
little and is served at once; more niceness would only hand the engine's time to whatever else computes here."""
OUT_OF_MEMORY_SCORE = 500
"""Of 1000: Linux ends the process with the highest score first."""


def step_back(*, process_folder: Path = Path("/proc/self")) -> None:
    """Lower this process's claims, as far as the system lets it. Call it before there are other threads."""
    with suppress(psutil.Error, OSError):
        psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", NICENESS))
    # On a Linux desktop each session is a group, and niceness counts only among those of one group.
    for name, value in (("autogroup", NICENESS), ("oom_score_adj", OUT_OF_MEMORY_SCORE)):
        with suppress(OSError), (process_folder / name).open("r+") as file:
            file.write(str(value))
