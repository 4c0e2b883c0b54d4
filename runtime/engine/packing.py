"""Whether a session keeps bfloat16 layers packed in memory, decided as `plan` decides it, and what is said of it."""

import logging
from collections.abc import Callable
from dataclasses import replace

from offload.errors import BudgetError, CheckpointError
from offload.formats.stored_sizes import PACKED
from offload.packed_layers import PackedLayout
from offload.units import format_bytes
from runtime.config import EngineConfig, Pack
from runtime.fit.machine import Machine
from runtime.fit.place import MemoryNeed, Placement
from runtime.fit.plan import packing_settled
from runtime.fit.plan_question import PlanQuestion
from runtime.model.model_loader import ModelFiles

logger = logging.getLogger(__name__)

NOTHING_PACKS = (
    "no layer packs, since its weights are quantized, not bfloat16 or unlike trained ones: --pack on does nothing"
)


def with_packing(
    config: EngineConfig, target: ModelFiles, question: Callable[[], PlanQuestion], machine: Callable[[], Machine]
) -> EngineConfig:
    """Return the config with `auto` decided; `question` is what `plan` would be asked, `machine` what it is asked of.

    Where no plan can be made for the model, or its weights do not pack, its layers stay as stored.
    """
    if config.pack != "auto":
        return config
    pack: Pack = "off"
    try:
        if not target.is_quantized and target.packing() is not None:
            pack = packing_settled(question(), machine()).request.pack
    except (BudgetError, CheckpointError) as error:
        logger.debug("layers are not packed: %s", error)
    return replace(config, pack=pack)


def packing_of(config: EngineConfig, target: ModelFiles) -> tuple[PackedLayout, ...] | None:
    """Return the layers of a session as they lie packed in memory; None where they lie as their files have them."""
    return target.packing() if config.pack == "on" and not target.is_quantized else None


def packing_note(need: MemoryNeed, placement: Placement) -> str | None:
    """Say that layers are packed, and what of memory and link it spares; None where none are."""
    if need.stored is None or placement.format_name != PACKED:
        return None
    stored = need.stored.payload_bytes or need.stored.layer_bytes
    lying = [index for index in range(len(stored)) if placement.payload_bytes[index] < stored[index]]
    held = sum(placement.payload_bytes[index] for index in lying)
    text = (
        f"bfloat16 layers are kept in memory in 12 bits an element, bit for bit: {format_bytes(held)} instead of "
        f"{format_bytes(sum(stored[index] for index in lying))}"
    )
    if placement.residency.streamed_layers:
        before = sum(stored[index] for index in placement.residency.streamed_layers)
        text = f"{text}; {format_bytes(placement.streamed_bytes)} instead of {format_bytes(before)} move in every pass"
    return f"{text}; --pack off keeps them as stored"
