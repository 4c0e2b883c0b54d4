"""Which layer's bytes live where: resident on the device, in host memory, or on disk.

Pure: sizes and budgets in, tiers out. Residents are spread evenly between streamed layers, around the end of a pass
too, because a run of residents leaves the link idle while it computes; disk layers are spread likewise among the
streamed ones, so that both links work at the same time. Where caches are planned too, a resident layer's stays on the
device, and a streamed one's travels with the layer, unless what is left of the device still holds it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from operator import add, itemgetter, sub
from typing import TypeAlias

from offload.errors import BudgetError
from offload.units import format_bytes


class Tier(Enum):
    """Where a layer's bytes wait for their turn."""

    RESIDENT = "resident"
    """In device memory for good."""
    HOST = "host"
    """In host memory; copied to a slot in every pass."""
    DISK = "disk"
    """In its file; read to a slot in every pass."""


@dataclass(frozen=True, slots=True)
class ResidencyPlan:
    """A tier for every layer, and the ring that the streamed ones share."""

    tiers: tuple[Tier, ...]
    layer_bytes: tuple[int, ...]
    """Per layer, as it is where it lies."""
    num_slots: int
    """Slots of the ring; 0 if nothing streams."""
    cache_bytes: tuple[int, ...] = ()
    """Per layer: what its keys and values take, wherever they are; empty if they are no part of the plan."""
    travelling: tuple[int, ...] = ()
    """Streamed layers whose keys and values wait in host memory and cross the link with them."""
    row_bytes: tuple[int, ...] = ()
    """Per layer: what its keys and values take where they travel, if that is not what they take on the device."""

    @property
    def streamed_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are copied in every pass."""
        return tuple(index for index, tier in enumerate(self.tiers) if tier is not Tier.RESIDENT)

    @property
    def resident_layers(self) -> tuple[int, ...]:
        return tuple(index for index, tier in enumerate(self.tiers) if tier is Tier.RESIDENT)

    @property
    def slot_bytes(self) -> int:
        return max((self.layer_bytes[index] for index in self.streamed_layers), default=0)

    @property
    def travelling_bytes(self) -> int:
        """Of host memory, for keys and values; what crosses the link in a pass once the context is full."""
        return sum(map(self.travelling_bytes_of, self.travelling))

    def travelling_bytes_of(self, layer_index: int) -> int:
        """Return one layer's share of `travelling_bytes`."""
        return (self.row_bytes or self.cache_bytes)[layer_index] if layer_index in self.travelling else 0

    @property
    def kept_cache_bytes(self) -> int:
        """Of the device, for the keys and values that do not travel."""
        return sum(size for index, size in enumerate(self.cache_bytes) if index not in self.travelling)

    @property
    def row_slot_bytes(self) -> int:
        """Beside each slot: room for any one travelling layer's keys and values."""
        return max(map(self.travelling_bytes_of, self.travelling), default=0)

    @property
    def widened_bytes(self) -> int:
        """Of the device: where one layer after the other has its narrow rows widened; 0 where none are narrow."""
        return max((self.cache_bytes[index] for index in self.travelling), default=0) if self.row_bytes else 0

    @property
    def ring_bytes(self) -> int:
        """Of all slots, and of the place where narrow rows are widened."""
        return self.num_slots * (self.slot_bytes + self.row_slot_bytes) + self.widened_bytes

    @property
    def resident_bytes(self) -> int:
        """Of the device budget, beside the ring."""
        return self._bytes_of(Tier.RESIDENT)

    @property
    def host_bytes(self) -> int:
        """Of layers, and of the keys and values that travel."""
        return self._bytes_of(Tier.HOST) + self.travelling_bytes

    @property
    def disk_bytes(self) -> int:
        return self._bytes_of(Tier.DISK)

    @property
    def streamed_bytes(self) -> int:
        """Copied in every pass: host and disk tier, and the keys and values that travel, as many as there are."""
        return self.host_bytes + self.disk_bytes

    def _bytes_of(self, wanted: Tier) -> int:
        return sum(size for size, tier in zip(self.layer_bytes, self.tiers, strict=True) if tier is wanted)


