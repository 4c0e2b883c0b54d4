from dataclasses import replace

import pytest

from offload.residency_plan import Tier
from runtime.errors import OptionError
from runtime.fit.machine import free_bytes_for, reference_machine, usable_bytes
from runtime.fit.models import find_model
from runtime.fit.place import PACKED, LayerFormat, kv_cache_on, place
from tests.support.fit_needs import GB, layers_of, machine, round_need

NEED = round_need()
FIXED = GB + 4001 * 10**6
ALL = FIXED + 40 * GB


@pytest.mark.parametrize("is_pinned", [False, True])
@pytest.mark.parametrize("budget", [1, 7, 10**6, 123_456_789, 13 * GB, 62 * GB, 63 * GB, 1 << 43])
def test_free_memory_for_a_budget_is_the_least_that_gives_it(budget, is_pinned):
    free = free_bytes_for(budget, is_pinned=is_pinned)
    assert usable_bytes(free, is_pinned=is_pinned) >= budget > usable_bytes(free - 1, is_pinned=is_pinned)


def test_on_a_cpu_everything_is_resident_at_exactly_the_bytes_it_takes():
    placement = place(NEED, machine(host=ALL))
    assert placement.runs_well and layers_of(placement) == (10, 0, 0)
    assert (placement.device_bytes, placement.ring_bytes) == (ALL, 0)


def test_one_byte_less_streams_from_disk_with_a_ring():
    placement = place(NEED, machine(host=ALL - 1))
    assert placement.can_run and not placement.runs_well
    assert layers_of(placement) == (7, 0, 3)
    assert placement.disk_bytes == placement.streamed_bytes == 12 * GB
    assert placement.ring_bytes == 8 * GB


def test_the_least_is_the_fixed_memory_and_the_ring_to_the_byte():
    exact = place(NEED, machine(host=FIXED + 8 * GB))
    assert exact.can_run and layers_of(exact) == (0, 0, 10)
    short = place(NEED, machine(host=FIXED + 8 * GB - 1))
    assert not short.can_run and short.missing_device_bytes == 1


def test_an_accelerator_leaves_the_rest_to_host_memory_then_disk():
    placement = place(NEED, machine(host=24 * GB, device=FIXED + 12 * GB))
    assert layers_of(placement) == (1, 6, 3)
    assert (placement.resident_bytes, placement.host_bytes, placement.disk_bytes) == (4 * GB, 24 * GB, 12 * GB)
    assert place(NEED, machine(host=36 * GB, device=FIXED + 12 * GB)).runs_well
    assert not place(NEED, machine(host=36 * GB - 1, device=FIXED + 12 * GB)).runs_well


def test_the_least_budget_on_a_cpu_keeps_nothing_resident():
    placement = place(NEED, machine(host=ALL, budget=0))
    assert layers_of(placement) == (0, 0, 10) and placement.device_budget_bytes == FIXED + 8 * GB


def test_a_budget_of_more_than_there_is_does_not_run():
    found = machine(host=20 * GB, budget=ALL)
    placement = place(NEED, found)
    assert not placement.can_run and placement.missing_device_bytes == ALL - found.host_free_bytes


def test_a_host_budget_of_more_than_there_is_does_not_run():
    found = replace(machine(host=20 * GB, device=FIXED + 8 * GB), host_budget_bytes=40 * GB)
    placement = place(NEED, found)
    assert not placement.can_run and placement.missing_host_bytes == 40 * GB - found.host_free_bytes


def test_an_emulated_link_streams_from_host_memory():
    """As a session does: the device is then as small as it can be, and host memory holds the layers."""
    placement = place(NEED, machine(host=ALL + 20 * GB, link=True))
    assert layers_of(placement) == (0, 10, 0) and placement.runs_well
    small = place(NEED, machine(host=ALL - 10 * GB, link=True))
    assert small.can_run and layers_of(small)[2] > 0


def test_files_that_do_not_fit_the_disk_stop_a_run():
    need = round_need(file_gb=41)
    assert place(need, machine(host=ALL, disk=41 * GB)).runs_well
    short = place(need, machine(host=ALL, disk=41 * GB - 1))
    assert not short.can_run and short.missing_disk_bytes == 1
    assert place(need, machine(host=ALL, disk=None)).runs_well


