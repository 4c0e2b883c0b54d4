"""The ring: hands the layers of a pass out in order, and copies the next ones into a few slots meanwhile.

Copies follow the cyclic order of the streamed layers and begin as soon as a slot is free, also across the end of a
pass: the first layers of the next one arrive while the caller drafts. The recurrence of `pipeline_model` says when
everything happens; the tests hold the ring to it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.closing import PATIENCE_SECONDS, Closeable, Patience
from offload.copying.copy_engine import CopyEngine, CopySource, HostSource, PendingCopy
from offload.errors import LinkError, PassCancelledError
from offload.layer_filling import LayerFilling
from offload.memory import allocate_read_slab
from offload.pass_statistics import PassStatistics
from offload.travelling_rows import TravellingRows

logger = logging.getLogger(__name__)

_never_freed: list[torch.Tensor] = []
"""Slots that something may still write to."""


@dataclass(frozen=True, slots=True)
class ResidentLayer:
    """A layer whose slab stays in device memory."""

    slab: torch.Tensor
    """uint8, 1-D; handed out as it is."""


StreamedLayer: TypeAlias = ResidentLayer | CopySource
"""A layer of a streamed model: resident, or where its bytes come from in every pass."""


@dataclass(slots=True)
class _Visit:
    """A streamed layer on its way through a slot."""

    layer_index: int
    slot_index: int
    copies: list[PendingCopy]
    """Of its weights, then of its rows."""
    num_rows: int = 0
    """Rows that are there or on their way."""
    is_in_use: bool = False


class _LateCopy:
    """A copy that begins once its layer has been read; the streamer's thread begins it."""

    def __init__(self, filling: LayerFilling, layer_index: int, begin: Callable[[], PendingCopy]) -> None:
        self._filling, self._layer_index, self._start = filling, layer_index, begin
        self._copy: PendingCopy | None = None
        self._is_abandoned = False

    @property
    def is_done(self) -> bool:
        return self._is_abandoned if self._copy is None else self._copy.is_done

    def begin_if_there(self) -> None:
        """Begin to copy a layer that has come meanwhile."""
        if self._copy is None and not self._is_abandoned and self._filling.has(self._layer_index):
            self._copy = self._start()

    def wait(self, cancel: threading.Event | None = None) -> None:
        if self._copy is None and not self._is_abandoned:
            self._filling.wait(self._layer_index, cancel)
            self.begin_if_there()
        if self._copy is not None:
            self._copy.wait(cancel)

    def abandon(self) -> None:
        self._is_abandoned = True
        if self._copy is not None:
            self._copy.abandon()


