"""Which device this is, in the words of its driver: what a machine profile is kept under.

The only place that names vendors: torch has no common way to ask for a driver's version, so the driver's own files are
read. Measures nothing.
"""

import re
import shutil
import subprocess
from pathlib import Path

import torch

from profiles.machine_profile import DeviceIdentity

UNKNOWN_DRIVER = "unknown"
_ROOT = Path("/")


def identify_device(device: torch.device, *, root: Path = _ROOT) -> DeviceIdentity:
    """Type, name and driver of an accelerator; `root` is where proc/ and sys/ are."""
    driver = find_driver(root)
    return DeviceIdentity(device.type, device_name(device), "" if driver == UNKNOWN_DRIVER else driver)


def device_name(device: torch.device) -> str:
    """What the device's own module in torch calls it; its type if it has no name."""
    module = torch.get_device_module(device.type)
    if hasattr(module, "get_device_name"):
        return str(module.get_device_name(device.index))
    if hasattr(module, "get_device_properties"):
        return str(getattr(module.get_device_properties(device.index), "name", device.type))
    return device.type


def find_driver(root: Path = _ROOT) -> str:
    """The accelerator's driver and its version, from the driver's own files or nvidia-smi; else UNKNOWN_DRIVER."""
    nvidia = _read_text(root / "proc/driver/nvidia/version")
    if match := re.search(r"(\d+\.\d+(?:\.\d+)?)\s", nvidia.partition("Kernel Module")[2]):
        return f"NVIDIA {match[1]}"
    if version := _read_text(root / "sys/module/amdgpu/version").strip():
        return f"amdgpu {version}"
    if program := shutil.which("nvidia-smi"):
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            return f"NVIDIA {asked.stdout.split()[0]}"
    return UNKNOWN_DRIVER


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