def plan_residency(
    layer_bytes: Sequence[int],
    *,
    num_slots: int,
    device_budget_bytes: int,
    host_budget_bytes: int,
    saved_bytes: Sequence[int] | None = None,
    cache_bytes: Sequence[int] = (),
    row_bytes: Sequence[int] = (),
    disk_bytes: Sequence[int] = (),
) -> ResidencyPlan:
    """Fill the device budget with residents beside a ring of `num_slots` slots, then the host budget; the rest is disk.

    `layer_bytes` are slab sizes as allocated. The device budget is what remains for layers and ring after all fixed
    costs. If every layer fits without a ring, there is none. No layer could be moved to a faster tier on top.
    `saved_bytes`: per layer, what its residency frees elsewhere on the device (a draft that shares it needs no copy).
    `cache_bytes`: per layer, what its keys and values take, if they may travel: the device budget pays for the others,
    the host budget for these. `row_bytes`: what they take where they travel, if that is another number; the device then
    has room to widen those of one layer. `disk_bytes`: what each layer takes as it comes from disk, if that is another
    number; every slot then has room for any layer so.

    Raises BudgetError if the device budget does not hold the ring.
    """
    sizes = tuple(layer_bytes)
    in_slots = tuple(disk_bytes) or sizes
    caches = tuple(cache_bytes) or (0,) * len(sizes)
    rows = tuple(row_bytes) or caches
    widened = caches if row_bytes else (0,) * len(sizes)
    costs: tuple[int, ...] = tuple(map(add, sizes, caches))
    if saved_bytes is not None:
        costs = tuple(map(sub, costs, saved_bytes))
    if sum(costs) <= device_budget_bytes:
        tiers = [Tier.RESIDENT] * len(sizes)
        return ResidencyPlan(tuple(tiers), sizes, 0, tuple(cache_bytes), row_bytes=tuple(row_bytes))

    by_size = [sorted(enumerate(items), key=itemgetter(1), reverse=True) for items in (in_slots, rows, widened)]

    def device_cost(residents: frozenset[int]) -> int:
        largest, largest_rows, largest_widened = (
            next((size for index, size in items if index not in residents), 0) for items in by_size
        )
        ring_bytes = num_slots * (largest + largest_rows) + largest_widened
        return sum(costs[index] for index in residents) + ring_bytes

    residents = choose_evenly(costs, device_cost, device_budget_bytes)
    if residents is None:
        needed = min(sum(costs), num_slots * (max(in_slots) + max(rows)) + max(widened))
        missing = needed - device_budget_bytes
        raise BudgetError(
            f"{format_bytes(max(0, device_budget_bytes))} of device memory are left for layers, but {num_slots} slots "
            f"need {format_bytes(needed)}; raise the device memory budget by {format_bytes(missing)}."
        )
    streamed = [index for index in range(len(sizes)) if index not in residents]
    travelling: tuple[int, ...] = ()
    if cache_bytes:
        kept = _as_many_as_fit([caches[index] for index in streamed], device_budget_bytes - device_cost(residents))
        travelling = tuple(index for place, index in enumerate(streamed) if place not in kept)
        host_budget_bytes -= sum(rows[index] for index in travelling)
    in_host = _as_many_as_fit([sizes[index] for index in streamed], host_budget_bytes)
    tiers = [Tier.RESIDENT] * len(sizes)
    for place, index in enumerate(streamed):
        tiers[index] = Tier.HOST if place in in_host else Tier.DISK
    lying = tuple(
        in_slots[index] if tier is Tier.DISK else size
        for index, (size, tier) in enumerate(zip(sizes, tiers, strict=True))
    )
    return ResidencyPlan(tuple(tiers), lying, num_slots, tuple(cache_bytes), travelling, tuple(row_bytes))


def _as_many_as_fit(sizes: Sequence[int], budget_bytes: int) -> frozenset[int]:
    """Return evenly spread places whose sizes fit the budget together."""
    chosen = choose_evenly(sizes, lambda places: sum(sizes[place] for place in places), max(0, budget_bytes))
    assert chosen is not None  # choosing none costs nothing
    return chosen


def spread_evenly(num_places: int, num_chosen: int) -> tuple[int, ...]:
    """Return `num_chosen` of `num_places` cyclic places, of which no two gaps, around the end too, differ by over one.

    The same holds for the places that are not chosen. Centred: one of five is the middle one, place 2.
    """
    return tuple((2 * rank + 1) * num_places // (2 * num_chosen) for rank in range(num_chosen))


_Cost: TypeAlias = Callable[[frozenset[int]], int]


def choose_evenly(sizes: Sequence[int], cost: _Cost, budget_bytes: int) -> frozenset[int] | None:
    """Return as many evenly spread places as the budget holds, then whatever still fits; None if even no place does."""
    chosen = next((places for places in _even_choices(sizes, budget_bytes) if cost(places) <= budget_bytes), None)
    if chosen is None:
        return None
    # Only layers of different sizes leave room here: equal ones cost the same wherever they are.
    largest_first = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    while True:
        grown = (chosen | {place} for place in largest_first if place not in chosen)
        fitting = next((places for places in grown if cost(places) <= budget_bytes), None)
        if fitting is None:
            return chosen
        chosen = fitting


def _even_choices(sizes: Sequence[int], budget_bytes: int) -> Iterator[frozenset[int]]:
    """Yield evenly spread sets of places, the largest first, and of each size every rotation, centred first."""
    num_places = len(sizes)
    smallest_first = list(accumulate(sorted(sizes)))
    largest_number = sum(total <= budget_bytes for total in smallest_first)
    for num_chosen in range(largest_number, -1, -1):
        pattern = spread_evenly(num_places, num_chosen)
        for shift in range(num_places if smallest_first and len(set(sizes)) > 1 else 1):
            yield frozenset((place + shift) % num_places for place in pattern)
