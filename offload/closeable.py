"""What a `with` statement closes: engines, rings and pinners end by their own `close`."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closeable(ABC):
    """A context manager that is closed at its end, whatever happened inside."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
