"""Measures the machine that the program runs on: what it is and can do, for `doctor`, and how fast, for `plan`.

Every accelerator is asked through torch.accelerator and its device module, so no kind of device is named but in the
places where a driver leaves its version. Writes one temporary file where there is no model to read.
"""

import os
import platform
import re
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import get_args

import psutil
import torch

from offload.checkpoint.hub_download import HuggingFaceHub, free_disk_bytes
from offload.checkpoint.layer_layout import SlabRange
from offload.copying.rates import measure_copy_rate, measure_raw_link
from offload.device import device_memory, device_name, find_driver, has_bfloat16, identify_device, select_device
from offload.errors import BudgetError, LinkError
from offload.formats.draft_weight import HeldFormat, draft_converter, fastest_format, has_fused_nf4
from offload.formats.four_bit import FourBitWeight
from offload.formats.int8 import Int8RowsWeight
from offload.formats.packed import pack_matrix
from offload.formats.stored_sizes import PACKED
from offload.formats.weight_format import DenseWeight, StoredWeight, UpcastScratch, fastest_seconds
from offload.free_memory import control_group_bytes, free_memory_bytes
from offload.pinning.pin_budget import find_pin_budget
from offload.units import LinkSpeed, format_bytes
from profiles.errors import OverstoryError, ProfileError
from profiles.profile_store import load_machine_profile
from runtime.engine.model_folders import weight_files
from runtime.fit.machine import Basis, DeviceSpeed, Link, Machine, stored_speeds

PACKAGES = ("transformers", "bitsandbytes", "accelerate", "safetensors", "textual", "psutil")
SAMPLE_BYTES = 256 << 20
"""Size of the temporary file that the disk is measured with."""
SIDE = 3072
"""Rows and columns of the matrix that is multiplied: its 38 MB in float32 lie in no processor's own caches."""
ACCELERATOR_SIDE = 8192
WIDE_ROWS = 128
"""Rows of a wide product: enough that multiplying takes longer than reading the weights."""
_MEASURED_SECONDS = 1.5
_ROOT = Path("/")
_LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver for each major version of CUDA."""
_WHEELS = {580: "cu130", 525: "cu126"}
"""PyTorch's index for drivers from each version on, the newest first."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device, and its memory if it says how much it has."""

    address: str
    """As `--device` takes it: cpu, cuda:0."""
    name: str
    """As its maker calls it."""
    free_bytes: int | None = None
    total_bytes: int | None = None

    def __str__(self) -> str:
        free, total = self.free_bytes, self.total_bytes
        memory = "" if free is None or total is None else f", {format_bytes(free)} free of {format_bytes(total)}"
        return f"{self.address}: {self.name}{memory}"


@dataclass(frozen=True, slots=True)
class CacheSpace:
    """A folder that downloads go to, which may not exist yet."""

    purpose: str
    folder: str
    free_bytes: int | None
    """Free bytes on its disk; None if the system does not say."""

    def __str__(self) -> str:
        free = "an unknown amount" if self.free_bytes is None else format_bytes(self.free_bytes)
        return f"{free} free for {self.purpose} in {self.folder}"


