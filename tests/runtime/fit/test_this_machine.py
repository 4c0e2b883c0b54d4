from datetime import date

import pytest
import torch

from offload.errors import LinkError
from profiles.errors import OverstoryError
from profiles.profile_store import profile_path, save_machine_profile
from runtime.fit import this_machine as module
from runtime.fit.device_speed import Basis
from runtime.fit.doctor import DiskRate, HostMemory, LinkRates
from runtime.fit.place import MachineMemory
from runtime.fit.this_machine import this_machine
from tests.support.doctor_fakes import finished
from tests.support.plan_fakes import device_speed
from tests.support.profile_factory import DEVICE, machine_profile

GPU = torch.device("cuda", 0)


class FakeProbes:
    """What `this_machine` asks MachineProbes for."""

    links = LinkRates(pinned_bytes_per_second=20e9, pageable_bytes_per_second=5e9)
    disk_error = None

    def __init__(self, device, cache_folder, model_folder=None):
        self.device = device

    def memory(self):
        sizes = {} if self.device.type == "cpu" else {"device_total_bytes": 16, "device_free_bytes": 12}
        return HostMemory(MachineMemory(host_total_bytes=64, host_free_bytes=32, **sizes), None)

    def link(self):
        return self.links

    def disk(self):
        if self.disk_error is not None:
            raise self.disk_error
        return DiskRate(2e9, True, "somewhere")


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(module, "select_device", lambda name: GPU)
    monkeypatch.setattr(module, "MachineProbes", FakeProbes)
    monkeypatch.setattr(module, "identify_device", lambda device: DEVICE)
    monkeypatch.setattr(module, "device_name", lambda device: DEVICE.name)


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(module, "MachineProbes", FakeProbes)


def look(tmp_path, device="auto"):
    return finished(this_machine(device, cache_folder=tmp_path, measure=lambda device: device_speed()))


def test_what_no_profile_holds_is_measured(on_gpu, tmp_path):
    machine, said = look(tmp_path)
    assert said == ["measuring copies", "measuring the disk", "measuring products"]
    assert (machine.name, machine.memory.device_free_bytes) == (DEVICE.name, 12)
    assert (machine.link.bytes_per_second, machine.link.source) == (20e9, "copies from pinned memory just now")
    assert (machine.disk.bytes_per_second, machine.disk.basis) == (2e9, Basis.MEASURED)


def test_a_stored_profile_is_believed(on_gpu, tmp_path):
    stored = machine_profile(
        link_bytes_per_second=13e9, link_latency_seconds=1e-5, disk_bytes_per_second=3e9, measured_at=date(2026, 1, 31)
    )
    save_machine_profile(tmp_path, stored)
    machine, _ = look(tmp_path)
    assert (machine.links.link_bytes_per_second, machine.links.latency_seconds) == (13e9, 1e-5)
    assert machine.links.disk_bytes_per_second == 3e9
    assert machine.disk.source == "machine profile of 2026-01-31"


def test_a_damaged_profile_is_measured_anew(on_gpu, tmp_path):
    profile_path(tmp_path, DEVICE).write_text("{")
    assert look(tmp_path)[0].link.bytes_per_second == 20e9


def test_pageable_copies_are_said(on_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeProbes, "links", LinkRates(pageable_bytes_per_second=5e9))
    assert look(tmp_path)[0].link.source == "copies from pageable memory just now"
    monkeypatch.setattr(FakeProbes, "links", LinkRates())
    with pytest.raises(OverstoryError, match="--link"):
        look(tmp_path)


def test_a_processor_has_no_link(on_cpu, tmp_path):
    machine, _ = look(tmp_path, "cpu")
    assert (machine.link, machine.name, machine.memory.is_cpu) == (None, "this machine's processor", True)


def test_a_disk_that_cannot_be_measured_is_unknown(on_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeProbes, "disk_error", LinkError("full"))
    assert look(tmp_path, "cpu")[0].disk is None
