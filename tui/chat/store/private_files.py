"""Files that hold what a person wrote: there completely or not at all, readable by that person alone, never deleted."""

import errno
import os
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from profiles.files import replace_content


def make_private_folder(folder: Path) -> None:
    """Make the folder, for this user alone, unless it is there. Raises OSError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:  # which elsewhere means that a file is there already, as it should not
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def replace_private_file(path: Path, content: bytes) -> None:
    """Write a neighbour and rename it, so that a process killed here leaves the old file or the new one.

    The folder is made if need be, the file gets mode 0600; a link stays, and what it leads to is replaced. Raises
    OSError.
    """
    path = path.resolve()  # people keep settings in a folder of their own and link to them
    make_private_folder(path.parent)
    replace_content(path, content)


def create_private_file(path: Path, content: bytes) -> None:
    """Write a file that must not be there yet. Raises FileExistsError, or another OSError."""
    make_private_folder(path.parent)
    path.touch(mode=0o600, exist_ok=False)  # the second of two fails here
    try:
        replace_private_file(path, content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def free_path(path: Path) -> Path:
    """Return the path, with `-2`, `-3` and so on behind its stem while there is a file of that name."""
    paths = chain([path], (path.with_stem(f"{path.stem}-{number}") for number in count(2)))
    return next(each for each in paths if not each.exists())


def set_aside(path: Path, *, now: datetime, companions: tuple[str, ...] = ()) -> Path:
    """Rename a file that cannot be read, with those named `path` + a companion's ending, and return the new path.

    `notes.db` becomes `notes-damaged-20260131-120000.db`, with a number if that is taken. Raises OSError.
    """
    aside = free_path(path.with_stem(f"{path.stem}-damaged-{now:%Y%m%d-%H%M%S}"))
    for ending in companions:
        companion = path.with_name(path.name + ending)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + ending))
    path.rename(aside)
    return aside
