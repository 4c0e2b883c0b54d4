"""How engines, rings and pinners end: closed by `with`, and given up on where a disk or a device never answers."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

PATIENCE_SECONDS = 30.0
"""No block of a layer takes nearly as long, on any disk that works."""


class Closeable(ABC):
    """A context manager that closes itself at the end of the block, whatever happened inside."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held; may be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Patience(threading.Event):
    """An event for `PendingCopy.wait` that is set once its time is up; `set` ends it earlier."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._deadline = clock() + seconds

    @property
    def seconds_left(self) -> float:
        """Seconds until the time is up, at least 0."""
        return 0.0 if super().is_set() else max(0.0, self._deadline - self._clock())

    def is_set(self) -> bool:
        """Return whether the time is up."""
        return self.seconds_left == 0.0

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the time is up, or for `timeout` seconds; return whether it is up."""
        left = self.seconds_left
        super().wait(left if timeout is None else min(timeout, left))
        return self.is_set()
