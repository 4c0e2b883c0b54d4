"""Which device computes, and how much memory it has: `auto`, `cpu`, or any accelerator type that torch knows here.

Everything goes through torch.accelerator and torch.get_device_module, so CUDA, ROCm, XPU and devices that register
themselves with torch under another name are all the same. Allocates nothing.
"""

import re
from dataclasses import dataclass

import torch

from offload.memory_budget import free_memory_bytes
from profiles.errors import BadInputError

_DEVICE = re.compile(r"([a-z][a-z0-9_]*)(?::([0-9]{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device."""

    free_bytes: int
    """What can still be allocated there."""
    total_bytes: int
    """All of it."""


def select_device(text: str) -> torch.device:
    """The device of `auto` (the accelerator if there is one, else the CPU), `cpu`, `TYPE` or `TYPE:INDEX`.

    Raises:
        BadInputError: there is no such device here; says which there are.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if text == "auto":
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, _current_index())
    match = _DEVICE.fullmatch(text)
    if match is None:
        raise BadInputError(
            f"'{text}' is not a device: write auto, cpu, or a type and perhaps an index, as in cuda:0; {_found_here()}."
        )
    kind, index = match[1], match[2]
    if kind == "cpu":
        return torch.device("cpu")
    if accelerator is None or kind != accelerator.type:
        raise BadInputError(f"there is no device of type '{kind}' here; {_found_here()}.")
    chosen = _current_index() if index is None else int(index)
    if chosen >= torch.accelerator.device_count():
        raise BadInputError(f"there is no device {kind}:{chosen} here; {_found_here()}.")
    return torch.device(kind, chosen)


def device_memory(device: torch.device) -> DeviceMemory | None:
    """Free and total memory of an accelerator; None if it does not say. For the CPU, what this process may use."""
    if device.type == "cpu":
        free = free_memory_bytes()
        return DeviceMemory(free, free)
    try:
        free, total = torch.accelerator.get_memory_info(device)
    except (RuntimeError, AttributeError, NotImplementedError, ValueError):
        return None  # a type without an allocator that torch can ask
    return DeviceMemory(int(free), int(total)) if total > 0 else None


def _current_index() -> int:
    return max(0, torch.accelerator.current_device_index())


def _found_here() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "torch finds no accelerator, so that leaves cpu"
    names = [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    return f"torch finds {', '.join(names)} and cpu"
