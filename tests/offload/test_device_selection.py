"""Devices by name: what torch finds, what it does not, and what it says of their memory."""

import pytest
import torch

from offload import device_selection
from offload.device_selection import DeviceMemory, device_memory, select_device
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
    monkeypatch.setattr(device_selection, "free_memory_bytes", lambda: 42)
    assert device_memory(torch.device("cpu")) == DeviceMemory(free_bytes=42, total_bytes=42)
