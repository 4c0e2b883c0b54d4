"""The stages in front of a device's link: how many, how large, and the pieces in which a layer passes through them.

A stage need not hold a layer: while one piece is sent, the next is read, so that a ring of a few hundredths of a
gigabyte moves layers of any size. Pure arithmetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from offload.units import PAGE_BYTES, round_up_to_page

LEAST_STAGE_BYTES = 16 << 20
"""0.6 ms of a link of 25 GB/s, several times what handing a piece over takes."""
MOST_STAGES = 4


@dataclass(frozen=True, slots=True)
class StageRing:
    """Stages of one size."""

    num_stages: int = 0
    stage_bytes: int = 0
    """Of each; whole pages."""

    @property
    def num_bytes(self) -> int:
        return self.num_stages * self.stage_bytes

    def num_pieces(self, slab_bytes: int) -> int:
        """Return in how many pieces a slab passes through; 1 where there is no ring."""
        return max(1, -(-slab_bytes // self.stage_bytes)) if self.num_stages else 1


def plan_stages(slab_bytes: int, budget_bytes: int | None = None) -> StageRing:
    """Return the ring for slabs of at most `slab_bytes`, within a budget (None: no limit); none where it holds no ring.

    Four stages of a quarter of a slab: together they hold one, which a disk can read ahead while layers from host
    memory are on the link. Smaller budgets make stages smaller, down to LEAST_STAGE_BYTES, and then fewer.
    """
    size = round_up_to_page(slab_bytes)
    if size == 0:
        return StageRing()
    num_pieces = max(1, min(MOST_STAGES, size // LEAST_STAGE_BYTES))
    ring = StageRing(max(2, num_pieces), round_up_to_page(-(-size // num_pieces)))
    if budget_bytes is None or ring.num_bytes <= budget_bytes:
        return ring
    for num_stages in range(MOST_STAGES, 1, -1):
        stage_bytes = min(size, budget_bytes // num_stages // PAGE_BYTES * PAGE_BYTES)
        if stage_bytes >= LEAST_STAGE_BYTES:
            return StageRing(num_stages, stage_bytes)
    return StageRing()


def piece_bounds(slab_bytes: int, num_pieces: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of pieces as equal as whole pages can be, in order; fewer where there are not enough pages."""
    num_pages = -(-slab_bytes // PAGE_BYTES)
    num_pieces = max(1, min(num_pieces, num_pages))
    for index in range(num_pieces):
        begin, end = (PAGE_BYTES * (place * num_pages // num_pieces) for place in (index, index + 1))
        yield begin, min(end, slab_bytes)
