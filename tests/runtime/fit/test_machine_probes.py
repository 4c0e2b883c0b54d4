import platform
from types import SimpleNamespace

import psutil
import pytest
import torch

from offload.device import DeviceMemory
from offload.errors import LinkError
from offload.pinning.pin_budget import PinBudget
from profiles.machine_profile import PinBudgetSource
from runtime.fit import machine_probes
from runtime.fit.machine_probes import MachineProbes, built_for

CPU = torch.device("cpu")
META = torch.device("meta")


@pytest.fixture
def probes(tmp_path):
    return MachineProbes(CPU, tmp_path / "cache", root=tmp_path / "root")


@pytest.fixture
def on_meta(tmp_path, monkeypatch):
    """An accelerator with a device module, as far as the probes can tell."""
    named = SimpleNamespace(get_device_name=lambda index: "Some Card")
    monkeypatch.setattr(torch, "get_device_module", lambda kind: named)
    monkeypatch.setattr(machine_probes, "device_memory", lambda device: DeviceMemory(6_000, 8_000))
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
    monkeypatch.setattr(machine_probes, "PACKAGES", ("psutil", "no-such-package-here"))
    versions = probes.versions()
    assert versions["psutil"] == psutil.__version__ and versions["no-such-package-here"] == "not installed"
    assert versions["torch"].startswith(torch.__version__)


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
    assert memory.machine.is_cpu and memory.group_left_bytes is None
    assert 0 < memory.machine.host_free_bytes <= memory.machine.host_total_bytes
    assert probes.pinning() == "not needed: the CPU reads host memory as it is"


def test_a_control_group_limits_what_is_free(probes, tmp_path):
    root = tmp_path / "root"
    write(root / "proc/self/cgroup", "0::/box\n")
    write(root / "sys/fs/cgroup/box/memory.max", "5000000\n")
    write(root / "sys/fs/cgroup/box/memory.current", "1000000\n")
    memory = probes.memory()
    assert memory.group_left_bytes == memory.machine.host_free_bytes == 4_000_000


def test_accelerators_are_listed_and_the_chosen_one_is_first(on_meta):
    found = on_meta.devices()
    assert [facts.address for facts in found] == ["meta:1", "meta:0", "cpu"]
    assert (found[0].name, found[0].free_bytes, found[0].total_bytes) == ("Some Card", 6_000, 8_000)
    machine = on_meta.memory().machine
    assert (machine.device_free_bytes, machine.device_total_bytes) == (6_000, 8_000)


def test_an_accelerator_that_hides_its_memory_is_a_problem_not_a_processor(on_meta, monkeypatch):
    """Taken for a CPU, it would be promised the host's memory."""
    monkeypatch.setattr(machine_probes, "device_memory", lambda device: None)
    with pytest.raises(LinkError, match="does not say how much memory it has"):
        on_meta.memory()
    assert on_meta.devices()[0].total_bytes is None


def test_the_pin_budget_is_explained(on_meta, monkeypatch):
    monkeypatch.setattr(
        machine_probes, "find_pin_budget", lambda device, folder: PinBudget(None, PinBudgetSource.NOT_LIMITED)
    )
    assert on_meta.pinning() == "this system limits pinned host memory only by what the machine has"


def test_the_link_of_a_processor_is_its_memory(probes, monkeypatch):
    monkeypatch.setattr(machine_probes, "measure_copy_rate", lambda device, *, is_pinned=False: 7.0)
    rates = probes.link()
    assert (rates.memory_bytes_per_second, rates.bytes_per_second) == (7.0, None)


def test_the_link_of_an_accelerator_is_measured_both_ways(on_meta, monkeypatch):
    monkeypatch.setattr(
        machine_probes, "measure_copy_rate", lambda device, *, is_pinned=False: 20.0 if is_pinned else 5.0
    )
    rates = on_meta.link()
    assert (rates.pinned_bytes_per_second, rates.pageable_bytes_per_second, rates.bytes_per_second) == (20.0, 5.0, 20.0)


def test_a_driver_that_refuses_to_pin_leaves_the_other_figure(on_meta, monkeypatch):
    def refuse(device, *, is_pinned=False):
        if is_pinned:
            raise RuntimeError("out of\nmemory")
        return 5.0

    monkeypatch.setattr(machine_probes, "measure_copy_rate", refuse)
    rates = on_meta.link()
    assert (rates.bytes_per_second, rates.problem) == (5.0, "out of memory")


def test_the_disk_is_measured_with_a_file_that_is_gone_afterwards(probes, monkeypatch):
    monkeypatch.setattr(machine_probes, "SAMPLE_BYTES", 1 << 20)
    monkeypatch.setattr(machine_probes, "_MEASURED_SECONDS", 0.02)
    measured = probes.disk()
    assert measured.bytes_per_second > 0 and measured.where == str(probes.cache_folder)
    assert list(probes.cache_folder.iterdir()) == []


def test_the_disk_is_measured_with_the_models_own_files(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_probes, "_MEASURED_SECONDS", 0.02)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10_000)
    measured = MachineProbes(CPU, tmp_path / "cache", model_folder=tmp_path).disk()
    assert measured.bytes_per_second > 0 and measured.where == str(tmp_path)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(LinkError, match="holds no safetensors file"):
        MachineProbes(CPU, tmp_path / "cache", model_folder=tmp_path).disk()


def test_a_disk_that_is_nearly_full_is_left_alone(probes, monkeypatch):
    monkeypatch.setattr(machine_probes, "free_disk_bytes", lambda folder: machine_probes.SAMPLE_BYTES)
    with pytest.raises(LinkError, match="nearly full"):
        probes.disk()
    assert not probes.cache_folder.exists()


def test_caches_are_named_with_their_free_space(probes):
    spaces = probes.caches()
    assert [space.purpose for space in spaces] == ["models of the hub", "overstory"]
    assert spaces[1].folder == str(probes.cache_folder) and spaces[1].free_bytes > 0
