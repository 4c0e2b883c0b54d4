"""Files that hold what a person wrote: there completely or not at all, and readable by that person alone."""

import os
import tempfile
from pathlib import Path


def replace_private_file(path: Path, content: bytes) -> None:
    """Write a neighbour and rename it, so that a process killed here leaves the old file or the new one.

    The folder is made if need be, the file gets mode 0600. Raises OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)
    neighbour = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    except BaseException:
        neighbour.unlink(missing_ok=True)
        raise


def create_private_file(path: Path, content: bytes) -> None:
    """The same for a file that must not be there yet. Raises FileExistsError, or another OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=False)  # whoever comes second fails here
    try:
        replace_private_file(path, content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
