"""Fills the memory of placed layers from their files on a thread of its own, while passes follow at its heels.

Layers are read in the order in which passes ask for them, and what was read stays. So nothing is read twice, and the
first pass over a model ends about when its last byte has come, whatever it computes meanwhile.
"""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.closing import Closeable
from offload.copying.copy_engine import CopyEngine
from offload.errors import PassCancelledError
from offload.layer_slabs import copy_slab, read_ahead
from offload.memory import allocate_slab, explained_shortage
from offload.packed_layers import PackedLayer
from offload.pinning.pinned_memory import HostPinner
from profiles.errors import OverstoryError

_POLL_SECONDS = 0.02
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class LayerHome:
    """Memory that a layer's bytes are to be read to, and stay in."""

    index: int
    layout: LayerLayout
    """How it is read."""
    slab: torch.Tensor
    """uint8, as large as the layer will be there; on the device or in host memory."""
    is_to_pin: bool = False
    """Whether the slab comes from the pinner, and is pinned once it is full."""
    packed: PackedLayer | None = None
    """What it is to be packed as; None: it stays as it is read."""

    @property
    def is_on_device(self) -> bool:
        return self.slab.device.type != "cpu"

    @property
    def is_bounced(self) -> bool:
        """Whether its bytes are read to another place first."""
        return self.is_on_device or self.packed is not None


class LayerFilling(Closeable):
    """Reads layers to their homes, in order; a context manager, and closing it ends the reading at once.

    A layer is there once its bytes are and the driver is done with its slab. After a failure the reading rests until a
    layer is asked for again that has not come.
    """

    def __init__(
        self,
        homes: Sequence[LayerHome],
        loader: CopyEngine,
        pinner: HostPinner,
        *,
        device: torch.device = _CPU,
    ) -> None:
        """Begins to read. `loader` reads the files; it is closed with the filling. `device`: where escapes go."""
        self._device = device
        self._homes = tuple(homes)
        self._loader = loader
        self._pinner = pinner
        self._coming = {home.index for home in homes}
        self._begun, self._num_bytes = time.perf_counter(), sum(home.layout.payload_bytes for home in homes)
        self._failure: BaseException | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._begin()

    @property
    def is_done(self) -> bool:
        return not self._coming

    @property
    def num_coming_bytes(self) -> int:
        """Weight bytes of the layers that are not there yet."""
        with self._changed:
            return sum(home.layout.payload_bytes for home in self._homes if home.index in self._coming)

    @property
    def seconds_left(self) -> float:
        """Seconds until every layer is there, at the rate so far; 0 before the first has come, and at the end."""
        left = self.num_coming_bytes
        num_bytes = self._num_bytes - left
        return left * (time.perf_counter() - self._begun) / num_bytes if num_bytes else 0.0

    def has(self, index: int) -> bool:
        """Return whether the layer is there, or was never to come."""
        return index not in self._coming

    def wait(self, index: int, cancel: threading.Event | None = None) -> None:
        """Block until the layer is there.

        Raises PassCancelledError once `cancel` is set, and LinkError or BudgetError if the reading fails meanwhile; it
        begins anew where it had failed before.
        """
        with self._changed:
            if not self.has(index) and self._failure is not None:
                self._begin()
            while not self.has(index):
                self._check()
                if cancel is not None and cancel.is_set():
                    raise PassCancelledError("The pass was cancelled while it waited for a layer.")
                self._changed.wait(_POLL_SECONDS)

    def steps(self) -> Generator[int, None, None]:
        """Yield the weight bytes of each layer as it comes, until every one is there; raises as `wait`."""
        left = list(self._homes)
        while left:
            for home in [home for home in left if self.has(home.index)]:
                left.remove(home)
                yield home.layout.payload_bytes
            with self._changed:
                if left and not any(self.has(home.index) for home in left):
                    self._check()
                    self._changed.wait(_POLL_SECONDS)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
        self._loader.close()
        if self._thread is not None:
            self._thread.join()

    def _begin(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._failure = None
        if self._coming:
            self._thread = threading.Thread(target=self._work, name="fill layers", daemon=True)
            self._thread.start()

    def _check(self) -> None:
        if isinstance(self._failure, OverstoryError):
            raise type(self._failure)(str(self._failure)) from self._failure
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            with explained_shortage("the layers on their way to the device"):
                for home in self._read([home for home in self._homes if not self.has(home.index)]):
                    if home.is_to_pin:
                        self._pinner.filled(home.slab, then=partial(self._arrive, home.index))
                    else:
                        self._arrive(home.index)
            self._pinner.finish()
        except BaseException as error:  # raised where a layer is waited for
            with self._changed:
                if not self._is_closed:
                    self._failure = error
                self._changed.notify_all()

    def _read(self, homes: Sequence[LayerHome]) -> Iterator[LayerHome]:
        """Read the layers in order, the next one while this one is used.

        What is for a device, or to be packed, goes through two bounce buffers; what is both, through a third.
        """
        bounced = [home.layout.slab_bytes for home in homes if home.is_bounced]
        bounces = [allocate_slab(max(bounced)) for _ in range(2 if bounced else 0)]
        packed = [home.slab.numel() for home in homes if home.packed is not None and home.is_on_device]
        packing_place = allocate_slab(max(packed)) if packed else None
        targets = [bounces[place % 2] if home.is_bounced else home.slab for place, home in enumerate(homes)]
        layouts = [home.layout for home in homes]
        reads = read_ahead(self._loader, zip(layouts, targets, strict=True))
        for home, slab in zip(homes, reads, strict=True):
            layout = home.layout
            if home.packed is not None:
                target = packing_place if packing_place is not None and home.is_on_device else home.slab
                home.packed.pack(layout, slab, target, self._device)
                layout, slab = home.packed.layout, target
            if slab is not home.slab:
                copy_slab(layout, slab, home.slab)
            yield home

    def _arrive(self, index: int) -> None:
        with self._changed:
            self._coming.discard(index)
            self._changed.notify_all()
