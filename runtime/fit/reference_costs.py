"""What a round costs by data sheets, or by a few products that were timed: each part from bytes and multiplications.

Pure arithmetic on a model's sizes and a device's rates, for models that nobody has run here yet.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offload.formats.stored_sizes import ACCELERATOR_CHUNK_ELEMENTS, PACKED, QUANTIZED_FORMATS, chunk_rows
from offload.residency_plan import ResidencyPlan, Tier
from offload.stage_ring import plan_stages
from runtime.fit.machine import DeviceSpeed, Machine
from runtime.fit.place import USUAL_FILL
from runtime.fit.shapes import ModelShape
from runtime.planner.costs import CostTable, RoundCosts

LAYER_LAUNCHES = 40
"""Kernels of a decoder layer of Llama's kind in bf16, counted as torch dispatches them (transformers 5.24)."""
LAUNCHES_PER_MATRIX, LAUNCHES_PER_CHUNK = 2, 2
"""Of a quantized matrix, for its scales, and of each chunk that is widened and multiplied; of others one."""
LAUNCHES_PER_PACKED_CHUNK = 13
"""Of a chunk that is unpacked, its escapes and its product included."""
FUSED_ATTENTION_TOKENS, FUSED_MLP_TOKENS = 8, 64
"""Tokens up to which bitsandbytes multiplies NF4 matrices of attention and of MLP as they are; it widens them for more.

Its own table for sm_89 and the shapes of Llama's 8B (0.50, `_gemm_4bit_use_custom_cuda`): 8 for queries and outputs, 12
for keys and values, 128 for gate and up, 64 for down.
"""
_LIKE_INT8 = 0.75
"""Bytes of a weight from which a format's products count as those of int8 rows, and below as those of NF4."""
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

    `draft`: its sizes, and whether it is held as stored, in int8 or in nf4; None for plain passes. A forward over n
    tokens takes as long as reading its weights or as its multiplications, whichever is longer, and then its attention,
    but not less than launching its kernels; a draft's are recorded. Head and walk read the head twice: for the
    likeliest path and for its end.
    """
    device = machine.speed
    assert device is not None
    copies, reads = copies_and_reads(residency, machine)
    num_stages, num_pieces = stages_of(residency, reads)
    head_seconds = float(_head_seconds(target, np.ones(1), device)[0])
    layers_seconds = pass_seconds(target, _sizes(), context_tokens, format_name=format_name, device=device)
    return RoundCosts(
        copy_seconds=copies,
        pass_seconds=_table(layers_seconds + _widening_seconds(residency, device)),
        draft_step_seconds=None if draft is None else _draft_steps(*draft, context_tokens, device),
        walk_seconds=CostTable((1.0,), (_HEAD_VISITS * head_seconds,)),
        num_slots=max(1, residency.num_slots),
        read_seconds=reads,
        num_stages=num_stages,
        num_pieces=num_pieces,
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
    rows = [USUAL_FILL * residency.travelling_bytes_of(index) for index in range(len(sizes))]
    copies = tuple(
        None if tier is Tier.RESIDENT else link.speed.copy_seconds(size + round(more))
        for (size, tier), more in zip(sizes, rows, strict=True)
    )
    return copies, reads if Tier.DISK in residency.tiers else ()


def stages_of(residency: ResidencyPlan, reads: Sequence[float | None]) -> tuple[int, tuple[int, ...]]:
    """Return the stages behind these reads, and the pieces in which each layer passes through them."""
    if not reads:
        return 0, ()
    sizes = residency.layer_bytes
    ring = plan_stages(max(size for size, read in zip(sizes, reads, strict=True) if read is not None))
    return ring.num_stages, tuple(map(ring.num_pieces, sizes))


def pass_seconds(
    target: ModelShape, tokens: NDArray[np.float64], context_tokens: int, *, format_name: str, device: DeviceSpeed
) -> NDArray[np.float64]:
    """Return the seconds (C,) that the target's layers compute over `tokens` (C,) behind a context."""
    seconds = _products_seconds(
        target.num_decoder_parameters, tokens, widening_rate(target, format_name, device), device
    )
    num_launches = target.num_layers * launches_per_layer(target, format_name)
    launching = num_launches * device.launch_seconds
    return np.asarray(np.maximum(seconds + _attention_seconds(target, tokens, context_tokens, device), launching))


def widening_rate(target: ModelShape, format_name: str, device: DeviceSpeed) -> float:
    """Return the weights a second that a narrow pass multiplies in a format.

    Blocks of other programs' files that were not measured count as int8 rows or as NF4, whichever is nearer in bytes.
    """
    rates = device.target_weights_per_second
    if format_name in rates:
        return rates[format_name]
    bytes_per_weight = target.formats[0].total_bytes / target.num_decoder_parameters
    return rates["int8" if bytes_per_weight >= _LIKE_INT8 else "nf4"]


