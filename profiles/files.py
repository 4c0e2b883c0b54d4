"""Reads files that may mean harm without waiting or trusting, and replaces them so that a kill leaves them whole.

JSON is read strictly: no key twice, nothing that is not finite, no depth that breaks the parser. What is wrong is an
OSError or a ValueError whose message is safe to print; the callers say where, and what to do next.
"""

import errno
import json
import math
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from profiles.errors import quote

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF)
"""What file systems answer that have none, or as NFS none on a folder."""


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


def parse_json_text(raw: bytes) -> Any:
    """Return what the UTF-8 text `raw` holds. Raises ValueError for anything that is not strictly JSON."""
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_finite_float,
            parse_float=_finite_float,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"the key {quote(name)} stands twice")
        unique[name] = value
    return unique


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{quote(text)} is not a finite number")
    return number


def lock(descriptor: int) -> None:
    """Hold an open file or folder against other processes until it is closed, however this process ends.

    Does nothing on Windows and on file systems without locks. Raises BlockingIOError, which names the holder's process
    where the system tells it, if another process has it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _lock_holder(descriptor)
        raise BlockingIOError("another process" if holder is None else f"process {holder}") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _lock_holder(descriptor: int) -> int | None:
    """Return the process that holds the file's lock, where the system lists them (Linux)."""
    inode = f":{os.fstat(descriptor).st_ino}"
    with suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            kind, _, _, process, file, *_ = line.split()[1:]
            if kind == "FLOCK" and file.endswith(inode):
                return int(process)
    return None
