"""Times a product the way that start-up can afford: a few repeats, the fastest counts.

Which kernel wins depends on the processor by more than ten times, so nothing is decided by its name. Knows no formats.
"""

import time
from collections.abc import Callable

import torch

DRAFT_WIDTHS = (1, 4, 8, 16)
"""Rows of the products that a draft step makes; what is fastest over these is the fastest for drafts."""


CHOICE_REPEATS = 12
"""Runs behind a choice that is kept: the fastest of them is steady even while others use the processor."""


def fastest_seconds(action: Callable[[], object], *, repeats: int = 4, device: torch.device | None = None) -> float:
    """Seconds of the fastest of `repeats` runs; on any device but a CPU, until its work is done."""
    seconds = []
    for _ in range(repeats):
        _wait_for(device)
        start = time.perf_counter()
        action()
        _wait_for(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type != "cpu":
        torch.accelerator.synchronize(device)
