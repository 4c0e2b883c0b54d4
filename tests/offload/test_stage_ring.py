"""Rings for every layer and every budget, by arithmetic."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies

from offload.stage_ring import LEAST_STAGE_BYTES, MOST_STAGES, StageRing, piece_bounds, plan_stages
from offload.units import PAGE_BYTES, round_up_to_page

NF4, INT8, BF16 = 441_000_000, 856_000_000, 1_711_000_000
"""A layer of a model of 70 billion weights."""
MB = 1_000_000


@pytest.mark.parametrize("layer_bytes", [NF4, INT8, BF16])
@pytest.mark.parametrize("budget_bytes", [400 * MB, 800 * MB, 1600 * MB, 3200 * MB, 4000 * MB])
def test_every_format_of_a_large_model_has_a_ring_from_little_pinned_memory_on(
    layer_bytes: int, budget_bytes: int
) -> None:
    """When a stage had to hold a layer, 0.8 GB of WSL2 gave none, and a fifth of the link's rate."""
    ring = plan_stages(layer_bytes, budget_bytes)
    assert ring.num_stages == 4
    assert ring.stage_bytes == min(round_up_to_page(-(-layer_bytes // 4)), budget_bytes // 4 // PAGE_BYTES * PAGE_BYTES)
    assert ring.stage_bytes > 95 * MB and ring.num_pieces(layer_bytes) <= 18


def test_the_ring_of_a_large_layer_holds_it_once() -> None:
    for layer_bytes in (NF4, INT8, BF16):
        assert layer_bytes <= plan_stages(layer_bytes).num_bytes < layer_bytes + MOST_STAGES * PAGE_BYTES


@pytest.mark.parametrize(
    ("layer_bytes", "budget_bytes", "expected"),
    [
        (0, None, StageRing()),
        (7 << 20, None, StageRing(2, 7 << 20)),  # small layers pass whole
        (16 << 20, None, StageRing(2, 16 << 20)),
        (40 << 20, None, StageRing(2, 20 << 20)),
        (52 << 20, None, StageRing(3, round_up_to_page((52 << 20) // 3))),
        (NF4, 64 << 20, StageRing(4, 16 << 20)),
        (NF4, (64 << 20) - 1, StageRing(3, ((64 << 20) - 1) // 3 // PAGE_BYTES * PAGE_BYTES)),
        (NF4, 32 << 20, StageRing(2, 16 << 20)),
        (NF4, (32 << 20) - 1, StageRing()),
        (7 << 20, (14 << 20) - 1, StageRing()),
    ],
)
def test_small_layers_and_small_budgets(layer_bytes: int, budget_bytes: int | None, expected: StageRing) -> None:
    assert plan_stages(layer_bytes, budget_bytes) == expected


@given(strategies.integers(1, 2 << 30), strategies.none() | strategies.integers(0, 8 << 30))
def test_a_ring_keeps_to_its_budget_and_takes_every_piece(layer_bytes: int, budget_bytes: int | None) -> None:
    ring = plan_stages(layer_bytes, budget_bytes)
    if ring.num_stages == 0:
        assert budget_bytes is not None and budget_bytes < 2 * min(LEAST_STAGE_BYTES, round_up_to_page(layer_bytes))
        return
    assert 2 <= ring.num_stages <= MOST_STAGES and (budget_bytes is None or ring.num_bytes <= budget_bytes)
    bounds = list(piece_bounds(layer_bytes, ring.num_pieces(layer_bytes)))
    assert len(bounds) == ring.num_pieces(layer_bytes)
    assert max(end - begin for begin, end in bounds) <= ring.stage_bytes
    assert min(end - begin for begin, end in bounds) > max(end - begin for begin, end in bounds) - 2 * PAGE_BYTES


@given(strategies.integers(1, 50 * PAGE_BYTES), strategies.integers(1, 60))
def test_pieces_are_whole_pages_in_a_row(slab_bytes: int, num_pieces: int) -> None:
    bounds = list(piece_bounds(slab_bytes, num_pieces))
    assert bounds[0][0] == 0 and bounds[-1][1] == slab_bytes
    assert all(before[1] == after[0] and after[0] % PAGE_BYTES == 0 for before, after in pairwise(bounds))
    assert all(begin < end for begin, end in bounds) and len(bounds) <= num_pieces
