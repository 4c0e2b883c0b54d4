"""Rows that wait in host memory beside their layer and cross the link with it: a cache that the device has no room for.

Every travelling layer has rows of one size, one per token. Before a pass needs the layer, the rows so far follow its
weights into rows on the device, a set for each slot of the ring; the pass appends its own behind them, and only those
come back. What was there when a pass began never changes meanwhile, so that it may be fetched ahead for the next one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch

from offload.memory import allocate_slab


class TravellingRows:
    """The rows of a model's travelling layers, in host memory."""

    def __init__(
        self,
        row_bytes: Mapping[int, int],
        *,
        capacity: int,
        allocate: Callable[[int], torch.Tensor] = allocate_slab,
    ) -> None:
        """`row_bytes` of each layer that travels; `capacity` rows each; `allocate(bytes)` is called once for each."""
        self.capacity = capacity
        self._rows = {
            index: allocate(capacity * size)[: capacity * size].view(capacity, size)
            for index, size in row_bytes.items()
        }

    @property
    def layers(self) -> Collection[int]:
        """Indices of the layers that travel."""
        return self._rows.keys()

    @property
    def num_bytes(self) -> int:
        """Bytes of host memory, whether written to or not."""
        return sum(rows.numel() for rows in self._rows.values())

    @property
    def slot_bytes(self) -> int:
        """Bytes on the device that hold any one layer's rows."""
        return max((rows.numel() for rows in self._rows.values()), default=0)

    def of_layer(self, layer_index: int) -> torch.Tensor | None:
        """Return a layer's rows in host memory, uint8 (capacity, bytes); None if it does not travel."""
        return self._rows.get(layer_index)

    def in_slot(self, layer_index: int, slot: torch.Tensor) -> torch.Tensor:
        """Return the same view of a slot on the device, uint8 of `slot_bytes` or more."""
        rows = self._rows[layer_index]
        return slot[: rows.numel()].view(rows.shape)

    def keep(self, start: int, places: Sequence[int]) -> None:
        """Move the rows at `places`, in order, to start, start + 1, ... in every layer; no copy may be on its way."""
        index = np.asarray(places, dtype=np.int64)
        for rows in self._rows.values():
            array = rows.numpy()
            array[start : start + len(index)] = array[index]