@dataclass(frozen=True, slots=True)
class MachineProbes:
    """What can be asked about this machine; every answer may fail by itself, with any exception."""

    device: torch.device
    """The device that would be used."""
    cache_folder: Path
    """This program's folder, which may not exist yet."""
    model_folder: Path | None = None
    """Folder of a model whose files the disk is measured with."""
    root: Path = _ROOT
    """Where proc/ and sys/ are."""

    def system(self) -> str:
        """Return the operating system, and whether it is WSL2."""
        name = f"{platform.system()} {platform.release()} ({platform.machine()})"
        return f"{name}, WSL2" if "microsoft" in platform.release().lower() else name

    def versions(self) -> Mapping[str, str]:
        """Return the version of each program or package."""
        found = {"python": platform.python_version(), "torch": f"{torch.__version__} ({built_for()})"}
        for package in PACKAGES:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "not installed"
        return found

    def setup(self) -> Sequence[str]:
        """Return what is set up so that this machine does less than it could, with the next step, a sentence each."""
        return [text for text in (_wrong_wheel(self.driver()), _small_guest(self.root)) if text is not None]

    def devices(self) -> Sequence[DeviceFacts]:
        """Return every device, the one that would be used first."""
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        found = [DeviceFacts("cpu", _processor_name(self.root))]
        if accelerator is not None:
            devices = [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
            found = [*map(_device_facts, devices), *found]
        return sorted(found, key=lambda facts: facts.address != str(self.device))

    def driver(self) -> str:
        """Return the accelerator's driver."""
        return find_driver(self.root)

    def memory(self) -> Machine:
        """Return the memory of device, host and disk, with no link yet. Raises BudgetError."""
        return replace(
            find_memory(self.device, root=self.root),
            disk_free_bytes=free_disk_bytes(HuggingFaceHub().cache_folder()),
            group_left_bytes=control_group_bytes(self.root),
        )

    def pinning(self) -> str:
        """Return how much host memory can be pinned, in a sentence."""
        if self.device.type == "cpu":
            return "not needed: the CPU reads host memory as it is"
        return find_pin_budget(self.device, self.cache_folder).explain()

    def links(self) -> Sequence[Link]:
        """Measure copies to an accelerator, the fastest way first, or from memory to memory where there is none."""
        speed = LinkSpeed(measure_copy_rate(self.device))
        if self.device.type == "cpu":
            return [Link(speed, Basis.MEASURED, "memory to memory")]
        pageable = Link(speed, Basis.MEASURED, "from pageable host memory")
        try:
            pinned_speed = LinkSpeed(measure_copy_rate(self.device, is_pinned=True))
        except RuntimeError as error:  # the driver refuses to pin 64 MB
            problem = f"pinned memory was not measured: {' '.join(str(error).split())}"
            return [replace(pageable, source=f"{pageable.source}; {problem}")]
        return [Link(pinned_speed, Basis.MEASURED, "from pinned host memory"), pageable]

    def disk(self) -> Link:
        """Measure reads of the model's files, or of a temporary one. Raises LinkError."""
        if self.model_folder is not None:
            return _measured_disk(weight_files(self.model_folder), where=self.model_folder)
        with _sample_file(self.cache_folder) as file:
            return _measured_disk([file], where=self.cache_folder)

    def speed(self) -> DeviceSpeed:
        """Measure what computing costs on the device."""
        return measure_speed(self.device)

    def caches(self) -> Sequence[CacheSpace]:
        """Return where downloads go."""
        folders = {"models of the hub": HuggingFaceHub().cache_folder(), "overstory": self.cache_folder}
        return [CacheSpace(purpose, str(path), free_disk_bytes(path)) for purpose, path in folders.items()]


def find_memory(device: torch.device, *, budget_bytes: int | None = None, root: Path = _ROOT) -> Machine:
    """Return this machine with its memory as it is now, and `budget_bytes` as the device's budget.

    Raises:
        BudgetError: an accelerator does not say how much it has, and no budget says it either.
    """
    on_device = None if device.type == "cpu" else device_memory(device)
    device_free_bytes = None if on_device is None else on_device.free_bytes
    if device.type != "cpu" and on_device is None:
        if budget_bytes is None:
            raise BudgetError(
                f"the device {device} does not say how much memory is free; give --device-memory, as in 10GB, to run "
                "on it"
            )
        device_free_bytes = budget_bytes or 1 << 62
    return Machine(
        host_total_bytes=int(psutil.virtual_memory().total),
        host_free_bytes=free_memory_bytes(root=root),
        device_free_bytes=device_free_bytes,
        device_budget_bytes=budget_bytes,
        has_fused_nf4=device.type != "cpu" and has_fused_nf4(device),
    )


def this_machine(device: str, *, cache_folder: Path, model_folder: Path | None = None) -> Generator[str, None, Machine]:
    """Return this machine with links and speed, which its stored profile says or which are measured now.

    Yields what it is about to measure; `model_folder` has files that the disk can be measured with.

    Raises:
        BadInputError: there is no such device, or it does not say how much memory it has.
    """
    chosen = select_device(device)
    probes = MachineProbes(chosen, cache_folder, model_folder=model_folder)
    machine = probes.memory()
    link, disk = _stored_links(chosen, cache_folder)
    yield "measuring copies"
    if machine.is_cpu:
        link = None
    elif link is None:
        try:
            link = probes.links()[0]
        except RuntimeError as error:
            raise OverstoryError(f"the link to {chosen} could not be measured; give its rate with --link") from error
        link = replace(link, source=f"copies {link.source}, just now")
    yield "measuring the disk"
    if disk is None:
        with suppress(OverstoryError, OSError):  # no room for the sample, or not ours to write
            disk = probes.disk()
            disk = replace(disk, source=f"reads {disk.source}, just now")
    yield "measuring products"
    return replace(
        machine,
        name="this machine's processor" if machine.is_cpu else device_name(chosen),
        identity=identify_device(chosen),
        link=link,
        disk=disk,
        speed=measure_speed(chosen),
    )


def measure_speed(device: torch.device, *, side: int | None = None) -> DeviceSpeed:
    """Return what a pass and a draft step cost on `device`, a weight and an operation at a time, within seconds.

    The products are those that a session runs, of one square matrix in every format, once narrow and once wide.
    Attention, kernel launches and busy cores are not in it: `calibrate` measures them.
    """
    is_cpu = device.type == "cpu"
    side = side or (SIDE if is_cpu else ACCELERATOR_SIDE)
    # As a session computes: see LoadPlan.
    compute = torch.float32 if is_cpu else torch.bfloat16 if has_bfloat16(device) else torch.float16
    memory_rate = _memory_rate(device, side)  # before there is anything else in memory
    scratch = UpcastScratch(compute, device)
    matrix = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    nf4 = FourBitWeight.quantize(matrix, device=device)
    stored: dict[str, StoredWeight] = {
        "bfloat16": DenseWeight(matrix),
        "float16": DenseWeight(matrix.to(torch.float16)),
        "float32": DenseWeight(matrix.to(torch.float32)),
        "int8": Int8RowsWeight.quantize(matrix),
        "nf4": nf4,
        PACKED: pack_matrix(matrix),
    }
    targets = {name: weight.to(device) for name, weight in stored.items()}

    def seconds(weight: StoredWeight, num_rows: int) -> float:
        inputs = torch.ones(num_rows, side, dtype=compute, device=device)
        return fastest_seconds(partial(weight.linear, inputs, None, scratch), repeats=6, device=device)

    def held(name: HeldFormat) -> StoredWeight:
        weight = replace(nf4, is_fast=True) if name == "nf4" else DenseWeight(matrix, is_fast=True)
        return draft_converter(name, compute, device)(weight)

    narrow = {name: side**2 / seconds(weight, 1) for name, weight in targets.items()}
    flops = 2 * side**2 * WIDE_ROWS / seconds(targets["bfloat16"], WIDE_ROWS)
    return DeviceSpeed(
        target_weights_per_second=narrow,
        draft_weights_per_second={name: side**2 / seconds(held(name), 1) for name in get_args(HeldFormat)},
        flops=flops,
        memory_bytes_per_second=memory_rate,
        basis=Basis.MEASURED,
        source=(
            f"products of one {side} x {side} matrix: {narrow['bfloat16'] / 1e9:.2f} G weights/s in bf16 with 1 row, "
            f"{flops / 1e9:.0f} GFLOPS with {WIDE_ROWS}"
        ),
        compute_item_bytes=compute.itemsize,
        fastest_draft=fastest_format(compute, device) if is_cpu else None,
    )


def _memory_rate(device: torch.device, side: int) -> float:
    """Return bytes a second that the device reads of its own memory; a copy reads and writes."""
    if device.type == "cpu":
        return measure_copy_rate(device)
    source = torch.empty(2 * side**2, dtype=torch.uint8, device=device)
    return 2 * source.numel() / fastest_seconds(source.clone, device=device)


def built_for() -> str:
    """Return which devices this torch was built for."""
    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "XPU": getattr(torch.version, "xpu", None)}
    return ", ".join(f"{name} {version}" for name, version in kinds.items() if version) or "CPU only"


