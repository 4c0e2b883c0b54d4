"""Which process writes an answer or a draft: a token that names it among all, and whether it still runs."""

import os

_CLOCK_SECONDS = 10.0
"""A process's start time is derived from the system's clock, which may have been set since."""


def writer_token() -> str:
    """Name this process among all that ever ran on this machine: its number is used again, its start time not."""
    import psutil  # here, since an app that only shows old conversations needs none of it

    return f"{os.getpid()} {psutil.Process().create_time():.2f}"


def is_writing(token: str) -> bool:
    """Return whether the process that the token names still runs; False for what is no token."""
    import psutil

    try:
        number, started_at = token.split()
        process = psutil.Process(int(number))
        is_same = abs(process.create_time() - float(started_at)) < _CLOCK_SECONDS
        return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except (ValueError, OverflowError, psutil.Error):
        return False
