"""How fast bytes get from host memory to a device, or, where the CPU is the device, from memory to memory.

The simplest loop that could be, as a yardstick: one buffer copied over and over, timed from outside. Goes through
torch.accelerator, so it knows no kind of device.
"""

import time
from collections.abc import Callable

import torch

COPY_BYTES = 64 << 20
"""Large enough that starting a copy costs nothing beside it."""
_NUM_COPIES = 8


def measure_copy_rate(
    device: torch.device,
    *,
    is_pinned: bool = False,
    num_bytes: int = COPY_BYTES,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[torch.device], None] | None = None,
) -> float:
    """Bytes per second of copies of `num_bytes` from host memory, pinned or pageable, to `device`.

    `synchronize` waits for the device; by default torch's own. Raises RuntimeError where memory cannot be had.
    """
    if synchronize is None:
        synchronize = _do_nothing if device.type == "cpu" else torch.accelerator.synchronize
    source = torch.full((num_bytes,), 1, dtype=torch.uint8)  # written, or every page would be the same page of zeros
    if is_pinned:
        source = source.pin_memory()
    target = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target.copy_(source, non_blocking=is_pinned)
    synchronize(device)
    began = clock()
    for _ in range(_NUM_COPIES):
        target.copy_(source, non_blocking=is_pinned)
    synchronize(device)
    return _NUM_COPIES * num_bytes / max(clock() - began, 1e-9)


def _do_nothing(device: torch.device) -> None:
    """A copy on the CPU is done when it returns."""