def _wrong_wheel(driver: str) -> str | None:
    """Say that torch cannot use the NVIDIA card whose `driver` is here, and which torch could; None where it can."""
    found = re.match(r"NVIDIA (\d+)", driver)
    is_other = any(getattr(torch.version, kind, None) for kind in ("hip", "xpu"))
    if found is None or is_other or torch.accelerator.is_available():
        return None
    version = int(found[1])
    wheel = next((name for least, name in _WHEELS.items() if version >= least), None)
    command = f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{wheel}"
    if torch.version.cuda is None:
        step = "update the driver first" if wheel is None else command
        return f"the driver is {driver}, but this torch was built for the CPU only: {step}"
    least = _LEAST_DRIVERS.get(int(torch.version.cuda.split(".")[0]), 0)
    if version >= least:
        return None
    step = "update the driver" if wheel is None else f"update the driver, or {command}"
    built = f"this torch was built for CUDA {torch.version.cuda}, which needs NVIDIA {least}"
    return f"{built}; the driver is {driver}: {step}"


def _small_guest(root: Path) -> str | None:
    """Say where WSL2 gives this guest the half of the memory that it gives by default; None where somebody chose."""
    if "microsoft" not in platform.release().lower():
        return None
    for file in root.glob("mnt/c/Users/*/.wslconfig"):
        with suppress(OSError):
            if re.search(r"^\s*memory\s*=", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE | re.I):
                return None
    total = int(psutil.virtual_memory().total)
    return (
        f"WSL2 gives this guest {format_bytes(total)}, half of the machine's memory unless told otherwise: write "
        f"[wsl2] and memory={round(1.5 * total / 2**30)}GB into .wslconfig in your Windows user folder, then run "
        "wsl --shutdown there"
    )


