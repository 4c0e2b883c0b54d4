"""Devices by name: what torch finds, what it does not, what it says of their memory, and what drivers are called."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from offload.device import (
    DeviceMemory,
    device_memory,
    device_name,
    find_driver,
    has_bfloat16,
    has_float32_products,
    identify_device,
    keep_sums_in_float32,
    select_device,
)
from profiles.errors import BadInputError


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had two XPUs, the second one current."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)


@pytest.mark.parametrize(
    ("text", "device"),
    [("auto", "xpu:1"), ("xpu", "xpu:1"), ("xpu:0", "xpu:0"), ("cpu", "cpu"), ("cpu:0", "cpu")],
)
def test_a_device_is_found_by_type_and_index(two_devices: None, text: str, device: str) -> None:
    assert select_device(text) == torch.device(device)


def test_without_an_accelerator_auto_is_the_cpu(no_device: None) -> None:
    assert select_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("text", ["cuda", "cuda:0", "xpu:2", "sim:1"])
def test_a_device_that_is_not_here_is_refused_with_what_is(two_devices: None, text: str) -> None:
    with pytest.raises(BadInputError, match="torch finds xpu:0, xpu:1 and cpu"):
        select_device(text)


@pytest.mark.parametrize("text", ["", "cuda:", ":0", "cuda:x", "cuda:-1", "CUDA 0", "cuda:0:1", "gpu:99999"])
def test_what_is_no_device_is_refused(no_device: None, text: str) -> None:
    with pytest.raises(BadInputError, match=r"is not a device.*torch finds no accelerator"):
        select_device(text)


def test_memory_of_an_accelerator_is_torchs(two_devices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (3, 8))
    assert device_memory(torch.device("xpu:0")) == DeviceMemory(free_bytes=3, total_bytes=8)


def test_a_device_that_does_not_say_has_no_memory_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("Allocator for xpu is not a DeviceAllocator.")

    monkeypatch.setattr(torch.accelerator, "get_memory_info", refuse)
    assert device_memory(torch.device("xpu:0")) is None


def test_the_cpus_memory_is_what_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.device.free_memory_bytes", lambda: 42)
    assert device_memory(torch.device("cpu")) == DeviceMemory(free_bytes=42, total_bytes=42)


NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: 12\n"
NVIDIA_OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (root@x)\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("proc/driver/nvidia/version", NVIDIA, "NVIDIA 550.54.14"),
        ("proc/driver/nvidia/version", NVIDIA_OPEN, "NVIDIA 570.86.10"),
        ("sys/module/amdgpu/version", "6.10.5\n", "amdgpu 6.10.5"),
    ],
)
def test_the_driver_is_read_where_drivers_leave_it(tmp_path, file, text, expected):
    write(tmp_path / file, text)
    assert find_driver(tmp_path) == expected


@pytest.mark.skipif(os.name != "posix", reason="writes a shell script")
@pytest.mark.parametrize(
    ("script", "expected"), [("echo 560.35.03; echo x", "NVIDIA 560.35.03"), ("exit 9", "unknown")]
)
def test_nvidia_smi_is_asked_where_there_is_no_file(tmp_path, monkeypatch, script, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_driver(tmp_path) == expected


def test_no_driver_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_driver(tmp_path) == "unknown"


def test_a_device_has_the_name_that_its_module_gives(monkeypatch):
    device = torch.device("meta", 1)
    named = SimpleNamespace(get_device_name=lambda index: f"Card {index}")
    monkeypatch.setattr(torch, "get_device_module", lambda kind: named)
    assert device_name(device) == "Card 1"
    described = SimpleNamespace(get_device_properties=lambda index: SimpleNamespace(name="Another Card"))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: described)
    assert device_name(device) == "Another Card"
    monkeypatch.setattr(torch, "get_device_module", lambda kind: SimpleNamespace())
    assert device_name(device) == "meta"


def test_an_identity_joins_type_name_and_driver(monkeypatch, tmp_path):
    named = SimpleNamespace(get_device_name=lambda index: "Card")
    monkeypatch.setattr(torch, "get_device_module", lambda kind: named)
    write(tmp_path / "proc/driver/nvidia/version", NVIDIA)
    found = identify_device(torch.device("meta", 0), root=tmp_path)
    assert (found.device_type, found.name, found.driver_version) == ("meta", "Card", "NVIDIA 550.54.14")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert identify_device(torch.device("meta", 0), root=tmp_path / "nowhere").driver_version == ""


def test_sums_are_kept_in_float32_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.backends.cuda.matmul
    for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"):
        before = getattr(products, name)
        try:
            setattr(products, name, True)
            keep_sums_in_float32(torch.device("cpu"))
            assert getattr(products, name)
            keep_sums_in_float32(torch.device("cuda", 0))
            assert not getattr(products, name)
        finally:
            setattr(products, name, before)


def test_products_to_float32_are_cudas_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    assert has_float32_products(cuda, torch.bfloat16) and has_float32_products(cuda, torch.float16)
    assert not has_float32_products(cuda, torch.float32)
    assert not has_float32_products(torch.device("cpu"), torch.bfloat16)
    assert not has_float32_products(torch.device("xpu"), torch.bfloat16)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not has_float32_products(cuda, torch.bfloat16)


def test_bfloat16_is_asked_of_cuda_alone_and_emulation_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def is_supported(including_emulation: bool = True) -> bool:
        asked.append((chosen[-1], including_emulation))
        return chosen[-1] != torch.device("cuda", 1)

    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: chosen.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert has_bfloat16(torch.device("cpu")) and has_bfloat16(torch.device("xpu", 0)) and not asked
    assert has_bfloat16(torch.device("cuda", 0)) and not has_bfloat16(torch.device("cuda", 1))
    assert asked == [(torch.device("cuda", 0), False), (torch.device("cuda", 1), False)]
