"""The way of a session's layers to its device: pinned slabs, stages, and the engines that drive the links.

Made for one `LoadPlan`: takes the memory that must not be missing first (slots, then pinned stages), places the layers,
and opens the copy engine that feeds the ring. What did not go as planned is kept as sentences.
"""

from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.accelerator_engine import Accelerator, AcceleratorCopyEngine
from offload.copying.copy_engine import CopyEngine, CopySource, HostSource
from offload.copying.emulated_link import EmulatedLink
from offload.copying.host_engine import HostCopyEngine
from offload.copying.staged_engine import StagedCopyEngine
from offload.device import device_memory
from offload.layer_placement import LayerPlacer, PlacedLayers
from offload.layer_streamer import LayerStreamer
from offload.memory import allocate_read_slab, allocate_slab, explained_shortage
from offload.pinning.pin_budget import PinningPlan, describe_pinning, plan_pinned_layers
from offload.pinning.pinned_memory import HostPinner, open_pinner
from offload.residency_plan import NUM_STAGES, Tier
from offload.units import parse_link
from runtime.engine.load_plan import LoadPlan


class StreamPath:
    """Everything between the files and the slots; what it opens is closed with `stack`."""

    def __init__(
        self, plan: LoadPlan, reader: HostCopyEngine, stack: ExitStack, *, state_folder: Path | None = None
    ) -> None:
        """`state_folder`: where a driver's answer about pinning is remembered; None: nowhere."""
        self._plan = plan
        self._reader = reader
        self._stack = stack
        self._pinning: PinningPlan | None = None
        self._pinner: HostPinner = HostPinner()
        self._pageable: set[int] = set()
        """Host layers beyond the budget; one that was meant for the device and found no room there is none of them."""
        if not plan.is_host:
            device_bytes = plan.placement.device_bytes
            self._pinning = plan_pinned_layers(
                plan.device, plan.residency, device_bytes=device_bytes, state_folder=state_folder
            )
            self._pinner = open_pinner(plan.device, self._pinning.budget_bytes)
            hosts = [index for index, tier in enumerate(plan.residency.tiers) if tier is Tier.HOST]
            self._pageable = set(hosts) - {hosts[place] for place in self._pinning.pinned_slabs}
        stack.enter_context(self._pinner)
        with explained_shortage(f"a ring of {plan.residency.num_slots} layer slots"):
            self._ring = [self._empty_slot(plan.residency.slot_bytes) for _ in range(plan.residency.num_slots)]
        stage_bytes = plan.placement.stage_bytes // NUM_STAGES
        if self._pinning is not None:
            stage_bytes = self._pinning.stage_bytes or stage_bytes
        # Before any layer: a driver that has refused memory once pins nothing more.
        self._stages = self._pinned_stages(stage_bytes)

    def place(self) -> Generator[int, None, PlacedLayers]:
        """Bring every layer to its tier; yields the weight bytes of each that was read. Raises LinkError."""
        plan = self._plan
        placer = LayerPlacer(
            self._reader,
            pinner=self._pinner,
            host_budget_bytes=plan.placement.host_budget_bytes,
            allocate_on_device=self._allocate_resident,
            is_pinned=lambda index: index not in self._pageable,
        )
        with explained_shortage("the layers on their way to the device"):
            placed = yield from placer.place(plan.target.layouts, plan.residency)
        self._pinner.finish()
        return placed

    def open(self, placed: PlacedLayers) -> tuple[LayerStreamer, CopyEngine]:
        """The ring over the placed layers, and the engine that feeds it."""
        link = self._open_link(placed)
        streamer = LayerStreamer(
            placed.layers,
            link,
            num_slots=self._plan.config.ring_slots,
            allocate_slot=lambda num_bytes: self._ring.pop() if self._ring else self._empty_slot(num_bytes),
            disk=link.reader if isinstance(link, StagedCopyEngine) else None,
        )
        return self._stack.enter_context(streamer), link

    def notes(self, placed: PlacedLayers) -> tuple[str, ...]:
        """What the user should know: memory that ran out, and what is pinned."""
        if self._pinning is None:
            return placed.notes
        slabs = [layer.slab for layer in placed.layers if isinstance(layer, HostSource)]
        ring = [stage.numel() for stage in self._stages if self._pinner.is_pinned(stage)]
        pinning = describe_pinning(
            [slab.numel() for slab in slabs],
            [place for place, slab in enumerate(slabs) if self._pinner.is_pinned(slab)],
            stage_bytes=ring[0] if len(ring) == NUM_STAGES else 0,
            num_disk_layers=sum(isinstance(layer, LayerLayout) for layer in placed.layers),
            refused=self._pinner.refused,
        )
        return (*placed.notes, pinning)

    def _allocate_resident(self, num_bytes: int) -> torch.Tensor:
        """Memory for a layer that stays; none if draft, caches or activations would then miss it."""
        memory = None if self._plan.is_host else device_memory(self._plan.device)
        late_bytes = self._plan.placement.late_bytes
        if memory is not None and memory.free_bytes < num_bytes + late_bytes:
            raise torch.OutOfMemoryError(f"{memory.free_bytes} bytes are free, and {late_bytes} will be wanted later")
        return allocate_slab(num_bytes) if self._plan.is_host else self._empty_slot(num_bytes)

    def _empty_slot(self, num_bytes: int) -> torch.Tensor:
        if self._plan.is_host:
            return allocate_read_slab(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._plan.device)

    def _pinned_stages(self, stage_bytes: int) -> list[torch.Tensor]:
        with explained_shortage("the stages of layers from disk"):
            num_stages = NUM_STAGES if stage_bytes else 0
            stages = [self._pinner.allocate(stage_bytes, huge_pages=True) for _ in range(num_stages)]
            for stage in stages:
                stage.fill_(0)  # touched, or the driver would have to do it page by page
                self._pinner.filled(stage)
            self._pinner.finish()
        return stages

    def _open_link(self, placed: PlacedLayers) -> CopyEngine:
        plan, config = self._plan, self._plan.config
        reader: CopyEngine = self._reader
        if config.disk_link:
            reader = EmulatedLink(reader, parse_link(config.disk_link))
        late = [layer.slab_bytes for layer in placed.layers if isinstance(layer, LayerLayout)]
        if late and not self._stages and not plan.is_host:  # memory ran out, and layers stay on disk after all
            self._stages = self._pinned_stages(max(late))
        stages = self._stages
        link: CopyEngine = self._reader
        if not plan.is_host:
            link = self._stack.enter_context(AcceleratorCopyEngine(Accelerator(plan.device)))
        elif stages:
            link = self._stack.enter_context(HostCopyEngine(num_threads=1))
        if config.link:
            link = EmulatedLink(link, parse_link(config.link))
        if not stages:
            return link
        return self._stack.enter_context(StagedCopyEngine(reader, link, stages, needs_stage=self._needs_stage))

    def _needs_stage(self, source: CopySource) -> bool:
        """Files always; pageable memory where a pinned ring is there for it, with stages that are large enough."""
        if isinstance(source, LayerLayout):
            return True
        if self._pinning is None or source.slab_bytes > self._stages[0].numel():
            return False
        return not self._pinner.is_pinned(source.slab) and self._pinner.is_pinned(self._stages[0])
