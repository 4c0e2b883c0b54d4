"""Give every layer memory in the tier that the residency plan names, and a tier down where memory runs out on the way.

Resident layers go to the device, host layers to slabs that a pinner may pin, disk layers stay where they are. Reads
nothing: `layer_filling` brings the bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from offload.checkpoint.layer_layout import LayerLayout
from offload.copying.copy_engine import HostSource
from offload.errors import BudgetError
from offload.layer_filling import LayerHome
from offload.layer_streamer import ResidentLayer, StreamedLayer
from offload.memory import allocate_slab, is_out_of_memory
from offload.packed_layers import PackedLayer, PackedLayout
from offload.pinning.pinned_memory import HostPinner
from offload.residency_plan import ResidencyPlan, Tier

AllocateSlab = Callable[[int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class PlacedLayers:
    """Layers and the tiers that they got."""

    layers: tuple[StreamedLayer, ...]
    """What the streamer takes, in layer order."""
    tiers: tuple[Tier, ...]
    """Tier of each layer; the plan's, unless memory ran out."""
    notes: tuple[str, ...]
    """A sentence for each kind of memory that ran out; empty if the plan held."""
    homes: tuple[LayerHome, ...]
    """Memory of those that are resident or in host memory, to be filled, in layer order."""

    @property
    def packed(self) -> dict[int, PackedLayer]:
        """Those that lie packed, by index."""
        return {home.index: home.packed for home in self.homes if home.packed is not None}


@dataclass(slots=True)
class LayerPlacer:
    """The tiers' memory, and what a layer does when its own is full."""

    pinner: HostPinner
    host_budget_bytes: int
    """What the host tier may grow to when the device runs out of memory."""
    allocate_on_device: AllocateSlab = allocate_slab
    is_pinned: Callable[[int], bool] = lambda index: True
    """By layer index: whether a host layer's slab comes from the pinner; the others' are left pageable."""
    _host_bytes: int = 0
    _notes: dict[str, str] = field(default_factory=dict)

    def place(
        self, layouts: Sequence[LayerLayout], plan: ResidencyPlan, *, packed: Sequence[PackedLayout] = ()
    ) -> PlacedLayers:
        """Return where every layer is to be; with `packed`, it lies so wherever it is but on disk.

        Raises BudgetError where no slot could stream one that has no room.
        """
        self._host_bytes = plan.host_bytes
        layers: list[StreamedLayer] = [*layouts]
        tiers = list(plan.tiers)
        homes: list[LayerHome] = []
        for index, layout in enumerate(layouts):
            packing = packed[index] if packed and packed[index].matrices else None
            held = layout if packing is None else packing.layout
            tiers[index], slab = self._find_slab(index, held.slab_bytes, plan)
            if slab is None:
                self._check_slot(index, layout.slab_bytes, plan)
                continue
            is_resident = tiers[index] is Tier.RESIDENT
            layers[index] = ResidentLayer(slab) if is_resident else HostSource(slab, held.payload_bytes, held.moves)
            homes.append(
                LayerHome(
                    index,
                    layout,
                    slab,
                    is_to_pin=not is_resident and self.is_pinned(index),
                    packed=None if packing is None else PackedLayer(packing),
                )
            )
        return PlacedLayers(tuple(layers), tuple(tiers), tuple(self._notes.values()), tuple(homes))

    def _find_slab(self, index: int, num_bytes: int, plan: ResidencyPlan) -> tuple[Tier, torch.Tensor | None]:
        """Return the highest tier, from the planned one down, whose memory still takes the layer, and the memory."""
        tier = plan.tiers[index]
        if tier is Tier.RESIDENT:
            slab = self._try("the device", self.allocate_on_device, index, num_bytes)
            if slab is not None:
                return Tier.RESIDENT, slab
            if num_bytes > plan.slot_bytes:
                raise BudgetError(
                    f"the device ran out of memory at layer {index}, and no slot of the ring is large enough to stream "
                    "it; give a smaller --device-memory, so that the ring is planned for"
                )
            if self._host_bytes + num_bytes > self.host_budget_bytes:
                return Tier.DISK, None
            self._host_bytes += num_bytes
        if tier is Tier.DISK:
            return Tier.DISK, None
        allocate = self.pinner.allocate if self.is_pinned(index) else allocate_slab
        slab = self._try("host memory", allocate, index, num_bytes)
        return (Tier.DISK, None) if slab is None else (Tier.HOST, slab)

    def _check_slot(self, index: int, num_bytes: int, plan: ResidencyPlan) -> None:
        """Raise BudgetError where a layer that has to stream from its file, unpacked, does not fit a slot."""
        if num_bytes > plan.slot_bytes:
            raise BudgetError(
                f"memory ran out at layer {index}, and no slot of the ring is large enough to stream it from its file, "
                "where it is not packed; give a smaller --host-memory, so that the ring is planned for it, or "
                "--pack off"
            )

    def _try(self, place: str, allocate: AllocateSlab, index: int, num_bytes: int) -> torch.Tensor | None:
        if place in self._notes:  # a second attempt would only disturb what else needs memory there
            return None
        try:
            return allocate(num_bytes)
        except (OSError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            is_device = place == "the device"
            below, what = ("host memory or disk", " of memory") if is_device else ("disk", "")
            self._notes[place] = (
                f"{place} ran out{what} at layer {index}: it and the later layers meant for there stream from {below} "
                "instead, which is slower; close other programs or give a smaller budget"
            )
            return None
