"""Budgets kept to the byte, nothing left that would still fit, and residents never in a row while others stream."""

import random
import time
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings, strategies

from offload.errors import BudgetError
from offload.residency_plan import ResidencyPlan, Tier, plan_residency, spread_evenly

R, H, D = Tier.RESIDENT, Tier.HOST, Tier.DISK


def cyclic_gaps(places: Sequence[int], num_places: int) -> set[int]:
    return {(later - place - 1) % num_places for place, later in zip(places, [*places[1:], *places[:1]], strict=True)}


def needed_bytes(plan: ResidencyPlan, residents: set[int]) -> int:
    """Device bytes with these residents, from the definition."""
    sizes = plan.layer_bytes
    streamed = [size for index, size in enumerate(sizes) if index not in residents]
    return sum(sizes[index] for index in residents) + plan.num_slots * max(streamed, default=0)


def assert_within_budgets_and_full(plan: ResidencyPlan, device_budget: int, host_budget: int) -> None:
    residents = {index for index, tier in enumerate(plan.tiers) if tier is R}
    assert plan.resident_bytes + plan.ring_bytes == needed_bytes(plan, residents) <= device_budget
    assert plan.host_bytes <= max(0, host_budget)
    assert plan.resident_bytes + plan.host_bytes + plan.disk_bytes == sum(plan.layer_bytes)
    for index, (size, tier) in enumerate(zip(plan.layer_bytes, plan.tiers, strict=True)):
        if tier is not R:
            assert needed_bytes(plan, residents | {index}) > device_budget
        if tier is D:
            assert plan.host_bytes + size > host_budget


def test_spreading_is_even_for_the_chosen_and_for_the_others() -> None:
    for num_places, num_chosen in ((places, chosen) for places in range(1, 34) for chosen in range(places + 1)):
        chosen = spread_evenly(num_places, num_chosen)
        others = [place for place in range(num_places) if place not in chosen]
        assert len(set(chosen)) == num_chosen and list(chosen) == sorted(chosen)
        for places in (list(chosen), others):
            gaps = cyclic_gaps(places, num_places)
            assert not gaps or max(gaps) - min(gaps) <= 1, (num_places, num_chosen)
        if num_chosen < num_places / 2:
            assert 0 not in chosen  # a pass starts with what the ring has prefetched


def test_everything_that_fits_is_resident_and_needs_no_ring() -> None:
    plan = plan_residency([10, 20, 30], num_slots=2, device_budget_bytes=60, host_budget_bytes=0)
    assert plan.tiers == (R, R, R)
    assert (plan.num_slots, plan.ring_bytes, plan.slot_bytes, plan.resident_bytes) == (0, 0, 0, 60)
    assert plan.streamed_layers == ()


def test_no_layers_need_nothing() -> None:
    plan = plan_residency([], num_slots=2, device_budget_bytes=0, host_budget_bytes=0)
    assert plan.tiers == () and plan.slot_bytes == 0


def test_residents_stand_between_streamed_layers() -> None:
    plan = plan_residency([10] * 8, num_slots=2, device_budget_bytes=45, host_budget_bytes=0)
    assert plan.tiers == (D, D, R, D, D, D, R, D)
    assert (plan.resident_bytes, plan.ring_bytes, plan.disk_bytes, plan.streamed_bytes) == (20, 20, 60, 60)


def test_host_layers_stand_between_disk_layers() -> None:
    plan = plan_residency([10] * 6, num_slots=2, device_budget_bytes=20, host_budget_bytes=35)
    assert plan.tiers == (D, H, D, H, D, H)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 7, 12])
def test_every_pair_of_budgets_for_equal_layers(num_layers: int) -> None:
    """Every budget from nothing to everything, in steps of half a layer."""
    for num_slots, device, host in product((2, 3), range(0, 10 * num_layers + 11, 5), range(0, 10 * num_layers, 15)):
        ring_or_all = min(num_slots, num_layers) * 10
        if device < ring_or_all:
            with pytest.raises(BudgetError):
                plan_residency(
                    [10] * num_layers, num_slots=num_slots, device_budget_bytes=device, host_budget_bytes=host
                )
            continue
        plan = plan_residency(
            [10] * num_layers, num_slots=num_slots, device_budget_bytes=device, host_budget_bytes=host
        )
        assert_within_budgets_and_full(plan, device, host)
        residents = [index for index, tier in enumerate(plan.tiers) if tier is R]
        in_host = [place for place, index in enumerate(plan.streamed_layers) if plan.tiers[index] is H]
        for places, num_places in ((residents, num_layers), (in_host, len(plan.streamed_layers))):
            gaps = cyclic_gaps(places, num_places) if places else {0}
            assert max(gaps) - min(gaps) <= 1
        assert not plan.streamed_layers or len(plan.streamed_layers) > num_slots


@given(
    sizes=strategies.lists(strategies.integers(1, 100) | strategies.sampled_from([50, 54]), min_size=1, max_size=14),
    shares=strategies.tuples(strategies.floats(0.2, 1.2), strategies.floats(-0.1, 1)),
    num_slots=strategies.integers(2, 4),
)
@settings(max_examples=400)
def test_layers_of_any_sizes_fill_both_budgets(sizes: list[int], shares: tuple[float, float], num_slots: int) -> None:
    device, host = (round(share * sum(sizes)) for share in shares)
    try:
        plan = plan_residency(sizes, num_slots=num_slots, device_budget_bytes=device, host_budget_bytes=host)
    except BudgetError:
        assert num_slots * max(sizes) > device < sum(sizes)
    else:
        assert_within_budgets_and_full(plan, device, host)


