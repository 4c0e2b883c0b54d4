"""What the tokenizer's process may take, set by itself for itself: memory, computing time, files; nothing is written.

A definition that breaks a limit ends the process, or fails in it; the program that asked goes on either way.
"""

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from offload.checkpoint.border import MAX_VOCABULARY_BYTES, check_small_file
from offload.errors import CheckpointError

MEMORY_BYTES = 10**9
"""Beyond what the libraries take. Loading the largest vocabularies in use, of 262,144 tokens, takes 0.4 GB."""
WAITING_FACTOR = 12.0
"""A busy machine may take this many seconds for each one of computing."""
WAITING_SECONDS = 30.0
"""And this many more."""
_OPENING = frozenset(("open", "os.listdir", "os.scandir"))
_REFUSED = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.system")
_CHANGING = frozenset(
    f"os.{name}"
    for name in ("chmod", "chown", "link", "mkdir", "remove", "rename", "rmdir", "symlink", "truncate", "utime")
)
_DEVICES = ("/dev/null", "/dev/urandom")


def ignore_signals() -> None:
    """Leave Ctrl-C and the end of a service to the program that asked: the end of its pipe ends this process."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        with suppress(AttributeError, ValueError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def limit_memory(num_bytes: int) -> None:
    """Let this process grow by that much, and write no file, where the system has such limits."""
    if sys.platform == "win32":
        return
    import resource

    import psutil

    limit_bytes = psutil.Process().memory_info().vms + num_bytes
    limits = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_AS, limit_bytes))
    for kind, limit in limits:
        with suppress(OSError, ValueError):  # a system that has no such limit, or a lower one already
            resource.setrlimit(kind, (limit, limit))


@contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """End the process, without a word, if it computes for longer than that.

    Windows cannot tell computing from waiting: there it may wait for as long as on a busy machine.
    """
    if sys.platform == "win32":
        with Path(os.devnull).open("w") as nothing:
            waiting_seconds = seconds * WAITING_FACTOR + WAITING_SECONDS
            faulthandler.dump_traceback_later(waiting_seconds, exit=True, file=nothing)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


class FileGuard:
    """Lets Python's own code open the folder of the model that is loaded and Python's own files, and nothing else.

    No network, no other program. Names in tokenizer files cannot lead out of the folder even where a library joins
    them unseen. Once in force it stays, so that only the tokenizer's process has one.
    """

    def __init__(self) -> None:
        """Nothing is guarded before `start`."""
        own = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path} - {""}
        self._own = tuple(os.path.realpath(place) + os.sep for place in own)
        self._places: tuple[str, ...] = ()
        self._are_small = True

    def start(self) -> None:
        """Guard this process from now on."""
        sys.addaudithook(self._judge)

    @contextmanager
    def opened(self, places: Sequence[Path], *, are_small: bool = True) -> Iterator[None]:
        """Let `places` that are files, and files below, be read meanwhile: if they `are_small`, no large ones."""
        self._places = tuple(os.path.realpath(place) + os.sep for place in places)
        self._are_small = are_small
        try:
            yield
        finally:
            self._places, self._are_small = (), True

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPENING:
            self._judge_opening(event, arguments)
        elif event in _CHANGING or event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not for a tokenizer")

    def _judge_opening(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):  # a descriptor that is open already
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError("a tokenizer writes no file")
        name = os.path.realpath(os.fsdecode(path))
        if f"{name}{os.sep}".startswith(self._places):
            if event == "open" and self._are_small:
                self._weigh(Path(name))
        elif name not in _DEVICES and not f"{name}{os.sep}".startswith(self._own):
            raise PermissionError(f"{name} lies outside the model folder")

    def _weigh(self, path: Path) -> None:
        try:
            check_small_file(path, max_bytes=MAX_VOCABULARY_BYTES)
        except CheckpointError as error:
            raise PermissionError(str(error)) from error