def test_every_byte_of_the_device_is_in_exactly_one_entry():
    placement = place(round_need(draft_gb=2), machine(host=30 * GB, device=FIXED + 16 * GB))
    assert placement.device_bytes == sum(placement.entries().values())
    assert placement.device_bytes == placement.fixed_bytes + placement.ring_bytes + placement.resident_bytes
    assert placement.num_resident_layers == len(placement.residency.resident_layers) > 0


def test_what_is_taken_after_the_layers_is_known_apart():
    """Resident layers have to leave room for it."""
    placement = place(round_need(draft_gb=2), machine(host=60 * GB))
    assert placement.late_bytes == placement.fixed_bytes - GB  # all but the embeddings


def test_only_weights_cross_the_link_but_whole_pages_take_memory():
    need = round_need()
    payload = tuple(size - 7 for size in need.layers.layer_bytes)
    need = replace(need, formats=(replace(need.layers, payload_bytes=payload), *need.formats[1:]))
    placement = place(need, machine(host=24 * GB, device=FIXED + 12 * GB))
    assert (placement.host_bytes, placement.disk_bytes) == (24 * GB, 12 * GB)
    assert placement.streamed_bytes == 36 * GB - 9 * 7


def test_layers_that_found_no_room_are_counted_where_they_are():
    placement = place(NEED, machine(host=24 * GB, device=FIXED + 12 * GB))
    moved = placement.with_tiers([Tier.HOST] * 10)
    assert (layers_of(moved), moved.resident_bytes, moved.ring_bytes) == ((0, 10, 0), 0, placement.ring_bytes)


LONG = replace(round_need(context_tokens=20_000), kv_cache="auto")
"""2 GB a layer of keys and values, beside 4 GB of weights."""


def test_keys_and_values_travel_where_the_device_does_not_hold_them():
    found = machine(host=80 * GB, device=21 * GB)
    assert not place(replace(LONG, kv_cache="device"), found).can_run
    placement = place(LONG, found)
    assert placement.can_run and len(placement.residency.travelling) == 9
    assert placement.ring_bytes == pytest.approx(12 * GB, rel=1e-3)
    assert placement.travelling_bytes + placement.cached_bytes == 20_001 * 10 * 10**5
    assert placement.host_bytes == 4 * GB * placement.num_host_layers + placement.travelling_bytes
    assert placement.device_bytes <= placement.device_budget_bytes


def test_those_beside_states_stay_whatever_is_free():
    assert kv_cache_on("auto", is_apart=True) == "auto"
    assert kv_cache_on("auto", is_apart=True, has_states=True) == "device"
    with pytest.raises(OptionError, match="--kv-cache host does not go with a model"):
        kv_cache_on("host", is_apart=True, has_states=True)


def test_they_stay_where_travelling_saves_little():
    short = replace(NEED, kv_cache="auto")
    found = machine(host=80 * GB, device=FIXED + 12 * GB)
    assert place(short, found) == place(replace(NEED, kv_cache="device"), found)


def test_they_travel_where_that_moves_clearly_fewer_bytes():
    """20 GB on the device are five layers; half of a full cache of those that stream is less."""
    found = machine(host=80 * GB, device=40 * GB)
    resident, travelling = (place(replace(LONG, kv_cache=where), found) for where in ("device", "host"))
    assert travelling.usual_pass_bytes < 0.95 * resident.usual_pass_bytes
    assert place(LONG, found) == travelling


def test_they_stay_where_host_memory_would_send_layers_to_disk():
    found = machine(host=24 * GB, device=40 * GB)
    assert place(LONG, found) == place(replace(LONG, kv_cache="device"), found)


def test_the_least_is_that_of_caches_that_travel():
    exact = place(LONG, machine(host=80 * GB, device=LONG.least_bytes))
    assert exact.can_run and exact.num_resident_layers == 0
    assert not place(LONG, machine(host=80 * GB, device=LONG.least_bytes - 1)).can_run


