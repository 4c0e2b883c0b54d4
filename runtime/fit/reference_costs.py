"""What a round would cost with models and on a machine that need not be here: sizes and speeds in, `RoundCosts` out.

A forward over n tokens takes as long as reading its weights or as its multiplications, whichever is longer, and then
its attention. Head and walk read the head twice: for the likeliest path and for its end. Launching kernels is not
counted.
"""

import numpy as np
from numpy.typing import NDArray

from offload.formats.stored_sizes import QUANTIZED_FORMATS
from offload.residency_plan import NUM_STAGES, ResidencyPlan, Tier
from runtime.fit.machine import Machine
from runtime.fit.shapes import ModelShape
from runtime.fit.speed import DeviceSpeed
from runtime.planner.costs import CostTable, RoundCosts

_HEAD_VISITS = 2
_LOGIT_READS = 3
"""Choosing a level's children passes over its logits: to scale them, to normalise them, to take the best."""


def reference_costs(
    target: ModelShape,
    residency: ResidencyPlan,
    draft: tuple[ModelShape, str] | None,
    *,
    format_name: str,
    context_tokens: int,
    machine: Machine,
) -> RoundCosts:
    """Return every part of a round whose text is `context_tokens` long, with the layers as `residency` says.

    `draft`: its sizes, and whether it is held as stored, in int8 or in nf4; None for plain passes.
    """
    device = machine.speed
    assert device is not None
    copies, reads = copies_and_reads(residency, machine)
    weights_per_second = device.target_weights_per_second[format_name]
    head_seconds = float(_head_seconds(target, np.ones(1), device)[0])
    return RoundCosts(
        copy_seconds=copies,
        pass_seconds=_table(_layers_seconds(target, _sizes(), weights_per_second, context_tokens, device)),
        draft_step_seconds=None if draft is None else _draft_steps(*draft, context_tokens, device),
        walk_seconds=CostTable((1.0,), (_HEAD_VISITS * head_seconds,)),
        num_slots=max(1, residency.num_slots),
        read_seconds=reads,
        num_stages=NUM_STAGES if reads else 0,
        compute_slowdown=device.compute_slowdown,
        copy_slowdown=device.copy_slowdown,
    )


def copies_and_reads(
    residency: ResidencyPlan, machine: Machine
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Return (copy, read) seconds of each layer; without a link to a device, reading is the copy."""
    link, disk = machine.link, machine.disk
    sizes = list(zip(residency.layer_bytes, residency.tiers, strict=True))
    reads: tuple[float | None, ...] = (None,) * len(sizes)
    if Tier.DISK in residency.tiers:
        assert disk is not None, "the disk's speed is known where layers come from it"
        reads = tuple(disk.speed.copy_seconds(size) if tier is Tier.DISK else None for size, tier in sizes)
    if link is None:
        return reads, ()
    copies = tuple(None if tier is Tier.RESIDENT else link.speed.copy_seconds(size) for size, tier in sizes)
    return copies, reads if Tier.DISK in residency.tiers else ()


def _draft_steps(shape: ModelShape, held: str, context_tokens: int, device: DeviceSpeed) -> CostTable:
    """Return what a draft forward costs with its head and the choice of children, by width."""
    widths, published = _sizes(), shape.formats[0].name
    weights_per_second = device.draft_weights_per_second[published if published in QUANTIZED_FORMATS else held]
    seconds = _layers_seconds(shape, widths, weights_per_second, context_tokens, device)
    logit_bytes = _LOGIT_READS * 4 * shape.vocab_size * widths
    return _table(seconds + _head_seconds(shape, widths, device) + logit_bytes / device.memory_bytes_per_second)


def _layers_seconds(
    shape: ModelShape, tokens: NDArray[np.float64], weights_per_second: float, context: int, device: DeviceSpeed
) -> NDArray[np.float64]:
    """Return the seconds (C,) that a forward of all decoder layers over `tokens` (C,) takes."""
    num_weights = shape.num_layers * shape.num_layer_parameters
    multiplying = np.maximum(num_weights / weights_per_second, 2 * num_weights * tokens / device.flops)
    attended = context + tokens
    products = 4 * shape.num_layers * shape.num_heads * shape.head_dim * tokens * attended
    cache_bytes = shape.cache_bytes_per_token(device.compute_item_bytes) * attended
    seconds: NDArray[np.float64] = multiplying + products / device.flops + cache_bytes / device.memory_bytes_per_second
    return seconds


def _head_seconds(shape: ModelShape, rows: NDArray[np.float64], device: DeviceSpeed) -> NDArray[np.float64]:
    num_weights = shape.vocab_size * shape.hidden_size
    seconds: NDArray[np.float64] = np.maximum(
        shape.head_bytes / device.memory_bytes_per_second, 2 * num_weights * rows / device.flops
    )
    return seconds


def _sizes() -> NDArray[np.float64]:
    """Return sizes so close that straight lines between them follow the bend from reading to multiplying."""
    return np.unique(np.geomspace(1, 4096, 64).round())


def _table(seconds: NDArray[np.float64]) -> CostTable:
    return CostTable(tuple(_sizes().tolist()), tuple(seconds.tolist()))
