"""What moves a layer's bytes into a slot while the caller does something else: sources, pending copies, the protocol.

The layer streamer drives it. On a host, `wait` blocks until the bytes are there; on an accelerator it makes the
compute stream wait for the copy stream, and `release` records the event behind which the slot may be overwritten.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from offload.checkpoint.layer_layout import LayerLayout, SlabMove, share_of


@dataclass(frozen=True, slots=True)
class HostSource:
    """A layer that is copied from host memory."""

    slab: torch.Tensor
    """uint8, 1-D, contiguous; a slot in host memory gets all of it, with whatever lies between the weights."""
    payload_bytes: int
    """Bytes of weights in it."""
    moves: tuple[SlabMove, ...] = ()
    """Where its pieces go in a slot on a device; none: all of it as it lies."""
    slot_offset: int = 0
    """Where in a slot in host memory it begins: above 0 for a later part of a layer."""
    is_companion: bool = False
    """Whether it comes beside a layer and is handed out with it, as its rows do: no computation is its own."""

    @property
    def slab_bytes(self) -> int:
        return self.slab.numel()

    def pieces(self, max_bytes: int) -> Iterator[SlabMove]:
        """Yield the moves to a device in pieces of at most `max_bytes`."""
        for move in self.moves or (SlabMove(0, self.slot_offset, self.slab.numel()),):
            for begin in range(0, move.num_bytes, max_bytes):
                num_bytes = min(max_bytes, move.num_bytes - begin)
                yield SlabMove(move.slab_offset + begin, move.device_offset + begin, num_bytes)

    @property
    def in_slot(self) -> slice:
        """Where its bytes go in host memory."""
        return slice(self.slot_offset, self.slot_offset + self.slab_bytes)


CopySource: TypeAlias = LayerLayout | HostSource
"""A layer that is read from its files, or copied from host memory."""


def part_to_read(source: CopySource, begin: int, end: int) -> CopySource:
    """Return the bytes [begin, end) of a source, whole pages but for its own end, for a buffer that holds no more."""
    if (begin, end) == (0, source.slab_bytes):
        return source
    if isinstance(source, LayerLayout):
        return source.part(begin, end)
    return HostSource(source.slab[begin:end], share_of(source.payload_bytes, source.slab_bytes, begin, end))


def part_in_stage(source: CopySource, begin: int, end: int, stage: torch.Tensor) -> HostSource:
    """Return the same bytes, which `stage` holds by now, on their way to their places in the slot of the source."""
    moves = tuple(move for item in source.moves if (move := item.part(begin, end)) is not None)
    is_wanted = moves or not source.moves  # else it lies in a gap between weights
    payload_bytes = share_of(source.payload_bytes, source.slab_bytes, begin, end)
    return HostSource(stage[: end - begin if is_wanted else 0], payload_bytes, moves, slot_offset=begin)


class PendingCopy(Protocol):
    """A copy on its way."""

    @property
    def is_done(self) -> bool:
        """Whether nothing writes to the slot any more: the bytes are there, or the copy failed."""

    def wait(self, cancel: threading.Event | None = None) -> None:
        """Block until computation that is enqueued from now on may use the slot; returns at once from then on.

        Raises LinkError, chained to the cause, if the copy failed, and PassCancelledError if `cancel` is set first. For
        an abandoned copy it returns as soon as nothing writes to the slot any more, and raises no LinkError.
        """

    def abandon(self) -> None:
        """Drop what has not begun, at once, as the bytes are not wanted; `wait` before the slot is used again."""


class CopyEngine(Protocol):
    """Copies one source after the other, in the order of `start`; driven from one thread.

    A slot may be filled by several copies, of the parts of one source in order; computation may use it once each of
    them was waited for.
    """

    @property
    def busy_seconds(self) -> float:
        """Total time so far during which at least one copy was in flight."""

    @property
    def computed_seconds(self) -> float | None:
        """Total device time so far from handing a slot out to its release; None where the caller's clock says it."""

    @property
    def bytes_copied(self) -> int:
        """Total bytes, of weights and rows, of the copies to the device that arrived."""

    def look_ahead(self, cycle: Sequence[CopySource]) -> None:
        """Say which sources will be asked for, in order, over and over; an engine may use it to read ahead."""

    def notify(self, listener: Callable[[], None]) -> None:
        """Have `listener` called, from any thread, whenever copies are done, or for nothing; it returns at once."""

    def start(self, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        """Begin to fill `slot` (uint8, at least source.slab_bytes) and return at once; any failure shows in `wait`."""

    def bring_back(self, rows: torch.Tensor, destination: torch.Tensor) -> PendingCopy:
        """Begin to copy `rows`, which the computation enqueued so far has written on the device, to host memory.

        Both are uint8, contiguous and of one size. Whatever is started later may overwrite the rows. `wait` blocks
        until the bytes are in host memory.
        """

    def release(self, slot: torch.Tensor) -> None:
        """Let a later `start` overwrite the slot after the computation enqueued so far, its last user."""

    def close(self) -> None:
        """Abandon what is in flight, wait until nothing writes any more, and free what is held; may be called again."""
