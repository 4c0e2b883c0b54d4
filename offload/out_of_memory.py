"""Memory that runs out, recognised in all the ways in which hosts and devices say so, and made one sentence.

Whoever allocates knows what for; the next step is the same for all of them. Allocates nothing.
"""

import errno
from collections.abc import Generator
from contextlib import contextmanager

import torch

from offload.errors import BudgetError

_ON_THE_HOST = "can't allocate memory"  # how torch's own allocator for the processor says it


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed for want of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", _ON_THE_HOST)
    )


@contextmanager
def explained_shortage(purpose: str) -> Generator[None, None, None]:
    """Raise BudgetError, chained to the cause, where memory runs out inside; `purpose` says what it was wanted for."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        is_host = isinstance(error, OSError | MemoryError) or _ON_THE_HOST in str(error).lower()
        place, users = ("host memory", "programs") if is_host else ("the device's memory", "programs that use it")
        budgets = "--device-memory or --host-memory" if is_host else "--device-memory"
        raise BudgetError(
            f"{place} has no room for {purpose}; close other {users}, or give a smaller {budgets}, draft or --context"
        ) from error