def _device_facts(device: torch.device) -> DeviceFacts:
    memory = device_memory(device)
    if memory is None:
        return DeviceFacts(str(device), device_name(device))
    return DeviceFacts(str(device), device_name(device), memory.free_bytes, memory.total_bytes)


def _processor_name(root: Path) -> str:
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            name = match[1].strip()
    return f"{name}, {psutil.cpu_count() or 'unknown number of'} cores"


def _stored_links(device: torch.device, folder: Path) -> tuple[Link | None, Link | None]:
    """Return link and disk as the machine's profile in `folder` knows them."""
    try:
        profile = load_machine_profile(folder, identify_device(device))
    except ProfileError:  # of another driver, or damaged: everything is measured
        profile = None
    words = "" if profile is None else f"machine profile of {profile.measured_at.isoformat()}"
    link, disk = (None if speed is None else Link(speed, Basis.MEASURED, words) for speed in stored_speeds(profile))
    return link, disk


def _measured_disk(files: Sequence[Path], *, where: Path) -> Link:
    ranges = [SlabRange(file, 0, file.stat().st_size, 0) for file in files if file.stat().st_size]
    if not ranges:
        raise LinkError(f"{where} holds no weights to measure the disk with")
    measured = measure_raw_link(ranges, max_seconds=_MEASURED_SECONDS)
    way = "past the page cache" if measured.is_direct else "through the page cache, so perhaps the speed of memory"
    return Link(LinkSpeed(measured.bytes_per_second), Basis.MEASURED, f"{way}, in {where}")


@contextmanager
def _sample_file(folder: Path) -> Iterator[Path]:
    """Make a file of random bytes that is on the disk, not only in the page cache; gone afterwards."""
    free = free_disk_bytes(folder)
    if free is not None and free < 4 * SAMPLE_BYTES:
        raise LinkError(f"the disk of {folder} is nearly full, so it was not measured")
    folder.mkdir(parents=True, exist_ok=True)
    block = os.urandom(SAMPLE_BYTES // 16)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="disk-speed-") as file:
        file.writelines([block] * 16)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)
