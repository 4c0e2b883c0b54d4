"""The real machine for `doctor`: what torch, psutil, the driver's files and two short measurements say.

Every accelerator is asked through torch.accelerator and its device module, so no kind of device is named but in the
places where a driver leaves its version. Writes one temporary file where there is no model to read.
"""

import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch

from offload.checkpoint.hub_download import HuggingFaceHub, free_disk_bytes
from offload.checkpoint.layer_layout import SlabRange
from offload.copying.rates import measure_copy_rate, measure_raw_link
from offload.device import device_memory, device_name, find_driver
from offload.errors import LinkError
from offload.memory import control_group_bytes, free_memory_bytes
from offload.pinning.pin_budget import find_pin_budget
from runtime.fit.doctor import CacheSpace, DeviceFacts, DiskRate, HostMemory, LinkRates
from runtime.fit.place import MachineMemory

PACKAGES = ("transformers", "bitsandbytes", "accelerate", "safetensors", "textual", "psutil")
SAMPLE_BYTES = 256 << 20
"""Of the temporary file that the disk is measured with."""
_MEASURED_SECONDS = 1.5
_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class MachineProbes:
    """See `runtime.fit.doctor.Probes`."""

    device: torch.device
    """The one that would be used."""
    cache_folder: Path
    """Of this program; may not exist yet."""
    model_folder: Path | None = None
    """A model whose files the disk is measured with."""
    root: Path = _ROOT
    """Where proc/ and sys/ are."""

    def system(self) -> str:
        """See Probes."""
        name = f"{platform.system()} {platform.release()} ({platform.machine()})"
        return f"{name}, WSL2" if "microsoft" in platform.release().lower() else name

    def versions(self) -> Mapping[str, str]:
        """See Probes."""
        found = {"python": platform.python_version(), "torch": f"{torch.__version__} ({built_for()})"}
        for package in PACKAGES:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "not installed"
        return found

    def devices(self) -> Sequence[DeviceFacts]:
        """See Probes."""
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        found = [DeviceFacts("cpu", _processor_name(self.root), None, None)]
        if accelerator is not None:
            devices = [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
            found = [*map(_device_facts, devices), *found]
        return sorted(found, key=lambda facts: facts.address != str(self.device))

    def driver(self) -> str:
        """See Probes."""
        return find_driver(self.root)

    def memory(self) -> HostMemory:
        """See Probes."""
        on_device = None if self.device.type == "cpu" else device_memory(self.device)
        if self.device.type != "cpu" and on_device is None:
            raise LinkError(f"{self.device} does not say how much memory it has; give --device-memory when running")
        machine = MachineMemory(
            host_total_bytes=int(psutil.virtual_memory().total),
            host_free_bytes=free_memory_bytes(root=self.root),
            device_total_bytes=None if on_device is None else on_device.total_bytes,
            device_free_bytes=None if on_device is None else on_device.free_bytes,
            disk_free_bytes=free_disk_bytes(HuggingFaceHub().cache_folder()),
        )
        return HostMemory(machine, control_group_bytes(self.root))

    def pinning(self) -> str:
        """See Probes."""
        if self.device.type == "cpu":
            return "not needed: the CPU reads host memory as it is"
        budget = find_pin_budget(self.device, self.cache_folder)
        return budget.explain()

    def link(self) -> LinkRates:
        """See Probes."""
        if self.device.type == "cpu":
            return LinkRates(memory_bytes_per_second=measure_copy_rate(self.device))
        pageable = measure_copy_rate(self.device)
        try:
            pinned = measure_copy_rate(self.device, is_pinned=True)
        except RuntimeError as error:  # the driver refuses to pin 64 MB
            return LinkRates(pageable_bytes_per_second=pageable, problem=" ".join(str(error).split()))
        return LinkRates(pinned_bytes_per_second=pinned, pageable_bytes_per_second=pageable)

    def disk(self) -> DiskRate:
        """See Probes."""
        if self.model_folder is not None:
            files = sorted(self.model_folder.glob("*.safetensors"))
            return _disk_rate(files, where=self.model_folder)
        with _sample_file(self.cache_folder) as file:
            return _disk_rate([file], where=self.cache_folder)

    def caches(self) -> Sequence[CacheSpace]:
        """See Probes."""
        folders = {"models of the hub": HuggingFaceHub().cache_folder(), "overstory": self.cache_folder}
        return [CacheSpace(purpose, str(path), free_disk_bytes(path)) for purpose, path in folders.items()]


def built_for() -> str:
    """Which devices this torch was built for."""
    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "XPU": getattr(torch.version, "xpu", None)}
    return ", ".join(f"{name} {version}" for name, version in kinds.items() if version) or "CPU only"


def _device_facts(device: torch.device) -> DeviceFacts:
    memory = device_memory(device)
    return DeviceFacts(
        str(device),
        device_name(device),
        None if memory is None else memory.free_bytes,
        None if memory is None else memory.total_bytes,
    )


def _processor_name(root: Path) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read_text(root / "proc/cpuinfo"), re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    return f"{name}, {psutil.cpu_count() or 'unknown number of'} cores"


def _disk_rate(files: Sequence[Path], *, where: Path) -> DiskRate:
    ranges = [SlabRange(file, 0, file.stat().st_size, 0) for file in files if file.stat().st_size]
    if not ranges:
        raise LinkError(f"{where} holds no safetensors file to measure the disk with")
    measured = measure_raw_link(ranges, max_seconds=_MEASURED_SECONDS)
    return DiskRate(measured.bytes_per_second, measured.is_direct, str(where))


@contextmanager
def _sample_file(folder: Path) -> Iterator[Path]:
    """A file of random bytes that is on the disk, not only in the page cache; gone afterwards."""
    free = free_disk_bytes(folder)
    if free is not None and free < 4 * SAMPLE_BYTES:
        raise LinkError(f"the disk of {folder} is nearly full, so it was not measured")
    folder.mkdir(parents=True, exist_ok=True)
    block = os.urandom(SAMPLE_BYTES // 16)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="disk-speed-", delete=False) as file:
        path = Path(file.name)
        try:
            for _ in range(16):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            yield path
        finally:
            file.close()
            path.unlink(missing_ok=True)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