def test_narrow_rows_take_less_of_link_and_host_and_are_widened_in_one_place_of_the_device():
    found = machine(host=80 * GB, device=21 * GB)
    need = replace(LONG, kv_cache="host")
    exact, narrow = (place(replace(need, row_layer_bytes=rows), found) for rows in ((), (60_000,) * 10))
    assert exact.num_resident_layers == narrow.num_resident_layers == 1
    assert narrow.travelling_bytes == 20_001 * 9 * 60_000 == 0.6 * exact.travelling_bytes
    assert narrow.ring_bytes == 2 * (4 * GB + 20_001 * 60_000) + 20_001 * 10**5
    assert narrow.cached_bytes == exact.cached_bytes == 20_001 * 10**5
    assert exact.host_bytes - narrow.host_bytes == 0.4 * exact.travelling_bytes
    assert narrow.usual_pass_bytes < exact.usual_pass_bytes
    assert narrow.device_bytes <= narrow.device_budget_bytes


def test_the_least_of_narrow_rows_holds_them_widened_too():
    need = replace(LONG, kv_cache="host", row_layer_bytes=(60_000,) * 10)
    exact = place(need, machine(host=80 * GB, device=need.least_bytes))
    assert exact.can_run and exact.num_resident_layers == 0 and exact.device_bytes == need.least_bytes
    assert not place(need, machine(host=80 * GB, device=need.least_bytes - 1)).can_run


def test_where_nothing_travels_narrow_rows_change_nothing():
    for found, kv_cache in ((machine(host=80 * GB, device=80 * GB), "host"), (machine(host=80 * GB), "device")):
        need = replace(LONG, kv_cache=kv_cache)
        exact, narrow = (place(replace(need, row_layer_bytes=rows), found) for rows in ((), (60_000,) * 10))
        assert not narrow.residency.travelling and narrow.entries() == exact.entries()


@pytest.mark.parametrize(
    ("name", "layers", "context_tokens", "draft_held"),
    [("rtx-4090", "nf4", 32768, "nf4"), ("l40", "bfloat16", 65536, "stored"), ("l40", "bfloat16", 65536, "nf4")],
)
def test_a_70b_has_long_contexts_on_the_cards_it_is_meant_for(name, layers, context_tokens, draft_held):
    target, draft = find_model("llama-3.3-70b", what="the target"), find_model("llama-3-8b", what="the draft")
    need = target.need(
        draft.as_draft(2, held=draft_held), context_tokens=context_tokens, max_nodes=512, compute_item_bytes=2
    ).in_format(layers)
    host_bytes = {"rtx-4090": 64 * GB, "l40": 160 * GB}[name]
    found = replace(reference_machine(name), host_free_bytes=host_bytes, disk_free_bytes=None)
    placement = place(replace(need, kv_cache="auto"), found)
    assert placement.runs_well and placement.residency.travelling


def packed_need():
    """Layers of 4 GB that take 3 GB in memory, and 0.1 GB of the device for what has no code."""
    return round_need().packed(LayerFormat(PACKED, (3 * GB,) * 10), escape_bytes=GB // 10, narrow_scratch_bytes=0)


def test_packed_layers_take_less_wherever_they_are_but_on_disk():
    fixed = packed_need().fixed_bytes
    assert fixed == round_need().fixed_bytes + GB // 10
    placement = place(packed_need(), machine(host=21 * GB, device=fixed + (2 + 3) * 3 * GB))
    assert layers_of(placement) == (3, 7, 0)
    assert (placement.ring_bytes, placement.streamed_bytes, placement.host_bytes) == (6 * GB, 21 * GB, 21 * GB)
    assert placement.format_name == PACKED


def test_slots_have_room_for_layers_as_stored_only_where_some_come_from_disk():
    fixed = packed_need().fixed_bytes
    placement = place(packed_need(), machine(host=12 * GB, device=fixed + 2 * 4 * GB + 3 * GB))
    assert layers_of(placement) == (1, 4, 5)
    assert (placement.ring_bytes, placement.disk_bytes, placement.host_bytes) == (8 * GB, 20 * GB, 12 * GB)
    assert placement.streamed_bytes == 32 * GB


def test_the_least_with_a_disk_holds_a_ring_for_it():
    placement = place(packed_need(), machine(host=0, device=100 * GB, budget=0))
    assert layers_of(placement) == (0, 0, 10)
    assert placement.device_bytes == packed_need().fixed_bytes + 2 * 4 * GB and placement.can_run


def test_a_quantized_format_is_not_packed():
    need = packed_need().in_format("int8")
    assert need.fixed_bytes == round_need().in_format("int8").fixed_bytes and need.stored is None
