"""Everything pinned, or a part beside a ring, or a ring alone: within the budget, nothing left that would fit."""

import random

import pytest

from offload.checkpoint.stored_sizes import PAGE_BYTES, round_up_to_page
from offload.pinning.pinning_plan import MAX_STAGES, MIN_STAGE_BYTES, PinningPlan, plan_pinning

GB = 10**9
MIB = 1 << 20
LAYER = 1_711_000_000
"""About a layer of a model of 70 billion weights in bfloat16."""


def gaps(places: tuple[int, ...], num_places: int) -> set[int]:
    following = (*places[1:], places[0] + num_places)
    return {after - place - 1 for place, after in zip(places, following, strict=True)}


@pytest.mark.parametrize("budget_bytes", [None, 60 * round_up_to_page(LAYER), 200 * GB])
def test_everything_is_pinned_if_the_budget_holds_it_to_the_byte(budget_bytes: int | None) -> None:
    plan = plan_pinning([LAYER] * 60, budget_bytes)
    assert plan.pinned_slabs == tuple(range(60)) and plan.ring_bytes == 0 and plan.num_pageable == 0
    assert plan.sentence() == "all 60 host layers (103 GB) are pinned"


def test_one_byte_less_and_a_ring_takes_the_place_of_some_layers() -> None:
    plan = plan_pinning([LAYER] * 60, 60 * round_up_to_page(LAYER) - 1)
    assert (plan.num_stages, plan.stage_bytes) == (2, round_up_to_page(LAYER))
    assert len(plan.pinned_slabs) == 57  # 59 slabs would fit, two of which are the ring's


def test_the_sentence_says_what_and_why() -> None:
    plan = plan_pinning([LAYER] * 60, 75_300 * 10**6)
    assert plan.sentence() == (
        "42 of 60 host layers (71.9 GB of 103 GB) are pinned, the driver grants no more; "
        "the other 18 go through a pinned ring of 2 x 1.71 GB filled by copy threads"
    )


@pytest.mark.parametrize("num_wanted", range(1, 57))
def test_pinned_layers_are_spread_evenly(num_wanted: int) -> None:
    """A run of pageable layers would have the copy threads work without pause, and then rest."""
    size = round_up_to_page(LAYER)
    plan = plan_pinning([LAYER] * 60, (num_wanted + 2) * size, min_stage_bytes=LAYER)
    assert len(plan.pinned_slabs) == num_wanted
    assert max(gaps(plan.pinned_slabs, 60)) - min(gaps(plan.pinned_slabs, 60)) <= 1


