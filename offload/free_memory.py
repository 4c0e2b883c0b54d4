"""How much memory this process may still use and holds, without torch, so that it can be asked before torch is there.

Free is the smallest of what the machine has available and what each memory control group above this process leaves
(Linux, version 1 and 2: containers and `systemd-run -p MemoryMax=`), with page cache that the kernel drops on demand.
Elsewhere psutil's answer stands alone.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

# Version 1 writes "no limit" as the largest multiple of a page; no machine has an exbibyte.
_NO_LIMIT_BYTES = 1 << 60
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class _GroupFiles:
    """What one version of control groups calls its files."""

    mounts: tuple[str, ...]
    """Where its hierarchy may be mounted, below the root."""
    limits: tuple[str, ...]
    """Files that each hold a limit in bytes, or "max"."""
    usage: str
    """The file that holds the usage in bytes, page cache included."""
    reclaimable: tuple[str, ...]
    """Counters of page cache, that of all groups below included, in memory.stat."""


_VERSION_1 = _GroupFiles(
    mounts=("sys/fs/cgroup/memory",),
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    reclaimable=("total_inactive_file", "total_active_file"),
)
_VERSION_2 = _GroupFiles(
    mounts=("sys/fs/cgroup", "sys/fs/cgroup/unified"),
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    reclaimable=("inactive_file", "active_file"),
)


def free_memory_bytes(*, root: Path = _ROOT) -> int:
    """Return what this process may still use now, at least 0; `root` is where proc/ and sys/ are."""
    machine_bytes = int(psutil.virtual_memory().available)
    group_bytes = control_group_bytes(root)
    return max(0, machine_bytes if group_bytes is None else min(machine_bytes, group_bytes))


def control_group_bytes(root: Path = _ROOT) -> int | None:
    """Return what the tightest memory control group leaves, negative if it is exceeded; None if nothing limits it."""
    return min((left for folder, files in _group_folders(root) for left in _left_bytes(folder, files)), default=None)


def resident_memory_bytes() -> int:
    """Return the physical memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes(*, root: Path = _ROOT) -> int:
    """Return the most physical memory that this process ever held."""
    return max(resident_memory_bytes(), _recorded_peak_bytes(root))


def _recorded_peak_bytes(root: Path) -> int:
    # Linux's getrusage also remembers the program that started this one, from before it became this one.
    for line in read_system_file(root / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _group_folders(root: Path) -> Iterator[tuple[Path, _GroupFiles]]:
    """Yield this process's memory control groups that exist below `root`, from its own up to the top."""
    for line in read_system_file(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        files = _VERSION_1 if controllers else _VERSION_2
        # In a container the path may be the host's, of which only some end is mounted; what is not there has no files.
        path = PurePosixPath(*(part for part in PurePosixPath(group).parts if part not in ("/", "..")))
        for mount in files.mounts:
            for relative in (path, *path.parents):
                yield root / mount / relative, files


def _left_bytes(folder: Path, files: _GroupFiles) -> Iterator[int]:
    """Yield what each limit of a group leaves, page cache counted as free."""
    usage = _to_int(read_system_file(folder / files.usage))
    counters = dict(
        line.split(maxsplit=1) for line in read_system_file(folder / "memory.stat").splitlines() if " " in line
    )
    cached = sum(_to_int(counters.get(name, "")) or 0 for name in files.reclaimable)
    for name in files.limits:
        limit = _to_int(read_system_file(folder / name))
        if usage is not None and limit is not None and limit < _NO_LIMIT_BYTES:
            yield limit - usage + cached


def read_system_file(path: Path) -> str:
    """Return the text of a file of the kernel or a driver, or "" where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _to_int(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None