def test_layers_that_differ_by_a_page_are_still_spread_evenly() -> None:
    """A slab's size depends on its phase in the file, so neighbours differ by 4096 bytes."""
    rng = random.Random(1)
    sizes = [93_000_000 // 4096 * 4096 + 4096 * rng.randint(0, 1) for _ in range(28)]
    for num_residents in range(1, 25):
        budget = 2 * max(sizes) + num_residents * 93_100_000
        plan = plan_residency(sizes, num_slots=2, device_budget_bytes=budget, host_budget_bytes=0)
        residents = [index for index, tier in enumerate(plan.tiers) if tier is R]
        gaps = cyclic_gaps(residents, 28)
        assert len(residents) == num_residents and max(gaps) - min(gaps) <= 1


def test_a_budget_without_room_for_the_ring_says_how_much_is_missing() -> None:
    with pytest.raises(BudgetError) as caught:
        plan_residency([90_000_000] * 28, num_slots=2, device_budget_bytes=100_000_000, host_budget_bytes=0)
    assert str(caught.value) == (
        "100 MB of device memory are left for layers, but 2 slots need 180 MB; "
        "raise the device memory budget by 80.0 MB."
    )


def test_a_negative_budget_is_an_empty_one() -> None:
    with pytest.raises(BudgetError, match="0 B of device memory are left"):
        plan_residency([10, 10, 10], num_slots=2, device_budget_bytes=-5, host_budget_bytes=0)


def test_a_model_of_many_different_layers_is_planned_quickly() -> None:
    rng = random.Random(2)
    sizes = [rng.randint(1, 1_000_000) for _ in range(160)]
    began = time.process_time()
    plan_residency(sizes, num_slots=4, device_budget_bytes=sum(sizes) // 2, host_budget_bytes=sum(sizes) // 4)
    assert time.process_time() - began < 2.0


@given(
    strategies.lists(
        strategies.tuples(strategies.integers(1, 40), strategies.integers(0, 30)), min_size=1, max_size=14
    ),
    strategies.integers(2, 3),
    strategies.integers(0, 600),
    strategies.integers(0, 600),
    strategies.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_caches_that_may_travel_are_paid_for_where_they_are(
    layers: list[tuple[int, int]], num_slots: int, device_budget: int, host_budget: int, are_narrow: bool
) -> None:
    """A resident layer's is on the device, a streamed one's there if it still fits, else it travels.

    Narrow rows need room to be widened, once, whatever their number.
    """
    sizes, caches = zip(*layers, strict=True)
    rows = [size // 2 + 1 for size in caches] if are_narrow else caches
    ring = num_slots * (max(sizes) + max(rows)) + (max(caches) if are_narrow else 0)
    least = min(sum(sizes) + sum(caches), ring)
    budgets = {"device_budget_bytes": device_budget + least, "host_budget_bytes": host_budget}
    plan = plan_residency(
        sizes, num_slots=num_slots, cache_bytes=caches, row_bytes=rows if are_narrow else (), **budgets
    )
    assert set(plan.travelling) <= set(plan.streamed_layers)
    kept = sum(cache for index, cache in enumerate(caches) if index not in plan.travelling)
    assert plan.resident_bytes + kept + plan.ring_bytes <= device_budget + least
    assert plan.kept_cache_bytes == kept
    assert plan.travelling_bytes == sum(rows[index] for index in plan.travelling)
    assert plan.travelling_bytes == sum(map(plan.travelling_bytes_of, range(len(sizes))))
    assert plan.host_bytes <= max(host_budget, plan.travelling_bytes)
    if plan.travelling:
        row_slots = max(rows[index] for index in plan.travelling)
        slots = num_slots * (max(sizes[index] for index in plan.streamed_layers) + row_slots)
        widened = max(caches[index] for index in plan.travelling) if are_narrow else 0
        assert plan.ring_bytes == slots + widened
    else:
        assert plan.row_slot_bytes == plan.widened_bytes == 0


def test_equal_layers_keep_as_many_caches_as_are_left_room_for() -> None:
    plan = plan_residency([10] * 8, num_slots=2, device_budget_bytes=70, host_budget_bytes=60, cache_bytes=[4] * 8)
    assert plan.ring_bytes == 28  # a slot is a layer and its cache
    assert len(plan.resident_layers) == 3  # 42 of the 42 beside the ring
    assert (len(plan.travelling), plan.host_bytes, plan.disk_bytes) == (5, 20 + 40, 10)
    more = plan_residency([10] * 8, num_slots=2, device_budget_bytes=78, host_budget_bytes=60, cache_bytes=[4] * 8)
    assert (len(more.resident_layers), len(more.travelling)) == (3, 3)


def test_slots_have_room_for_what_is_larger_as_it_comes_from_disk() -> None:
    """Four packed layers of 75 in memory, of 100 in their files; the plan's sizes are those of where each lies."""
    plan = plan_residency([75] * 4, num_slots=2, device_budget_bytes=275, host_budget_bytes=150, disk_bytes=[100] * 4)
    assert sorted(tier.value for tier in plan.tiers) == ["disk", "host", "host", "resident"]
    assert (plan.slot_bytes, plan.resident_bytes, plan.host_bytes, plan.disk_bytes) == (100, 75, 150, 100)
    with pytest.raises(BudgetError, match="need 200 B"):
        plan_residency([75] * 4, num_slots=2, device_budget_bytes=199, host_budget_bytes=0, disk_bytes=[100] * 4)
