"""The recurrence of offload/pipeline_model.py layer by layer: the oracle of its periods and of the layer streamer."""

from collections import deque
from dataclasses import dataclass

from offload.pipeline_model import round_periods


@dataclass(frozen=True, slots=True)
class PipelineParts:
    """What a round is made of. L layers; every time in seconds."""

    copy_seconds: tuple[float | None, ...]
    """tau: seconds that layer i occupies the link; None for a resident layer. L entries."""
    compute_seconds: tuple[float, ...]
    """kappa: seconds that layer i computes. L entries."""
    num_slots: int
    """R: slots of the ring, at least 1; without meaning if all layers are resident."""
    between_passes_seconds: float = 0.0
    """From the end of a pass's last layer to the earliest start of the next pass's first layer."""
    read_seconds: tuple[float | None, ...] = ()
    """delta: seconds that layer i occupies the disk on its way to a stage; None if it needs none. L entries, or ()."""
    num_stages: int = 0
    """S: host stages; without meaning if no layer is read to one."""
    num_pieces: tuple[int, ...] = ()
    """k: pieces in which layer i passes through stages. L entries, or () for whole layers."""

    @property
    def bound_seconds(self) -> float:
        """A round cannot be shorter than its copies one after the other, its reads, or its computation and the gap."""
        return max(sum(filter(None, self.copy_seconds)), sum(filter(None, self.read_seconds)), self.busy_seconds)

    @property
    def busy_seconds(self) -> float:
        """All computation and the gap."""
        return sum(self.compute_seconds) + self.between_passes_seconds

    @property
    def no_overlap_seconds(self) -> float:
        """A round in which nothing overlaps: what a streamer without a ring would take."""
        return sum(filter(None, (*self.copy_seconds, *self.read_seconds))) + self.busy_seconds


@dataclass(frozen=True, slots=True)
class LayerTiming:
    """One layer in one pass; all four in seconds since the first copy could start."""

    copy_start: float
    """When its copy starts; 0 for a resident layer."""
    copied: float
    """When its bytes are usable; 0 for a resident layer."""
    compute_start: float
    """When its computation starts."""
    computed: float
    """When its computation ends and its slot is free."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What `simulate` returns."""

    passes: tuple[tuple[LayerTiming, ...], ...]
    """Per pass, per layer."""


def simulate(parts: PipelineParts, num_passes: int) -> Schedule:
    """Run the recurrence from an empty ring: copies may start at time 0, and so may the first pass."""
    freed: deque[float] = deque([0.0] * parts.num_slots, maxlen=parts.num_slots)  # computed[i-R] .. computed[i-1]
    emptied: deque[float] = deque([0.0] * parts.num_stages, maxlen=parts.num_stages)  # copied[i-S] .. copied[i-1]
    disk_free = link_free = computed = 0.0
    read_seconds = parts.read_seconds or (None,) * len(parts.copy_seconds)
    num_pieces = parts.num_pieces or (1,) * len(parts.copy_seconds)
    passes = []
    for pass_index in range(num_passes):
        if pass_index > 0:
            computed += parts.between_passes_seconds
        timings = []
        rows = zip(parts.copy_seconds, parts.compute_seconds, read_seconds, num_pieces, strict=True)
        for copy_seconds, compute_seconds, disk_seconds, pieces in rows:
            copy_start = copied = 0.0
            if copy_seconds is not None and disk_seconds is None:
                copy_start = max(link_free, freed[0])
                copied = link_free = copy_start + copy_seconds
            elif copy_seconds is not None and disk_seconds is not None:
                for piece in range(pieces):
                    disk_free = max(disk_free, emptied[0]) + disk_seconds / pieces
                    piece_start = max(link_free, freed[0], disk_free)
                    copy_start = copy_start if piece else piece_start
                    copied = link_free = piece_start + copy_seconds / pieces
                    emptied.append(copied)
            compute_start = max(computed, copied)
            computed = compute_start + compute_seconds
            if copy_seconds is not None:
                freed.append(computed)
            timings.append(LayerTiming(copy_start, copied, compute_start, computed))
        passes.append(tuple(timings))
    return Schedule(tuple(passes))


def round_seconds(parts: PipelineParts) -> float:
    """Return the steady-state period of `simulate`: seconds from one pass's end to the next one's, late enough."""
    periods = round_periods(
        parts.compute_seconds,
        parts.copy_seconds,
        num_slots=parts.num_slots,
        read_seconds=parts.read_seconds,
        num_stages=parts.num_stages,
        num_pieces=parts.num_pieces,
    )
    return float(periods(parts.between_passes_seconds)[0])