def launches_per_layer(target: ModelShape, format_name: str) -> int:
    """Return how many kernels a layer of the target launches; one that is quantized or packed widens it in chunks."""
    if not target.is_narrow and format_name not in (PACKED, *QUANTIZED_FORMATS):
        return LAYER_LAUNCHES
    chunks = sum(
        math.ceil(shape[0] / chunk_rows(shape, most_elements=ACCELERATOR_CHUNK_ELEMENTS, row_multiple=1, is_host=False))
        for shape in target.matrices
    )
    if format_name == PACKED:
        return LAYER_LAUNCHES + LAUNCHES_PER_PACKED_CHUNK * chunks
    return LAYER_LAUNCHES + len(target.matrices) * (LAUNCHES_PER_MATRIX - 1) + LAUNCHES_PER_CHUNK * chunks


def draft_seconds(
    shape: ModelShape, held: str, tokens: NDArray[np.float64], context_tokens: int, device: DeviceSpeed
) -> NDArray[np.float64]:
    """Return the seconds (C,) that a draft's layers compute over `tokens` (C,) behind a context.

    NF4 matrices are multiplied as they are up to a width, and widened beyond it, where bitsandbytes has a fused kernel.
    """
    published = shape.formats[0].name
    name = published if published in QUANTIZED_FORMATS else held
    rate, wide_rate = device.draft_weights_per_second[name], device.target_weights_per_second.get(name, np.inf)
    if held == "stored" and shape.is_narrow and published not in QUANTIZED_FORMATS:
        rate = widening_rate(shape, published, device)
    seconds = _attention_seconds(shape, tokens, context_tokens, device)
    if name != "nf4" or rate <= wide_rate:
        return np.asarray(seconds + _products_seconds(shape.num_decoder_parameters, tokens, rate, device))
    by_width = {FUSED_ATTENTION_TOKENS: sum(math.prod(matrix) for matrix in shape.matrices[:4])}
    by_width[FUSED_MLP_TOKENS] = shape.num_layer_parameters - by_width[FUSED_ATTENTION_TOKENS]
    for most_tokens, count in by_width.items():
        fused, widened = (
            _products_seconds(shape.num_layers * count, tokens, each, device) for each in (rate, wide_rate)
        )
        seconds = seconds + np.where(tokens <= most_tokens, fused, widened)
    return np.asarray(seconds)


def _draft_steps(shape: ModelShape, held: str, context_tokens: int, device: DeviceSpeed) -> CostTable:
    """Return what a draft forward costs with its head and the choice of children, by width."""
    widths = _sizes()
    seconds = draft_seconds(shape, held, widths, context_tokens, device)
    logit_bytes = _LOGIT_READS * 4 * shape.vocab_size * widths
    return _table(seconds + _head_seconds(shape, widths, device) + logit_bytes / device.memory_bytes_per_second)


def _products_seconds(
    num_weights: int, tokens: NDArray[np.float64], weights_per_second: float, device: DeviceSpeed
) -> NDArray[np.float64]:
    """Return the seconds (C,) of multiplying `tokens` (C,) with weights that one token takes at this rate.

    Weights are read or multiplied, whichever takes longer; those that have to be widened first are so whatever follows.
    """
    compute = "float32" if device.compute_item_bytes == 4 else "bfloat16"
    as_computed = device.target_weights_per_second.get(compute, weights_per_second)
    reading = num_weights / max(weights_per_second, as_computed)
    widening = num_weights / weights_per_second - reading
    return np.asarray(widening + np.maximum(reading, 2 * num_weights * tokens / device.flops))


def _attention_seconds(
    shape: ModelShape, tokens: NDArray[np.float64], context: int, device: DeviceSpeed
) -> NDArray[np.float64]:
    """Return the seconds (C,) of every layer's attention; a group of query heads reads its keys and values once."""
    attended = context + tokens
    products = 4 * shape.num_layers * shape.num_heads * shape.head_dim * tokens * attended
    cache_bytes = shape.cache_bytes_per_token(device.compute_item_bytes) * attended
    return np.asarray(products / device.flops + cache_bytes / device.memory_bytes_per_second)


def _widening_seconds(residency: ResidencyPlan, device: DeviceSpeed) -> float:
    """Return the seconds in which narrow keys and values that have travelled are read and written wide."""
    if not residency.widened_bytes:
        return 0.0
    moved = sum(residency.travelling_bytes_of(index) + residency.cache_bytes[index] for index in residency.travelling)
    return USUAL_FILL * moved / device.memory_bytes_per_second


def _head_seconds(shape: ModelShape, rows: NDArray[np.float64], device: DeviceSpeed) -> NDArray[np.float64]:
    num_weights = shape.vocab_size * shape.hidden_size
    reading = num_weights * shape.item_bytes / device.memory_bytes_per_second
    if shape.is_head_narrow:  # six bits, or eight, in all mixes
        reading = max(reading, num_weights / widening_rate(shape, "int8", device))
    seconds: NDArray[np.float64] = np.maximum(reading, 2 * num_weights * rows / device.flops)
    return seconds


def _sizes() -> NDArray[np.float64]:
    """Return sizes so close that straight lines between them follow the bend from reading to multiplying."""
    return np.unique(np.geomspace(1, 4096, 64).round())


def _table(seconds: NDArray[np.float64]) -> CostTable:
    return CostTable(tuple(_sizes().tolist()), tuple(seconds.tolist()))
