"""Every layer gets memory in its tier, and one tier down where memory runs out at layer k."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offload.checkpoint.layer_layout import LayerLayout, SlabRange
from offload.copying.copy_engine import HostSource
from offload.errors import BudgetError
from offload.layer_placement import LayerPlacer, PlacedLayers
from offload.layer_streamer import ResidentLayer
from offload.memory import allocate_slab
from offload.pinning.pinned_memory import HostPinner
from offload.residency_plan import ResidencyPlan, Tier
from offload.units import PAGE_BYTES

R, H, D = Tier.RESIDENT, Tier.HOST, Tier.DISK
NUM_LAYERS = 5


@pytest.fixture
def layouts(tmp_path: Path) -> list[LayerLayout]:
    """Layer i is a page of the byte i + 1."""
    file = tmp_path / "layers.bin"
    file.write_bytes(b"".join(bytes([index + 1]) * PAGE_BYTES for index in range(NUM_LAYERS)))
    return [
        LayerLayout((), (SlabRange(file, index * PAGE_BYTES, PAGE_BYTES, 0),), PAGE_BYTES, PAGE_BYTES - 1)
        for index in range(NUM_LAYERS)
    ]


def plan_of(tiers: tuple[Tier, ...]) -> ResidencyPlan:
    return ResidencyPlan(tiers, (PAGE_BYTES,) * len(tiers), num_slots=2)


def failing_at(number: int, error: Exception) -> Callable[[int], torch.Tensor]:
    """Allocates, but raises at the given call."""
    calls = [0]

    def allocate(num_bytes: int) -> torch.Tensor:
        calls[0] += 1
        if calls[0] - 1 == number:
            raise error
        return allocate_slab(num_bytes)

    return allocate


class ShortMemory(HostPinner):
    """A pinner whose host memory ends at some slab."""

    def __init__(self, number: int, error: Exception) -> None:
        self._allocate = failing_at(number, error)

    def allocate(self, num_bytes: int, *, huge_pages: bool = False) -> torch.Tensor:
        return self._allocate(num_bytes)


def check_homes(placement: PlacedLayers, layouts: list[LayerLayout]) -> None:
    """Every layer that is not on disk has a home of its own, which is the memory that the streamer takes it from."""
    assert [home.index for home in placement.homes] == [i for i, tier in enumerate(placement.tiers) if tier is not D]
    for home in placement.homes:
        layer = placement.layers[home.index]
        assert not isinstance(layer, LayerLayout) and layer.slab is home.slab
        assert home.layout is layouts[home.index]
        assert home.is_to_pin == (placement.tiers[home.index] is H)


def test_each_tier_has_its_kind_of_source(layouts: list[LayerLayout]) -> None:
    placer = LayerPlacer(pinner=HostPinner(), host_budget_bytes=1 << 30)
    placement = placer.place(layouts, plan_of((R, H, D, H, R)))
    assert [type(layer) for layer in placement.layers] == [
        ResidentLayer,
        HostSource,
        LayerLayout,
        HostSource,
        ResidentLayer,
    ]
    assert placement.tiers == (R, H, D, H, R)
    assert placement.notes == ()
    check_homes(placement, layouts)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("out"), RuntimeError("sim: out of memory"), MemoryError(), OSError(errno.ENOMEM, "")],
)
def test_a_device_that_is_full_at_layer_k_gives_the_rest_to_host_memory(
    layouts: list[LayerLayout], number: int, error: Exception
) -> None:
    placer = LayerPlacer(pinner=HostPinner(), host_budget_bytes=1 << 30, allocate_on_device=failing_at(number, error))
    placement = placer.place(layouts, plan_of((R, R, D, R, R)))
    wanted = [R] * number + [H] * (4 - number)
    assert placement.tiers == (*wanted[:2], D, *wanted[2:])
    (note,) = placement.notes
    assert f"the device ran out of memory at layer {(0, 1, 3, 4)[number]}" in note
    check_homes(placement, layouts)


def test_where_the_host_budget_is_spent_the_rest_streams_from_disk(layouts: list[LayerLayout]) -> None:
    placer = LayerPlacer(
        pinner=HostPinner(),
        host_budget_bytes=2 * PAGE_BYTES,
        allocate_on_device=failing_at(0, torch.OutOfMemoryError("out")),
    )
    placement = placer.place(layouts, plan_of((R, H, R, R, D)))
    assert placement.tiers == (H, H, D, D, D)
    check_homes(placement, layouts)


@pytest.mark.parametrize("number", range(3))
def test_host_memory_that_ends_at_slab_k_gives_the_rest_to_disk(layouts: list[LayerLayout], number: int) -> None:
    pinner = ShortMemory(number, OSError(errno.ENOMEM, "Cannot allocate memory"))
    placer = LayerPlacer(pinner=pinner, host_budget_bytes=1 << 30)
    placement = placer.place(layouts, plan_of((R, H, H, R, H)))
    assert [tier for index, tier in enumerate(placement.tiers) if index in (1, 2, 4)] == [H] * number + [D] * (
        3 - number
    )
    (note,) = placement.notes
    assert "host memory ran out at layer" in note
    check_homes(placement, layouts)


def test_a_layer_that_no_slot_could_stream_is_refused(layouts: list[LayerLayout]) -> None:
    """All layers were to be resident, so there is no ring: one sentence instead of a crash."""
    placer = LayerPlacer(
        pinner=HostPinner(),
        host_budget_bytes=0,
        allocate_on_device=failing_at(2, torch.OutOfMemoryError("out")),
    )
    with pytest.raises(BudgetError, match=r"layer 2.*--device-memory"):
        placer.place(layouts, ResidencyPlan((R,) * 5, (PAGE_BYTES,) * 5, num_slots=0))


def test_other_errors_of_an_allocator_are_not_taken_for_full_memory(layouts: list[LayerLayout]) -> None:
    placer = LayerPlacer(
        pinner=HostPinner(),
        host_budget_bytes=0,
        allocate_on_device=failing_at(0, RuntimeError("driver lost")),
    )
    with pytest.raises(RuntimeError, match="driver lost"):
        placer.place(layouts, plan_of((R, D, D, D, D)))
