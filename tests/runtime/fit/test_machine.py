import pytest

from offload.units import LinkSpeed, parse_link
from profiles.errors import ProfileError
from runtime.fit.machine import reference_machine, stored_speeds, usable_bytes
from runtime.fit.speed import Basis
from tests.support.fit_needs import GB
from tests.support.plan_fakes import plan_machine, processor
from tests.support.profile_factory import machine_profile


def test_a_built_in_machine_says_what_each_figure_rests_on():
    machine = reference_machine("RTX 4090")
    assert machine.link.basis is Basis.PUBLISHED and machine.link.speed.bytes_per_second == 26e9
    assert machine.disk.basis is Basis.ASSUMED
    assert [(what, basis) for what, basis, _ in machine.basis_lines] == [
        ("link", Basis.PUBLISHED),
        ("disk", Basis.ASSUMED),
        ("computing", Basis.DATA_SHEET),
    ]
    assert machine.basis_lines[0][2].startswith("26.0 GB/s, PCIe 4.0 x16: ")
    assert machine.is_host_assumed


def test_a_link_that_nobody_measured_on_that_card_is_not_called_published():
    assert reference_machine("rtx-3090").link.basis is Basis.DATA_SHEET


def test_an_unknown_machine_gets_near_names():
    with pytest.raises(ProfileError, match="near it: l40"):
        reference_machine("l4")


def test_assumed_host_memory_holds_what_is_needed_and_a_known_one_stays():
    machine = reference_machine("l40").for_layers(100 * GB)
    assert usable_bytes(machine.host_free_bytes) >= 100 * GB
    known = plan_machine()
    assert known.for_layers(100 * GB) == known


def test_the_users_host_memory_replaces_the_assumption():
    machine = reference_machine("l40").with_budgets(device_bytes=None, host_bytes=64 * GB)
    assert not machine.is_host_assumed
    assert machine.host_budget_bytes == 64 * GB
    assert usable_bytes(machine.host_free_bytes) >= 64 * GB


def test_more_device_memory_also_raises_a_budget():
    machine = plan_machine().with_budgets(device_bytes=8 * GB, host_bytes=None).with_more_device_memory(GB)
    assert machine.device_budget_bytes == 9 * GB
    assert machine.device_free_bytes == 17 * GB
    assert processor().with_more_device_memory(GB).host_free_bytes == 33 * GB


def test_the_least_budget_stays_the_least():
    machine = plan_machine().with_budgets(device_bytes=0, host_bytes=None)
    assert machine.with_more_device_memory(GB).device_budget_bytes == 0


def test_more_host_memory_also_raises_a_budget():
    machine = plan_machine().with_budgets(device_bytes=None, host_bytes=8 * GB).with_more_host_memory(GB)
    assert machine.host_budget_bytes == 9 * GB
    assert machine.host_free_bytes >= 33 * GB


def test_a_faster_link_is_the_disk_where_there_is_no_other():
    assert plan_machine().with_faster_link(2).link.speed.bytes_per_second == 20e9
    assert processor().with_faster_link(2).disk.speed.bytes_per_second == 2e9
    assert processor(disk=None).with_faster_link(2).disk is None


def test_a_given_link_replaces_the_machines():
    machine = plan_machine(pcie_generation=4).with_link(parse_link("5GB/s,10us"))
    assert machine.link.speed == parse_link("5GB/s,10us")
    assert (machine.link.basis, machine.pcie_generation) == (Basis.GIVEN, None)
    assert not machine.is_link_emulated
    assert processor().with_link(parse_link("5GB/s")).is_link_emulated
    assert plan_machine().with_disk(parse_link("7GB/s")).disk.speed.bytes_per_second == 7e9


def test_a_profile_gives_what_was_measured():
    assert stored_speeds(None) == (None, None)
    profile = machine_profile(link_bytes_per_second=13e9, link_latency_seconds=1e-5, disk_bytes_per_second=None)
    assert stored_speeds(profile) == (LinkSpeed(13e9, 1e-5), None)
