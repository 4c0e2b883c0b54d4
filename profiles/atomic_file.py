"""Replaces a file's content so that a process killed at any moment leaves the old content or the new one, whole.

Knows no format.
"""

import os
import tempfile
from pathlib import Path


def replace_content(path: Path, content: bytes) -> None:
    """Write a neighbour, mode 0600, and rename it; the folder must be there. Raises OSError.

    Each writer has a neighbour of its own: of two at the same time the later one wins.
    """
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
