"""Bytes on both sides of the simulated device's link, and a speed for it, for the checks of what happens to them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tests.support import simulated_device as sim

MIB = 1 << 20


@contextmanager
def link_speed(bytes_per_second: float) -> Iterator[None]:
    sim.set_copy_bytes_per_second(bytes_per_second)
    try:
        yield
    finally:
        sim.set_copy_bytes_per_second(None)


def pinned(num_bytes: int, value: int) -> torch.Tensor:
    return torch.full((num_bytes,), value, dtype=torch.uint8).pin_memory()


def slot_of(num_bytes: int) -> torch.Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8, device="sim:0")
