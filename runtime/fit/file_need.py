"""What a session of checked folders must hold, from their headers alone; no weight is read."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch

from offload.checkpoint.checkpoint import ITEM_BYTES
from offload.checkpoint.layer_layout import LayerLayout
from offload.formats.stored_sizes import QUANTIZED_FORMATS
from offload.formats.weight_format import scratch_bytes
from runtime.config import EngineConfig
from runtime.fit.need import DraftNeed, LayerFormat, MemoryNeed, quantized_layers
from runtime.model.layer_binding import HOST_DEVICE
from runtime.model.model_loader import ModelFiles

_FORMAT_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I8": "int8", "U8": "nf4"}


def need_of_files(
    config: EngineConfig,
    target: ModelFiles,
    draft: ModelFiles | None,
    *,
    compute_dtype: torch.dtype,
    context_tokens: int,
    max_nodes: int,
    device: torch.device = HOST_DEVICE,
) -> MemoryNeed:
    """Return what a session needs; without a separate `draft` the config says whether there is a substitute or none."""
    logits_bytes = target.workspace_bytes(0, compute_dtype)
    return MemoryNeed(
        formats=layer_formats(target.layouts),
        others_bytes=target.other_layout.slab_bytes,
        draft=_draft_need(config, target, draft, dtype=compute_dtype, device=device),
        cache_bytes_per_token=target.cache_bytes_per_token(compute_dtype),
        context_tokens=context_tokens,
        max_nodes=1 if config.is_plain else max_nodes,
        activation_bytes_per_token=target.workspace_bytes(1, compute_dtype) - logits_bytes,
        logits_bytes=logits_bytes,
        scratch_bytes=2 * scratch_bytes(compute_dtype, device),
        num_slots=config.ring_slots,
        num_graft_nodes=config.num_graft_nodes,
    )


def layer_formats(layouts: Sequence[LayerLayout]) -> tuple[LayerFormat, ...]:
    """Return the layers as stored, then as each smaller quantized format; quantized layers have no other."""
    stored = LayerFormat(
        _stored_name(layouts),
        tuple(layout.slab_bytes for layout in layouts),
        tuple(layout.payload_bytes for layout in layouts),
    )
    if stored.name in QUANTIZED_FORMATS:
        return (stored,)
    shapes = [[tensor.shape for tensor in layout.tensors if len(tensor.shape) == 2] for layout in layouts]
    vectors = list(map(_vector_bytes, layouts))
    converted = (quantized_layers(name, shapes, vectors) for name in QUANTIZED_FORMATS)
    return (stored, *(layers for layers in converted if layers.total_bytes < stored.total_bytes))


def _draft_need(
    config: EngineConfig, target: ModelFiles, draft: ModelFiles | None, *, dtype: torch.dtype, device: torch.device
) -> DraftNeed | None:
    if config.is_plain:
        return None
    files, is_substitute = draft or target, draft is None
    held = files.held_format(config.draft_format, dtype, device, is_substitute=is_substitute)
    num_bytes = sum(files.draft_layer_bytes(held))
    if not is_substitute:
        num_bytes += files.other_layout.slab_bytes + files.draft_head_bytes(held, device)
    label = f"substitute draft ({held})" if is_substitute else f"draft model ({held})"
    shared = files.draft_layer_bytes(held) if is_substitute and config.share_layers else ()
    return DraftNeed(label, num_bytes, files.cache_bytes_per_token(dtype), shared)


def _stored_name(layouts: Sequence[LayerLayout]) -> str:
    """Return the format that most of the weights are stored in."""
    counts: Counter[str] = Counter()
    for tensor in chain.from_iterable(layout.tensors for layout in layouts):
        counts[tensor.dtype] += math.prod(tensor.shape)
    dtype = counts.most_common(1)[0][0]
    return _FORMAT_NAMES.get(dtype, dtype)


def _vector_bytes(layout: LayerLayout) -> int:
    """Return the bytes of everything that is no matrix."""
    return sum(math.prod(t.shape) * ITEM_BYTES[t.dtype] for t in layout.tensors if len(t.shape) != 2)
