import platform
from datetime import date
from types import SimpleNamespace

import psutil
import pytest
import torch

from offload.device import DeviceMemory
from offload.errors import BudgetError, LinkError
from offload.pinning.pin_probe import PinBudget
from offload.units import LinkSpeed
from profiles.errors import OverstoryError
from profiles.machine_profile import PinBudgetSource
from profiles.profile_store import profile_path, save_profile
from runtime.fit import probes as module
from runtime.fit.machine import Basis, Machine
from runtime.fit.probes import MachineProbes, built_for, find_memory, measure_speed, this_machine
from tests.support.doctor_fakes import finished, link
from tests.support.plan_fakes import device_speed
from tests.support.profile_factory import DEVICE, machine_profile

CPU = torch.device("cpu")
META = torch.device("meta")
GPU = torch.device("cuda", 0)


@pytest.fixture
def probes(tmp_path):
    return MachineProbes(CPU, tmp_path / "cache", root=tmp_path / "root")


@pytest.fixture
def on_meta(tmp_path, monkeypatch):
    """An accelerator with a device module, as far as the probes can tell."""
    named = SimpleNamespace(get_device_name=lambda index: "Some Card")
    monkeypatch.setattr(torch, "get_device_module", lambda kind: named)
    monkeypatch.setattr(module, "device_memory", lambda device: DeviceMemory(6_000, 8_000))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: META)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    return MachineProbes(torch.device("meta", 1), tmp_path / "cache", root=tmp_path / "root")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_wsl2_is_named(probes, monkeypatch):
    monkeypatch.setattr(platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    assert probes.system().endswith("WSL2")
    monkeypatch.setattr(platform, "release", lambda: "6.1.0")
    assert "WSL2" not in probes.system()


def test_a_package_that_is_missing_is_said(probes, monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("psutil", "no-such-package-here"))
    versions = probes.versions()
    assert versions["psutil"] == psutil.__version__ and versions["no-such-package-here"] == "not installed"
    assert versions["torch"].startswith(torch.__version__)


@pytest.fixture
def torch_for(monkeypatch):
    """Pretends that torch was built for this CUDA (None: for the processor), and finds no card."""

    def pretend(cuda):
        for name, version in (("cuda", cuda), ("hip", None), ("xpu", None)):
            monkeypatch.setattr(torch.version, name, version, raising=False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)

    monkeypatch.setattr(platform, "release", lambda: "6.1.0")
    return pretend


@pytest.mark.parametrize(
    ("driver", "cuda", "expected"),
    [
        ("580.65.06", None, ["built for the CPU only: pip install --force-reinstall torch", "whl/cu130"]),
        ("551.23", None, ["built for the CPU only: pip install --force-reinstall torch", "whl/cu126"]),
        ("470.82", None, ["built for the CPU only: update the driver first"]),
        ("551.23", "13.0", ["built for CUDA 13.0, which needs NVIDIA 580; the driver is NVIDIA 551.23: ", "whl/cu126"]),
        ("470.82", "12.6", ["which needs NVIDIA 525; the driver is NVIDIA 470.82: update the driver"]),
        ("580.65.06", "13.0", []),  # something else is wrong: the driver was not loaded, or the card is gone
        ("525.60.13", "12.8", []),
        (None, None, []),
    ],
)
def test_a_torch_that_cannot_use_the_card_is_told_with_the_one_that_can(probes, torch_for, driver, cuda, expected):
    """`pip install torch` is the processor's on Windows, and `auto` then silently means the processor."""
    torch_for(cuda)
    if driver is not None:
        line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue Jul 15 19:51:34 UTC 2025"
        write(probes.root / "proc/driver/nvidia/version", line)
    said = probes.setup()
    assert len(said) == (1 if expected else 0) and all(words in said[0] for words in expected)


def test_a_card_that_torch_uses_needs_no_other_torch(probes, torch_for, monkeypatch):
    torch_for(None)
    write(probes.root / "proc/driver/nvidia/version", "Kernel Module  580.65.06  x")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert probes.setup() == []


def test_half_of_the_memory_under_wsl2_is_told_unless_somebody_chose(probes, torch_for, monkeypatch):
    torch_for(None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 << 30))
    assert probes.setup() == []
    monkeypatch.setattr(platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    (said,) = probes.setup()
    assert "WSL2 gives this guest 34.4 GB, half of" in said and "memory=48GB into .wslconfig" in said
    config = probes.root / "mnt/c/Users/someone/.wslconfig"
    write(config, "[wsl2]\nprocessors=8\n# memory=8GB\n")
    assert len(probes.setup()) == 1
    write(config, "[wsl2]\nMemory = 48GB\n")
    assert probes.setup() == []


def test_what_torch_was_built_for(monkeypatch):
    for name in ("cuda", "hip", "xpu"):
        monkeypatch.setattr(torch.version, name, None, raising=False)
    assert built_for() == "CPU only"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert built_for() == "CUDA 13.0"


def test_a_machine_without_accelerator_is_its_processor(probes, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    write(tmp_path / "root/proc/cpuinfo", "processor : 0\nmodel name\t: Some Processor\nprocessor : 1\n")
    (facts,) = probes.devices()
    assert facts.address == "cpu" and facts.name == f"Some Processor, {psutil.cpu_count()} cores"
    memory = probes.memory()
    assert memory.is_cpu and memory.group_left_bytes is None
    assert 0 < memory.host_free_bytes <= memory.host_total_bytes
    assert probes.pinning() == "not needed: the CPU reads host memory as it is"


def test_a_control_group_limits_what_is_free(probes, tmp_path):
    root = tmp_path / "root"
    write(root / "proc/self/cgroup", "0::/box\n")
    write(root / "sys/fs/cgroup/box/memory.max", "5000000\n")
    write(root / "sys/fs/cgroup/box/memory.current", "1000000\n")
    memory = probes.memory()
    assert memory.group_left_bytes == memory.host_free_bytes == 4_000_000


def test_accelerators_are_listed_and_the_chosen_one_is_first(on_meta):
    found = on_meta.devices()
    assert [facts.address for facts in found] == ["meta:1", "meta:0", "cpu"]
    assert (found[0].name, found[0].free_bytes, found[0].total_bytes) == ("Some Card", 6_000, 8_000)
    assert on_meta.memory().device_free_bytes == 6_000


def test_an_accelerator_that_hides_its_memory_is_a_problem_not_a_processor(on_meta, monkeypatch):
    """Taken for a CPU, it would be promised the host's memory."""
    monkeypatch.setattr(module, "device_memory", lambda device: None)
    with pytest.raises(BudgetError, match="does not say how much memory is free; give --device-memory"):
        on_meta.memory()
    assert find_memory(META, budget_bytes=7).device_budget_bytes == 7
    assert on_meta.devices()[0].total_bytes is None


def test_the_pin_budget_is_explained(on_meta, monkeypatch):
    monkeypatch.setattr(module, "find_pin_budget", lambda device, folder: PinBudget(None, PinBudgetSource.NOT_LIMITED))
    assert on_meta.pinning() == "this system limits pinned host memory only by what the machine has"


def test_the_link_of_a_processor_is_its_memory(probes, monkeypatch):
    monkeypatch.setattr(module, "measure_copy_rate", lambda device, *, is_pinned=False: 7.0)
    assert [str(link) for link in probes.links()] == ["7 B/s memory to memory"]


def test_the_link_of_an_accelerator_is_measured_both_ways(on_meta, monkeypatch):
    monkeypatch.setattr(module, "measure_copy_rate", lambda device, *, is_pinned=False: 20.0 if is_pinned else 5.0)
    assert [str(link) for link in on_meta.links()] == [
        "20 B/s from pinned host memory",
        "5 B/s from pageable host memory",
    ]


def test_a_driver_that_refuses_to_pin_leaves_the_other_figure(on_meta, monkeypatch):
    def refuse(device, *, is_pinned=False):
        if is_pinned:
            raise RuntimeError("out of\nmemory")
        return 5.0

    monkeypatch.setattr(module, "measure_copy_rate", refuse)
    (link,) = on_meta.links()
    assert str(link) == "5 B/s from pageable host memory; pinned memory was not measured: out of memory"


def test_the_disk_is_measured_with_a_file_that_is_gone_afterwards(probes, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1 << 20)
    monkeypatch.setattr(module, "_MEASURED_SECONDS", 0.02)
    measured = probes.disk()
    assert measured.speed.bytes_per_second > 0 and measured.source.endswith(f", in {probes.cache_folder}")
    assert list(probes.cache_folder.iterdir()) == []


def test_the_disk_is_measured_with_the_models_own_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MEASURED_SECONDS", 0.02)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10_000)
    measured = MachineProbes(CPU, tmp_path / "cache", model_folder=tmp_path).disk()
    assert measured.speed.bytes_per_second > 0 and measured.source.endswith(f", in {tmp_path}")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LinkError, match="holds no weights"):
        MachineProbes(CPU, tmp_path / "cache", model_folder=tmp_path).disk()


def test_a_disk_that_is_nearly_full_is_left_alone(probes, monkeypatch):
    monkeypatch.setattr(module, "free_disk_bytes", lambda folder: module.SAMPLE_BYTES)
    with pytest.raises(LinkError, match="nearly full"):
        probes.disk()
    assert not probes.cache_folder.exists()


def test_caches_are_named_with_their_free_space(probes):
    spaces = probes.caches()
    assert [space.purpose for space in spaces] == ["models of the hub", "overstory"]
    assert spaces[1].folder == str(probes.cache_folder) and spaces[1].free_bytes > 0


class FakeProbes:
    """What `this_machine` asks MachineProbes for."""

    found = (link(20e9, "from pinned host memory"), link(5e9, "from pageable host memory"))
    disk_error = None

    def __init__(self, device, cache_folder, model_folder=None):
        self.device = device

    def memory(self):
        sizes = {} if self.device.type == "cpu" else {"device_free_bytes": 12}
        return Machine(host_total_bytes=64, host_free_bytes=32, **sizes)

    def links(self):
        if not self.found:
            raise RuntimeError("no memory")
        return self.found

    def disk(self):
        if self.disk_error is not None:
            raise self.disk_error
        return link(2e9, "past the page cache, in /somewhere")


@pytest.fixture
def on_gpu(on_cpu, monkeypatch):
    monkeypatch.setattr(module, "select_device", lambda name: GPU)
    monkeypatch.setattr(module, "identify_device", lambda device: DEVICE)
    monkeypatch.setattr(module, "device_name", lambda device: DEVICE.name)


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(module, "MachineProbes", FakeProbes)
    monkeypatch.setattr(module, "measure_speed", lambda device: device_speed())


def look(tmp_path, device="auto"):
    return finished(this_machine(device, cache_folder=tmp_path))


def test_what_no_profile_holds_is_measured(on_gpu, tmp_path):
    machine, said = look(tmp_path)
    assert said == ["measuring copies", "measuring the disk", "measuring products"]
    assert (machine.name, machine.device_free_bytes) == (DEVICE.name, 12)
    assert str(machine.link) == "20.0 GB/s copies from pinned host memory, just now"
    assert str(machine.disk) == "2.00 GB/s reads past the page cache, in /somewhere, just now"
    assert machine.link.basis is machine.disk.basis is Basis.MEASURED


def test_a_stored_profile_is_believed(on_gpu, tmp_path):
    stored = machine_profile(
        link_bytes_per_second=13e9, link_latency_seconds=1e-5, disk_bytes_per_second=3e9, measured_at=date(2026, 1, 31)
    )
    save_profile(tmp_path, stored)
    machine, _ = look(tmp_path)
    assert (machine.link.speed, machine.disk.speed) == (LinkSpeed(13e9, 1e-5), LinkSpeed(3e9))
    assert machine.disk.source == "machine profile of 2026-01-31"


def test_a_damaged_profile_is_measured_anew(on_gpu, tmp_path):
    profile_path(tmp_path, DEVICE).write_text("{")
    assert look(tmp_path)[0].link.speed.bytes_per_second == 20e9


def test_pageable_copies_are_said(on_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeProbes, "found", [link(5e9, "from pageable host memory")])
    assert look(tmp_path)[0].link.source == "copies from pageable host memory, just now"
    monkeypatch.setattr(FakeProbes, "found", ())
    with pytest.raises(OverstoryError, match="--link"):
        look(tmp_path)


def test_a_processor_has_no_link(on_cpu, tmp_path):
    machine, _ = look(tmp_path, "cpu")
    assert (machine.link, machine.name, machine.is_cpu) == (None, "this machine's processor", True)


def test_a_disk_that_cannot_be_measured_is_unknown(on_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeProbes, "disk_error", LinkError("full"))
    assert look(tmp_path, "cpu")[0].disk is None


def test_every_format_is_timed_with_the_products_that_a_session_runs():
    speed = measure_speed(torch.device("cpu"), side=256)
    assert set(speed.target_weights_per_second) == {"bfloat16", "float16", "float32", "int8", "nf4", "packed"}
    assert set(speed.draft_weights_per_second) == {"stored", "int8", "nf4"}
    rates = [*speed.target_weights_per_second.values(), *speed.draft_weights_per_second.values(), speed.flops]
    assert min(rates) > 1e5 and speed.memory_bytes_per_second > 1e6
    assert (speed.basis, speed.compute_item_bytes) == (Basis.MEASURED, 4)
    assert speed.source.startswith("products of one 256 x 256 matrix: ")
