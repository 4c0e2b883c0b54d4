"""Which host layers are pinned, and how the others cross the link: everything, a part and a ring, or nothing.

Pure: sizes and a budget in, a plan and one sentence for people out. Pinned layers are fetched by the device itself.
The rest, and layers on disk, pass through a few pinned stages that threads fill; the ring must be allocated and pinned
before any layer, because a driver that has refused once pins nothing more. Knows no device and no file.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from offload.checkpoint.stored_sizes import round_up_to_page
from offload.residency_plan import spread_evenly
from offload.units import format_bytes

MIN_STAGES = 2
"""One is filled while the other is fetched."""
MAX_STAGES = 4
MIN_STAGE_BYTES = 16 << 20
"""Smaller pieces cost more in calls than they save in memory."""
_RING_SHARE = 4
"""Stages are cut until the ring takes about this fraction of the budget: the layers make better use of the rest."""


@dataclass(frozen=True, slots=True)
class PinningPlan:
    """Which host slabs to pin, and the ring for everything else."""

    slab_sizes: tuple[int, ...]
    """Host layers in layer order, in bytes as allocated."""
    pinned_slabs: tuple[int, ...]
    """Places in slab_sizes, ascending."""
    num_stages: int
    """Stages of the pinned ring; 0 if there is none."""
    stage_bytes: int
    """Of each stage, in whole pages; smaller than a slab if the budget is small; 0 if there is no ring."""
    num_disk_layers: int
    """Layers that are read from disk in every pass, through the same ring."""
    cause: str
    """Why not everything is pinned, for the sentence."""

    @property
    def ring_bytes(self) -> int:
        """All stages together; host memory beside the slabs."""
        return self.num_stages * self.stage_bytes

    @property
    def pinned_slab_bytes(self) -> int:
        """All pinned slabs together."""
        return sum(self.slab_sizes[place] for place in self.pinned_slabs)

    @property
    def num_pageable(self) -> int:
        """Host layers that are not pinned."""
        return len(self.slab_sizes) - len(self.pinned_slabs)

    def with_outcome(
        self, pinned_slabs: Collection[int], *, refused: str | None, is_ring_pinned: bool
    ) -> "PinningPlan":
        """The plan as it came out: what was really pinned, and why no more was (a sentence without its full stop)."""
        kept = replace(self, pinned_slabs=tuple(sorted(pinned_slabs)), cause=refused or self.cause)
        return kept if is_ring_pinned else replace(kept, num_stages=0, stage_bytes=0)

    def sentence(self) -> str:
        """What was chosen and why, for people; without its full stop."""
        parts = [part for part in (self._host_part(), self._disk_part()) if part]
        return "; ".join(parts) or "no layer streams, so nothing has to be pinned"

    def _host_part(self) -> str:
        num_slabs, num_pinned = len(self.slab_sizes), len(self.pinned_slabs)
        if num_slabs == 0:
            return ""
        whole, pinned = format_bytes(sum(self.slab_sizes)), format_bytes(self.pinned_slab_bytes)
        if num_pinned == num_slabs:
            which = "the only host layer" if num_slabs == 1 else f"all {num_slabs} host layers"
            return f"{which} ({whole}) {'is' if num_slabs == 1 else 'are'} pinned"
        rest = f"the other {self.num_pageable}" if num_pinned else "all of them"
        goes = "goes" if self.num_pageable == 1 else "go"
        begin = f"{num_pinned} of {num_slabs} host layers ({pinned} of {whole}) are pinned, {self.cause}"
        return f"{begin}; {rest} {goes} {self._way()}"

    def _disk_part(self) -> str:
        if self.num_disk_layers == 0:
            return ""
        layers = "disk layer goes" if self.num_disk_layers == 1 else "disk layers go"
        return f"{self.num_disk_layers} {layers} {'the same way' if self.num_pageable else self._way()}"

    def _way(self) -> str:
        if self.num_stages == 0:
            return "through pageable memory, which the device cannot fetch from by itself"
        return f"through a pinned ring of {self.num_stages} x {format_bytes(self.stage_bytes)} filled by copy threads"


def plan_pinning(
    slab_sizes: Sequence[int],
    budget_bytes: int | None,
    *,
    disk_slab_sizes: Sequence[int] = (),
    min_stage_bytes: int = MIN_STAGE_BYTES,
    cause: str = "the driver grants no more",
) -> PinningPlan:
    """Pin every host slab if the budget holds them; else a ring first, then as many evenly spread slabs as fit beside.

    `slab_sizes`: the host layers', in layer order; `disk_slab_sizes`: those of the layers on disk, which need a ring
    anyway. `budget_bytes`: None for no limit. The ring has 2 stages, and up to 4 if nothing else fits into what is
    left. A budget too small for two stages of `min_stage_bytes` leaves no ring.
    """
    sizes = tuple(round_up_to_page(size) for size in slab_sizes)
    disk_sizes = tuple(round_up_to_page(size) for size in disk_slab_sizes)
    pinned = tuple(range(len(sizes)))
    stage_bytes = _choose_stage_bytes(disk_sizes, budget_bytes, min_stage_bytes)
    num_stages = MIN_STAGES if stage_bytes else 0
    if budget_bytes is not None and sum(sizes) + num_stages * stage_bytes > budget_bytes:
        stage_bytes = _choose_stage_bytes(sizes + disk_sizes, budget_bytes, min_stage_bytes)
        pinned = _choose_evenly(sizes, budget_bytes - MIN_STAGES * stage_bytes)
        spare_bytes = budget_bytes - sum(sizes[place] for place in pinned)
        num_stages = min(MAX_STAGES, spare_bytes // stage_bytes) if stage_bytes else 0
    return PinningPlan(sizes, pinned, num_stages, stage_bytes, num_disk_layers=len(disk_sizes), cause=cause)


def _choose_stage_bytes(slab_sizes: Sequence[int], budget_bytes: int | None, min_stage_bytes: int) -> int:
    """A whole slab, or equal pieces of the largest where whole ones would take too much; 0 if not even those fit."""
    largest = max(slab_sizes, default=0)
    if budget_bytes is None or largest == 0:
        return largest
    smallest = min(largest, round_up_to_page(min_stage_bytes))
    if MIN_STAGES * smallest > budget_bytes:
        return 0
    wished = min(largest, max(smallest, budget_bytes // (MIN_STAGES * _RING_SHARE)))
    num_pieces = largest // wished  # rounded down and up again, pieces are never smaller than wished
    piece_bytes = round_up_to_page(-(-largest // num_pieces))
    return piece_bytes if MIN_STAGES * piece_bytes <= budget_bytes else smallest


def _choose_evenly(sizes: Sequence[int], budget_bytes: int) -> tuple[int, ...]:
    """As many evenly spread places as the budget holds, then whatever still fits."""
    most = sum(total <= budget_bytes for total in accumulate(sorted(sizes)))
    spreads = (spread_evenly(len(sizes), number) for number in range(most, -1, -1))
    chosen = set(next(places for places in spreads if sum(sizes[place] for place in places) <= budget_bytes))
    left_bytes = budget_bytes - sum(sizes[place] for place in chosen)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        if place not in chosen and sizes[place] <= left_bytes:
            chosen.add(place)
            left_bytes -= sizes[place]
    return tuple(sorted(chosen))
