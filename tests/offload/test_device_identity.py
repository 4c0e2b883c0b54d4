"""What a device and its driver are called, from wherever drivers leave it."""

import os
from types import SimpleNamespace

import pytest
import torch

from offload.device_identity import device_name, find_driver, identify_device

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