class LayerStreamer(Closeable):
    """Layers 0..L-1 in order, pass after pass: begin_pass, then acquire(i) and release(i) for each layer, end_pass.

    Driven from one thread; only `cancel` and the properties are for others too. After any exception in a pass call
    abort_pass. A context manager; closing it frees the slots but leaves the engine open.
    """

    def __init__(
        self,
        layers: Sequence[StreamedLayer],
        engine: CopyEngine,
        *,
        num_slots: int,
        allocate_slot: Callable[[int], torch.Tensor] = allocate_read_slab,
        disk: CopyEngine | None = None,
        filling: LayerFilling | None = None,
        rows: TravellingRows | None = None,
        clock: Callable[[], float] = time.perf_counter,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`num_slots` is 2 or more if anything streams; `allocate_slot(bytes)` is called once for each, here.

        An aborted pass is given up on, for now, where something still writes to a slot after `patience_seconds`.
        `disk` is the engine behind `engine` whose business is counted too, if there is one. `filling` still brings
        layers to where they stay: a pass waits for each that has not come. `rows` travel with their layers, which must
        be streamed ones.
        """
        self.layers = tuple(layers)
        """Every layer: resident, or where its bytes come from."""
        self._engine = engine
        self._disk = disk
        self._filling = filling
        self._clock = clock
        self._patience_seconds = patience_seconds
        sources = [(i, layer) for i, layer in enumerate(self.layers) if not isinstance(layer, ResidentLayer)]
        self._sources: tuple[tuple[int, CopySource], ...] = tuple(sources)
        if self._sources and num_slots < 2:
            raise ValueError(f"a ring of {num_slots} slots cannot copy and compute at once; it needs 2 or more")
        slot_bytes = max((source.slab_bytes for _, source in self._sources), default=0)
        self.slots = tuple(allocate_slot(slot_bytes) for _ in range(num_slots if self._sources else 0))
        self.rows = rows
        """What travels with the layers."""
        num_row_slots = len(self.slots) if rows is not None and rows.layers else 0
        self.row_slots = tuple(allocate_slot(rows.slot_bytes) for _ in range(num_row_slots)) if rows is not None else ()
        self._num_rows = self._num_new_rows = 0
        self._returning: list[PendingCopy] = []
        self._rows_sent = self._rows_returned = 0  # bytes
        self._free_slots: deque[int] = deque(range(len(self.slots)))
        self._visits: list[_Visit | None] = [None] * len(self.slots)  # by slot
        self._coming: deque[_Visit] = deque()  # submitted, not acquired yet, in order
        self._next_source = 0
        self._next_layer = self._num_done = 0
        self._acquired: set[int] = set()
        self._is_in_pass = self._is_closed = self._is_draining = self._is_loading = False
        self._cancel = threading.Event()
        self._lock = threading.Lock()
        self._began = self._waited = 0.0
        self._mark_busy()
        self._look_ahead()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_streamed_layers(self) -> int:
        return len(self._sources)

    @property
    def ring_bytes(self) -> int:
        return sum(slot.numel() for slot in (*self.slots, *self.row_slots))

    @property
    def is_full(self) -> bool:
        """Whether every slot holds a layer that has arrived, so that nothing is on the link."""
        return all(
            visit and not visit.is_in_use and all(copy.is_done for copy in tuple(visit.copies))
            for visit in tuple(self._visits)
        )

    @property
    def loading_seconds(self) -> float:
        """Seconds for which a pass that begins now would wait for layers that are still being loaded; 0 without any."""
        return 0.0 if self._filling is None else self._filling.seconds_left

    @property
    def num_done_layers(self) -> int | None:
        """Layers of the pass under way that have been released; None between passes."""
        return self._num_done if self._is_in_pass else None

    @property
    def layers_in_slots(self) -> tuple[int, ...]:
        """The layers that lie in slots or are on their way there; asks the device nothing, unlike `is_full`."""
        return tuple(visit.layer_index for visit in tuple(self._visits) if visit is not None)

    def forget_rows(self, num_rows: int) -> None:
        """Let no row behind the first `num_rows` count that was fetched ahead: they change, between two passes."""
        self._require(not self._is_in_pass, "rows that a pass sees do not change")
        for visit in self._coming:
            if visit.num_rows > num_rows:
                for copy in visit.copies[1:]:
                    copy.wait()
                visit.num_rows = num_rows

    def prefetch(self) -> None:
        """Start a copy into every free slot, ahead of the first pass; later passes prefetch by themselves."""
        self._require(not self._is_closed, "the streamer is closed")
        while self._free_slots:
            self._submit(self._free_slots.popleft())

    def begin_pass(self, *, num_rows: int = 0, num_new_rows: int = 0) -> None:
        """Start a pass: layer 0 is next. Forgets a cancellation that came too late for the pass before.

        The pass finds the first `num_rows` rows of every travelling layer, and writes `num_new_rows` behind them.
        Raises LinkError if something still writes to a slot since an aborted pass.
        """
        self._require(not self._is_in_pass, "the pass before has not ended")
        if self._is_draining:
            self._drain()
        self._is_loading = self._filling is not None
        if self._filling is not None and self._filling.is_done:
            self._filling, self._is_loading = None, False
            self._look_ahead()
        self._num_rows, self._num_new_rows = num_rows, num_new_rows
        self._rows_sent = self._rows_returned = 0
        for visit in self._coming:  # fetched ahead without what the pass before added, with what was forgotten since
            visit.num_rows = min(visit.num_rows, num_rows)
            self._fetch_rows(visit)
        self.prefetch()
        self._num_done = 0
        with self._lock:
            self._cancel.clear()
            self._is_in_pass = True
        self._began, self._waited, self._next_layer = self._clock(), 0.0, 0

    def acquire(self, layer_index: int) -> torch.Tensor:
        """Return the slab of the next layer, uint8, valid until release(layer_index); block until its bytes are there.

        A streamed layer's slab is always one of the same few tensors, `slots`, which may be longer than the layer.
        Raises LinkError if its copy failed, PassCancelledError after `cancel`; only abort_pass can follow either.
        """
        self._require(self._is_in_pass, "no pass has begun")
        self._require(
            layer_index == self._next_layer < len(self.layers),
            f"layer {layer_index} was asked for, but layer {self._next_layer} of {len(self.layers)} is next",
        )
        if self._cancel.is_set():
            raise PassCancelledError(f"The pass was cancelled before layer {layer_index}.")
        layer = self.layers[layer_index]
        slab = self._wait_for_resident(layer) if isinstance(layer, ResidentLayer) else self._wait_for_slot()
        self._next_layer += 1
        self._acquired.add(layer_index)
        return slab

    def rows_of(self, layer_index: int) -> torch.Tensor | None:
        """Return an acquired layer's rows on the device, uint8 (capacity, bytes); None if it has none that travel."""
        if self.rows is None or self.rows.of_layer(layer_index) is None:
            return None
        visit = next(visit for visit in self._visits if visit and visit.is_in_use and visit.layer_index == layer_index)
        return self.rows.in_slot(layer_index, self.row_slots[visit.slot_index])

    def release(self, layer_index: int) -> None:
        """Let the slot take the next copy: the computation enqueued so far was the layer's last."""
        self._require(layer_index in self._acquired, f"layer {layer_index} is not acquired")
        self._acquired.remove(layer_index)
        self._num_done = layer_index + 1
        for visit in self._visits:
            if visit is not None and visit.is_in_use and visit.layer_index == layer_index:
                self._bring_back_rows(layer_index)
                self._release_slot(visit.slot_index)
                self._submit(visit.slot_index)

    def end_pass(self) -> PassStatistics:
        """Close a pass in which every layer was acquired and released; the ring goes on filling.

        Blocks until the new rows are in host memory; raises LinkError, with the pass still open, if they do not arrive.
        """
        self._require(self._is_in_pass, "no pass has begun")
        self._require(not self._acquired, f"layers {sorted(self._acquired)} are not released")
        self._require(self._next_layer == len(self.layers), f"layer {self._next_layer} was never asked for")
        for copy in self._returning:
            copy.wait(self._cancel)
        self._returning.clear()
        self._leave_pass()
        busy_before, disk_busy_before, computed_before = self._busy_mark, self._disk_busy_mark, self._computed_mark
        self._mark_busy()
        seconds = self._clock() - self._began
        compute_seconds = seconds - self._waited
        if self._computed_mark is not None and computed_before is not None and self._sources:
            # The device times what it does for streamed layers; residents cost the same.
            compute_seconds = (self._computed_mark - computed_before) * len(self.layers) / len(self._sources)
        return PassStatistics(
            seconds=seconds,
            wait_seconds=self._waited,
            link_busy_seconds=self._busy_mark - busy_before,
            bytes_streamed=sum(source.payload_bytes for _, source in self._sources),
            num_layers=len(self.layers),
            num_streamed_layers=len(self._sources),
            compute_seconds=compute_seconds,
            disk_busy_seconds=self._disk_busy_mark - disk_busy_before,
            bytes_read=sum(source.payload_bytes for _, source in self._sources if isinstance(source, LayerLayout))
            if self._disk
            else 0,
            is_loading=self._is_loading,
            cache_bytes_sent=self._rows_sent,
            cache_bytes_returned=self._rows_returned,
        )

    def abort_pass(self) -> None:
        """Give up the pass, at any layer and after any error: drops what is in flight, and the next pass is correct.

        Blocks only for blocks of bytes that are being written just now, and no longer than the patience: then it raises
        LinkError, and so does every `begin_pass` until they are written. Without a pass it does nothing.
        """
        if self._is_in_pass:
            self._leave_pass()
            self._drain()

    @contextmanager
    def lent_slot(self) -> Iterator[torch.Tensor | None]:
        """Lend a slot between two passes, to be written to at will; None where nothing streams.

        Layers that had come before are copied again, from the next pass or `prefetch` on. Raises LinkError as
        `begin_pass` does.
        """
        self._require(not self._is_in_pass, "a slot can be lent between two passes only")
        self._drain()
        if not self.slots:
            yield None
            return
        index = self._free_slots.popleft()
        try:
            yield self.slots[index]
        finally:
            self._engine.release(self.slots[index])
            self._free_slots.appendleft(index)

    def cancel(self) -> None:
        """Make the pass under way fail with PassCancelledError at its next or present acquire; from any thread."""
        with self._lock:
            if self._is_in_pass:
                self._cancel.set()

    def close(self) -> None:
        """Drop what is in flight, wait until nothing writes to the slots, and let go of them; idempotent.

        Slots that are still written to after the patience are never freed.
        """
        if self._is_closed:
            return
        self._leave_pass()
        try:
            self._drain()
        except LinkError as error:
            logger.warning("%s", error)
            _never_freed.extend((*self.slots, *self.row_slots))
        self.slots, self.row_slots, self._visits, self._free_slots = (), (), [], deque()
        self._is_closed = True

    def _look_ahead(self) -> None:
        """Tell the engine what may be read ahead: not yet what is read to where it stays."""
        filling = self._filling
        self._engine.look_ahead([source for index, source in self._sources if filling is None or filling.has(index)])

    def _wait_for_resident(self, layer: ResidentLayer) -> torch.Tensor:
        if self._filling is not None and not self._filling.has(self._next_layer):
            began = self._clock()
            try:
                self._filling.wait(self._next_layer, self._cancel)
            finally:
                self._waited += self._clock() - began
        return layer.slab

    def _wait_for_slot(self) -> torch.Tensor:
        self._require(bool(self._coming), "every slot is in use; release a layer first")
        for each in self._coming:
            if isinstance(each.copies[0], _LateCopy):
                each.copies[0].begin_if_there()
        visit = self._coming[0]
        assert visit.layer_index == self._next_layer
        began = self._clock()
        try:
            for copy in (*visit.copies[1:], visit.copies[0]):  # an accelerator counts the computation from the last on
                copy.wait(self._cancel)
        finally:
            self._waited += self._clock() - began
        self._coming.popleft()
        visit.is_in_use = True
        if (rows := self.rows_of(visit.layer_index)) is not None:
            self._rows_sent += visit.num_rows * rows.shape[1]
        return self.slots[visit.slot_index]

    def _release_slot(self, slot_index: int) -> None:
        self._engine.release(self.slots[slot_index])
        if self.row_slots:
            self._engine.release(self.row_slots[slot_index])

    def _submit(self, slot_index: int) -> None:
        layer_index, source = self._sources[self._next_source]
        self._next_source = (self._next_source + 1) % len(self._sources)
        visit = _Visit(layer_index, slot_index, [self._copy(layer_index, source, self.slots[slot_index])])
        self._visits[slot_index] = visit
        self._coming.append(visit)
        self._fetch_rows(visit)

    def _fetch_rows(self, visit: _Visit) -> None:
        """Copy those rows of the layer that are there for good and not on their way yet."""
        rows = None if self.rows is None else self.rows.of_layer(visit.layer_index)
        if rows is None or visit.num_rows >= self._num_rows:
            return
        assert self.rows is not None
        wanted = slice(visit.num_rows, self._num_rows)
        source = rows[wanted].view(-1)
        slot = self.rows.in_slot(visit.layer_index, self.row_slots[visit.slot_index])[wanted].view(-1)
        visit.copies.append(self._engine.start(HostSource(source, source.numel(), is_companion=True), slot))
        visit.num_rows = self._num_rows

    def _bring_back_rows(self, layer_index: int) -> None:
        on_device = self.rows_of(layer_index)
        if on_device is None or not self._num_new_rows:
            return
        assert self.rows is not None
        new = slice(self._num_rows, self._num_rows + self._num_new_rows)
        in_host = self.rows.of_layer(layer_index)
        assert in_host is not None
        self._returning.append(self._engine.bring_back(on_device[new].view(-1), in_host[new].view(-1)))
        self._rows_returned += on_device[new].numel()

    def _copy(self, layer_index: int, source: CopySource, slot: torch.Tensor) -> PendingCopy:
        if self._filling is None or self._filling.has(layer_index):
            return self._engine.start(source, slot)
        return _LateCopy(self._filling, layer_index, lambda: self._engine.start(source, slot))

    def _drain(self) -> None:
        pending = [*(copy for visit in self._coming for copy in visit.copies), *self._returning]
        for copy in pending:
            copy.abandon()
        self._is_draining, patience = True, Patience(self._patience_seconds)
        try:
            for copy in pending:
                copy.wait(patience)
        except (PassCancelledError, LinkError) as error:
            raise LinkError(
                f"A layer that is not wanted any more has been on its way for {self._patience_seconds:g} seconds; "
                "check that the disk and the device still answer, then try again."
            ) from error
        self._is_draining = False
        for slot_index, occupant in enumerate(self._visits):
            if occupant is not None:
                self._release_slot(slot_index)
        self._coming.clear()
        self._returning.clear()
        self._acquired.clear()
        self._visits = [None] * len(self.slots)
        self._free_slots = deque(range(len(self.slots)))
        self._next_source = 0
        self._mark_busy()

    def _mark_busy(self) -> None:
        self._busy_mark = self._engine.busy_seconds
        self._computed_mark = self._engine.computed_seconds
        self._disk_busy_mark = self._disk.busy_seconds if self._disk is not None else 0.0

    def _leave_pass(self) -> None:
        with self._lock:
            self._is_in_pass = False
            self._cancel.clear()

    def _require(self, condition: bool, complaint: str) -> None:
        """Raise RuntimeError for misuse, which is a fault in our own code, not a user's."""
        if not condition:
            raise RuntimeError(f"{complaint} (layer streamer)")
