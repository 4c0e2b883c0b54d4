"""What a round costs, as tables: copies by layer, computation by tree size, draft steps by width, head and walk.

The planner's input, whether it was measured just now, read from a profile or taken from a data sheet. `pipeline_model`
turns it into seconds. Where a disk's reads and the computation share cores, each slows the other: two numbers say by
how much, so that a pass costs the longer of copies + b * computation and computation + a * copies. Knows no model, no
file and no device.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offload.pipeline_model import RoundPeriods, round_periods_for, round_seconds_for


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds by size: measured points, straight lines between them, the last line's slope beyond; never negative."""

    sizes: tuple[float, ...]
    """Ascending, at least one."""
    seconds: tuple[float, ...]
    """Of each size."""

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.seconds) or (np.diff(self.sizes) <= 0).any():
            raise ValueError("a cost table needs ascending sizes and as many seconds, at least one of each")
        if not all(np.isfinite(self.seconds)) or min(self.seconds) < 0:
            raise ValueError("a cost table's seconds are finite and not negative")

    def __call__(self, sizes: ArrayLike) -> NDArray[np.float64]:
        """Seconds of each size, of the same shape. Below the smallest point its seconds; one point is a constant."""
        wanted = np.asarray(sizes, dtype=np.float64)
        known, seconds = np.asarray(self.sizes, dtype=np.float64), np.asarray(self.seconds, dtype=np.float64)
        inside: NDArray[np.float64] = np.interp(wanted, known, seconds)
        if len(known) == 1:
            return inside
        slope = max(0.0, (seconds[-1] - seconds[-2]) / (known[-1] - known[-2]))
        return np.asarray(inside + slope * np.maximum(wanted - known[-1], 0.0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """Every part of a round. L layers."""

    copy_seconds: tuple[float | None, ...]
    """(L,) of each layer over the link; None for a resident one."""
    pass_seconds: CostTable
    """Computation of all L layers together, by tokens in the pass (the tree's nodes)."""
    draft_step_seconds: CostTable | None
    """A draft forward by its width; None without a draft."""
    walk_seconds: CostTable
    """Head, walk and compaction, by nodes."""
    num_slots: int
    """Slots of the ring."""
    read_seconds: tuple[float | None, ...] = ()
    """(L,) of each layer from the disk behind the link; () without one."""
    num_stages: int = 0
    """Host stages that reads go through."""
    compute_slowdown: float = 0.0
    """Seconds of computation that each second of copying costs, where both share cores and memory; else 0."""
    copy_slowdown: float = 0.0
    """Seconds of copying that each second of computing costs; likewise."""

    def round_seconds(self, num_nodes: ArrayLike, draft_seconds: ArrayLike) -> NDArray[np.float64]:
        """Seconds (C,) of rounds with trees of `num_nodes` (C,) that take `draft_seconds` (C,) to grow."""
        nodes = np.atleast_1d(np.asarray(num_nodes, dtype=np.float64))
        compute_seconds, copy_seconds = self.layer_seconds(nodes)
        return round_seconds_for(
            compute_seconds,
            copy_seconds,
            num_slots=self.num_slots,
            between_passes_seconds=np.asarray(draft_seconds, dtype=np.float64) + self.walk_seconds(nodes),
            read_seconds=self.read_seconds,
            num_stages=self.num_stages,
        )

    def round_periods(self, num_nodes: ArrayLike) -> RoundPeriods:
        """The same for trees (C,) whose draft seconds are not known yet; they come with the walk's, as the gap."""
        compute_seconds, copy_seconds = self.layer_seconds(num_nodes)
        return round_periods_for(
            compute_seconds,
            copy_seconds,
            num_slots=self.num_slots,
            read_seconds=self.read_seconds,
            num_stages=self.num_stages,
        )

    def layer_seconds(self, num_nodes: ArrayLike) -> tuple[NDArray[np.float64], list[NDArray[np.float64] | None]]:
        """Computation (C, L), and per layer its copy (C,) or None, each with what the other slows it down by."""
        nodes = np.atleast_1d(np.asarray(num_nodes, dtype=np.float64))
        per_layer = self.pass_seconds(nodes) / len(self.copy_seconds)  # (C,)
        slowed = [per_layer + self.compute_slowdown * (seconds or 0.0) for seconds in self.copy_seconds]
        copies = [
            None if seconds is None else seconds + self.copy_slowdown * per_layer for seconds in self.copy_seconds
        ]
        return np.stack(slowed, axis=1), copies
