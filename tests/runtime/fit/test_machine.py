import pytest

from offload.units import LinkSpeed
from profiles.errors import ProfileError
from runtime.fit.machine import Basis, reference_machine, stored_speeds, usable_bytes
from tests.support.profile_factory import machine_profile


def test_a_built_in_machine_says_what_each_figure_rests_on():
    machine = reference_machine("RTX 4090")
    assert machine.link.basis is Basis.PUBLISHED and machine.link.speed.bytes_per_second == 26e9
    assert machine.disk.basis is Basis.ASSUMED
    assert machine.speed.basis is Basis.DATA_SHEET
    assert machine.link.source.startswith("PCIe 4.0 x16: ")
    assert machine.is_host_assumed


def test_a_link_that_nobody_measured_on_that_card_is_not_called_published():
    assert reference_machine("rtx-3090").link.basis is Basis.DATA_SHEET


def test_an_unknown_machine_gets_near_names():
    with pytest.raises(ProfileError, match="near it: l40"):
        reference_machine("l4")


def test_assumed_host_memory_holds_every_model():
    assert usable_bytes(reference_machine("l40").host_free_bytes) > 10**14


@pytest.mark.parametrize(("free", "left"), [(160, 9.6), (64, 4.0), (16, 4.0), (8, 2.0), (0, 0.0)])
def test_memory_that_can_never_be_swapped_leaves_more_to_others(free, left):
    """6 % or 4 GB, whatever is more, but no more than a quarter; 70B in bf16 (137 GB) still fits into 160 GB."""
    assert free * 10**9 - usable_bytes(free * 10**9, is_pinned=True) == left * 10**9


def test_a_profile_gives_what_was_measured():
    assert stored_speeds(None) == (None, None)
    profile = machine_profile(link_bytes_per_second=13e9, link_latency_seconds=1e-5, disk_bytes_per_second=None)
    assert stored_speeds(profile) == (LinkSpeed(13e9, 1e-5), None)
