"""Reads files without waiting for ever, and replaces them so that a kill leaves the old content or the new, whole."""

import os
import stat
import tempfile
from pathlib import Path


def read_regular_file(path: Path, *, max_bytes: int) -> bytes:
    """Return the content. Raises OSError, also for no regular file, and ValueError for more than `max_bytes`."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for ever
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("it is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    return content


def replace_content(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a neighbour and rename it; the folder must be there. Raises OSError.

    Each writer has a neighbour of its own: of two at the same time the later one wins.
    """
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)
    neighbour = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        neighbour.chmod(mode)
        neighbour.replace(path)
    except BaseException:
        neighbour.unlink(missing_ok=True)
        raise