def test_a_small_budget_cuts_the_stages_so_that_layers_get_most_of_it() -> None:
    plan = plan_pinning([LAYER] * 60, 4 * GB)
    assert plan.pinned_slabs == (30,)
    assert plan.stage_bytes == round_up_to_page(-(-LAYER // 3)) and plan.num_stages == 4


def test_what_holds_no_layer_becomes_a_ring() -> None:
    """The usual case of WSL2."""
    plan = plan_pinning([LAYER] * 60, 800 * MIB)
    assert plan.pinned_slabs == () and plan.num_stages == MAX_STAGES
    assert MIN_STAGE_BYTES < plan.stage_bytes < LAYER and plan.ring_bytes <= 800 * MIB
    assert plan.sentence().endswith(
        "0 of 60 host layers (0 B of 103 GB) are pinned, the driver grants no more; "
        "all of them go through a pinned ring of 4 x 107 MB filled by copy threads"
    )


def test_whole_stages_can_be_demanded() -> None:
    plan = plan_pinning([LAYER] * 60, 4 * GB, min_stage_bytes=LAYER)
    assert (plan.num_stages, plan.stage_bytes, plan.pinned_slabs) == (2, round_up_to_page(LAYER), ())
    assert plan_pinning([LAYER] * 60, 3 * GB, min_stage_bytes=LAYER).ring_bytes == 0


@pytest.mark.parametrize("budget_bytes", [0, 2 * MIN_STAGE_BYTES - 1])
def test_a_budget_too_small_for_a_ring_leaves_pageable_memory_and_says_so(budget_bytes: int) -> None:
    plan = plan_pinning([LAYER] * 60, budget_bytes)
    assert plan.pinned_slabs == () and plan.num_stages == plan.stage_bytes == 0
    assert plan.sentence().endswith(
        "all of them go through pageable memory, which the device cannot fetch from by itself"
    )


def test_disk_layers_need_a_ring_even_if_all_host_layers_are_pinned() -> None:
    plan = plan_pinning([LAYER] * 40, None, disk_slab_sizes=[LAYER // 2] * 20)
    assert plan.num_pageable == 0 and (plan.num_stages, plan.stage_bytes) == (2, round_up_to_page(LAYER // 2))
    assert plan.sentence() == (
        "all 40 host layers (68.4 GB) are pinned; "
        "20 disk layers go through a pinned ring of 2 x 856 MB filled by copy threads"
    )


def test_disk_and_pageable_layers_share_one_ring() -> None:
    plan = plan_pinning([LAYER] * 60, 50 * GB, disk_slab_sizes=[LAYER])
    assert plan.sentence().endswith("copy threads; 1 disk layer goes the same way")
    assert plan.pinned_slab_bytes + plan.ring_bytes <= 50 * GB


def test_only_disk_layers() -> None:
    plan = plan_pinning([], 800 * MIB, disk_slab_sizes=[LAYER] * 3)
    assert plan.sentence() == "3 disk layers go through a pinned ring of 2 x 107 MB filled by copy threads"


def test_no_layers_need_nothing() -> None:
    assert plan_pinning([], 0) == PinningPlan((), (), 0, 0, num_disk_layers=0, cause="the driver grants no more")
    assert plan_pinning([], 0).sentence() == "no layer streams, so nothing has to be pinned"


def test_a_single_layer_left_over_reads_well() -> None:
    plan = plan_pinning([MIB] * 5, 5 * MIB - 1).with_outcome([0, 1, 2, 3], refused=None, is_ring_pinned=True)
    assert "; the other 1 goes through a pinned ring of" in plan.sentence()


def test_the_outcome_of_loading_replaces_what_was_hoped_for() -> None:
    """With no limit known no ring was planned, and after a refusal none can be pinned."""
    hoped = plan_pinning([LAYER] * 60, None)
    refused = "the driver pinned 12.0 GB of host memory and then no more (error 2, out of memory)"
    plan = hoped.with_outcome(range(7), refused=refused, is_ring_pinned=False)
    assert plan.pinned_slabs == tuple(range(7)) and plan.ring_bytes == 0
    assert plan.sentence() == (
        f"7 of 60 host layers (12.0 GB of 103 GB) are pinned, {refused}; "
        "the other 53 go through pageable memory, which the device cannot fetch from by itself"
    )
    kept = plan_pinning([LAYER] * 60, 50 * GB)
    assert kept.with_outcome(kept.pinned_slabs, refused=None, is_ring_pinned=True) == kept


@pytest.mark.parametrize("seed", range(300))
def test_random_plans_keep_to_the_budget_and_leave_nothing_that_would_fit(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([rng.randrange(1, 64 * MIB), 20 * MIB]) for _ in range(rng.randrange(0, 20))]
    disk = [rng.randrange(1, 64 * MIB) for _ in range(rng.choice([0, 0, 3]))]
    budget = rng.randrange(0, max(2, 2 * sum(sizes) + 64 * MIB))
    plan = plan_pinning(sizes, budget, disk_slab_sizes=disk)
    assert plan.slab_sizes == tuple(round_up_to_page(size) for size in sizes)
    assert plan.pinned_slab_bytes + plan.ring_bytes <= budget
    assert plan.stage_bytes % PAGE_BYTES == 0 and plan.stage_bytes <= round_up_to_page(max([*sizes, *disk], default=0))
    assert plan.num_stages in (0, 2, 3, 4) and (plan.num_stages == 0) == (plan.stage_bytes == 0)
    left = budget - plan.pinned_slab_bytes - 2 * plan.stage_bytes
    unpinned = [size for place, size in enumerate(plan.slab_sizes) if place not in plan.pinned_slabs]
    assert all(size > left for size in unpinned)
    if sum(plan.slab_sizes) <= budget and not disk:
        assert not unpinned and plan.num_stages == 0
    if unpinned or disk:
        largest = max(*unpinned, *map(round_up_to_page, disk), 0, 0)
        assert plan.num_stages or budget < 2 * min(MIN_STAGE_BYTES, round_up_to_page(max([*sizes, *disk], default=0)))
        assert plan.stage_bytes == 0 or plan.stage_bytes >= min(MIN_STAGE_BYTES, largest)
