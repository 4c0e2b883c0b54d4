"""Moves a file that cannot be read out of the way, under a new name beside it: nothing of the user's is deleted."""

from datetime import datetime
from pathlib import Path


def set_aside(path: Path, *, now: datetime, companions: tuple[str, ...] = ()) -> Path:
    """Rename `path`, and the files named `path` + a companion's ending, and return the new path.

    `notes.db` becomes `notes-damaged-20260131-120000.db`, with a number if that is taken. Raises OSError.
    """
    stem = f"{path.stem}-damaged-{now:%Y%m%d-%H%M%S}"
    aside = path.with_name(f"{stem}{path.suffix}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{stem}-{count}{path.suffix}")
    for ending in companions:
        companion = path.with_name(path.name + ending)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + ending))
    path.rename(aside)
    return aside
