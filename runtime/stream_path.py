"""The way of a session's layers to its device: pinned slabs, stages, and the engines that drive the links.

Made for one `SessionPlan`: takes the memory that must not be missing first (slots, then pinned stages), places the
layers, and opens the copy engine that feeds the ring. What did not go as planned is kept as sentences. Knows tiers and
links, no model and no tokens.
"""

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import torch

from offload.accelerator_copy_engine import AcceleratorCopyEngine, TorchAccelerator
from offload.copy_engine import CopyEngine, CopySource, DiskSource, HostSource
from offload.emulated_link import EmulatedLink
from offload.host_copy_engine import HostCopyEngine
from offload.host_pinner import HostPinner, PageableMemory
from offload.layer_placement import LayerPlacer, Placement
from offload.layer_streamer import LayerStreamer
from offload.pinned_memory import open_pinner
from offload.pinning_plan import PinningPlan
from offload.residency_plan import Tier
from offload.slab_memory import allocate_slab
from offload.staged_copy_engine import StagedCopyEngine
from offload.units import parse_link
from runtime.memory_need import NUM_STAGES
from runtime.pin_policy import plan_pinned_layers
from runtime.session_plan import SessionPlan


class StreamPath:
    """Everything between the files and the slots; what it opens is closed with `stack`."""

    def __init__(
        self, plan: SessionPlan, reader: HostCopyEngine, stack: ExitStack, *, state_folder: Path | None = None
    ) -> None:
        """`state_folder`: where a driver's answer about pinning is remembered; None: nowhere."""
        self._plan = plan
        self._reader = reader
        self._stack = stack
        self._pinning: PinningPlan | None = None
        self._pinner: HostPinner = PageableMemory()
        self._host_places: dict[int, int] = {}  # layer index -> place among the host layers
        if not plan.is_host:
            device_bytes = plan.accounting.device_bytes
            self._pinning, budget = plan_pinned_layers(
                plan.device, plan.residency, device_bytes=device_bytes, state_folder=state_folder
            )
            self._pinner = open_pinner(plan.device, budget)
            hosts = [index for index, tier in enumerate(plan.residency.tiers) if tier is Tier.HOST]
            self._host_places = {index: place for place, index in enumerate(hosts)}
        stack.enter_context(self._pinner)
        self._ring = [self._empty_slot(plan.residency.slot_bytes) for _ in range(plan.residency.num_slots)]
        self._stages = self._allocate_stages()

    def place(self) -> Generator[int, None, Placement]:
        """Bring every layer to its tier; yields the weight bytes of each that was read. Raises LinkError."""
        plan = self._plan
        placer = LayerPlacer(
            self._reader,
            pinner=self._pinner,
            host_budget_bytes=plan.host_budget_bytes,
            device=plan.device,
            is_pinned=self._is_to_be_pinned,
        )
        placement = yield from placer.place(plan.target.slabs.layouts, plan.residency)
        self._pinner.finish()
        return placement

    def open(self, placement: Placement) -> tuple[LayerStreamer, CopyEngine]:
        """The ring over the placed layers, and the engine that feeds it."""
        link = self._open_link(placement)
        streamer = LayerStreamer(
            placement.layers,
            link,
            num_slots=self._plan.config.ring_slots,
            allocate_slot=lambda num_bytes: self._ring.pop() if self._ring else self._empty_slot(num_bytes),
            disk=link.reader if isinstance(link, StagedCopyEngine) else None,
        )
        return self._stack.enter_context(streamer), link

    def notes(self, placement: Placement) -> tuple[str, ...]:
        """What the user should know: memory that ran out, and what is pinned."""
        if self._pinning is None:
            return placement.notes
        pinned = {
            self._host_places[index]
            for index, layer in enumerate(placement.layers)
            if isinstance(layer, HostSource) and index in self._host_places and self._pinner.is_pinned(layer.slab)
        }
        outcome = self._pinning.with_outcome(
            pinned,
            refused=self._pinner.refused,
            is_ring_pinned=all(self._pinner.is_pinned(stage) for stage in self._stages),
        )
        return (*placement.notes, outcome.sentence())

    def _empty_slot(self, num_bytes: int) -> torch.Tensor:
        if self._plan.is_host:
            return allocate_slab(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._plan.device)

    def _allocate_stages(self) -> list[torch.Tensor]:
        """Before any layer: a driver that has refused memory once pins nothing more."""
        plan, pinning = self._plan, self._pinning
        num_stages = NUM_STAGES if plan.has_stages else 0
        stage_bytes = plan.accounting.stage_bytes // NUM_STAGES
        if pinning is not None and pinning.num_stages:
            num_stages, stage_bytes = pinning.num_stages, pinning.stage_bytes
        stages = [self._pinner.allocate(stage_bytes) for _ in range(num_stages)]
        for stage in stages:
            stage.fill_(0)  # touched, or the driver would have to do it page by page
            self._pinner.filled(stage)
        return stages

    def _is_to_be_pinned(self, index: int) -> bool:
        place = self._host_places.get(index)
        return place is not None and self._pinning is not None and place in self._pinning.pinned_slabs

    def _open_link(self, placement: Placement) -> CopyEngine:
        plan, config = self._plan, self._plan.config
        reader: CopyEngine = self._reader
        if config.disk_link:
            reader = EmulatedLink(reader, parse_link(config.disk_link))
        stages = self._stages or self._late_stages(placement)
        link: CopyEngine = self._reader
        if not plan.is_host:
            link = self._stack.enter_context(AcceleratorCopyEngine(TorchAccelerator(plan.device)))
        elif stages:
            link = self._stack.enter_context(HostCopyEngine(num_threads=1))
        if config.link:
            link = EmulatedLink(link, parse_link(config.link))
        if not stages:
            return link
        return self._stack.enter_context(StagedCopyEngine(reader, link, stages, needs_stage=self._needs_stage))

    def _late_stages(self, placement: Placement) -> list[torch.Tensor]:
        """Where nothing was to be staged, but memory ran out and layers of an accelerator stay on disk after all."""
        largest = max((layer.slot_bytes for layer in placement.layers if isinstance(layer, DiskSource)), default=0)
        if self._plan.is_host or not largest:
            return []
        return [self._pinner.allocate(largest) for _ in range(NUM_STAGES)]

    def _needs_stage(self, source: CopySource) -> bool:
        """Files always; pageable memory where a pinned ring is there for it."""
        if isinstance(source, DiskSource):
            return True
        return self._pinning is not None and not self._pinner.is_pinned(source.slab)
