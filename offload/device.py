"""The device that computes: which one, how much memory it has, and what a machine profile is kept under.

`auto`, `cpu`, or any accelerator type that torch knows here: everything goes through torch.accelerator and
torch.get_device_module, so CUDA, ROCm, XPU and devices that register themselves with torch under another name are all
the same. Only the driver's version, for which torch has no common call, is read from the vendors' own files.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from offload.free_memory import free_memory_bytes, read_system_file
from profiles.errors import BadInputError
from profiles.machine_profile import DeviceIdentity

_DEVICE = re.compile(r"([a-z][a-z0-9_]*)(?::([0-9]{1,4}))?", re.ASCII)
UNKNOWN_DRIVER = "unknown"
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device."""

    free_bytes: int
    total_bytes: int


def select_device(text: str) -> torch.device:
    """Return the device of `auto` (the accelerator if there is one, else the CPU), `cpu`, `TYPE` or `TYPE:INDEX`.

    Raises BadInputError, which says which devices there are.
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
    """Return memory of an accelerator, None if it does not say; of the CPU, what this process may use."""
    if device.type == "cpu":
        free = free_memory_bytes()
        return DeviceMemory(free, free)
    try:
        free, total = torch.accelerator.get_memory_info(device)
    except (RuntimeError, AttributeError, NotImplementedError, ValueError):
        return None  # a type without an allocator that torch can ask
    return DeviceMemory(int(free), int(total)) if total > 0 else None


def release_cached_memory() -> None:
    """Give back what torch's allocator keeps of freed tensors, which no device counts as free."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def wait_for_device(device: torch.device) -> None:
    """Block until the device has done all that was enqueued; on a CPU everything is done when it returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def has_float32_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch.mm takes matrices of `dtype` and gives float32: on CUDA, in two bytes, from torch 2.8 on."""
    is_cuda = device.type == "cuda" and torch.version.hip is None
    return is_cuda and dtype in (torch.bfloat16, torch.float16) and hasattr(torch.ops.aten.mm, "dtype")


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 itself: NVIDIA's before Ampere emulate it, at a crawl."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def keep_sums_in_float32(device: torch.device) -> None:
    """Let products in two bytes round their sums once, at the end, in this process: cuBLAS may round parts otherwise.

    Which parts it would round depends on the width of a pass, and with it a target's text on its tree.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def _current_index() -> int:
    return max(0, torch.accelerator.current_device_index())


def _found_here() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "torch finds no accelerator, so that leaves cpu"
    names = [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    return f"torch finds {', '.join(names)} and cpu"


def identify_device(device: torch.device, *, root: Path = _ROOT) -> DeviceIdentity:
    """Return type, name and driver of an accelerator; `root` is where proc/ and sys/ are."""
    driver = find_driver(root)
    return DeviceIdentity(device.type, device_name(device), "" if driver == UNKNOWN_DRIVER else driver)


def device_name(device: torch.device) -> str:
    """Return what the device's own module in torch calls it; its type if it has no name."""
    module = torch.get_device_module(device.type)
    if hasattr(module, "get_device_name"):
        return str(module.get_device_name(device.index))
    if hasattr(module, "get_device_properties"):
        return str(getattr(module.get_device_properties(device.index), "name", device.type))
    return device.type


def find_driver(root: Path = _ROOT) -> str:
    """Return the driver and its version, from the driver's own files or nvidia-smi; else UNKNOWN_DRIVER."""
    nvidia = read_system_file(root / "proc/driver/nvidia/version")
    if match := re.search(r"(\d+\.\d+(?:\.\d+)?)\s", nvidia.partition("Kernel Module")[2]):
        return f"NVIDIA {match[1]}"
    if version := read_system_file(root / "sys/module/amdgpu/version").strip():
        return f"amdgpu {version}"
    if program := shutil.which("nvidia-smi"):
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            return f"NVIDIA {asked.stdout.split()[0]}"
    return UNKNOWN_DRIVER


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread of the processor in here."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
