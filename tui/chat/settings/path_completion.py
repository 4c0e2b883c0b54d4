"""Lists folders for the completion of paths, away from the interface: a disk may be slow or gone."""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_PATHS = 50


async def list_paths(line: str) -> Callable[[str], Sequence[str]]:
    """A function that completes the path at the end of a command line, its folder already read."""
    typed = line.split(maxsplit=1)[1].lstrip("\"'") if len(line.split(maxsplit=1)) > 1 else ""
    found = await asyncio.to_thread(paths_from, typed)
    return lambda start: [path for path in found if path.startswith(start)]


def paths_from(start: str) -> tuple[str, ...]:
    """Paths that begin with `start`, in order, folders with a slash at their end; hidden ones only if asked for."""
    head, name = os.path.split(start)
    folder = Path(head).expanduser() if head else Path()
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_wanted = entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith("."))
                if is_wanted:
                    found.append(os.path.join(head, entry.name) + ("/" if entry.is_dir() else ""))  # noqa: PTH118
    except OSError:  # no such folder, or not ours to read
        return ()
    return tuple(sorted(found)[:MAX_PATHS])
