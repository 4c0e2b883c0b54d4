"""What a session of these files needs, from their headers: layers in each format, caches, draft, what passes hold."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch

from offload.checkpoint.checkpoint import ITEM_BYTES
from offload.checkpoint.layer_layout import LayerLayout, SlabTensor
from offload.device import device_name, has_bfloat16, select_device
from offload.formats.stored_sizes import PACKED, QUANTIZED_FORMATS
from runtime.config import (
    ACCELERATOR_MAX_PREFILL_TOKENS,
    DEFAULT_CONTEXT_TOKENS,
    MAX_PREFILL_TOKENS,
    PREFILL_CHUNK_TOKENS,
    EngineConfig,
)
from runtime.engine.packing import packing_of
from runtime.errors import OptionError
from runtime.fit.place import DraftNeed, LayerFormat, MemoryNeed, kv_cache_on, quantized_layers
from runtime.model.architecture import max_positions
from runtime.model.layer_binding import HOST_DEVICE
from runtime.model.model_loader import ModelFiles

_FORMAT_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I16": PACKED, "I8": "int8", "U8": "nf4"}


def need_of_files(
    config: EngineConfig,
    target: ModelFiles,
    draft: ModelFiles | None,
    *,
    usual_context_tokens: int = DEFAULT_CONTEXT_TOKENS,
    device: torch.device = HOST_DEVICE,
) -> MemoryNeed:
    """Return what a session needs; without a separate `draft` the config says whether there is a substitute or none.

    The context is the user's choice or the usual one, at most the model's positions.
    """
    dtype = compute_dtype(config, target, device)
    context_tokens = config.context_tokens or usual_context_tokens
    shape = (1, 1) if config.is_plain else config.tree_shape
    num_texts = config.num_texts or 1
    packing, scratch_elements = packing_of(config, target), target.scratch_elements(dtype, device)
    is_unpacked_apart = (packing is not None or target.is_packed) and dtype != torch.bfloat16
    narrow_scratch_bytes = scratch_elements * torch.bfloat16.itemsize if is_unpacked_apart else 0
    need = MemoryNeed(
        formats=layer_formats(target.layouts, target.stored_name if target.is_widened else None),
        others_bytes=target.other_bytes(device),
        table_bytes=target.table_bytes(device),
        draft=(
            draft_need(config, target, draft, dtype=dtype, device=device)
            if draft_device_of(config, device) == device
            else None
        ),
        cache_bytes_per_token=target.cache_bytes_per_token(dtype),
        context_tokens=min(context_tokens, max_positions(target.config) or context_tokens),
        max_nodes=(shape[0] if shape else 1) * num_texts,
        num_texts=num_texts,
        workspace=target.workspace(dtype),
        scratch_bytes=target.scratch_bytes(dtype, device),
        narrow_scratch_bytes=narrow_scratch_bytes,
        head_scratch_bytes=4 * target.head_scratch_elements(dtype, device),
        is_widened=target.is_quantized or target.is_packed or target.stored_dtype != dtype,
        slice_tokens=PREFILL_CHUNK_TOKENS if device.type == "cpu" else None,
        prefill_tokens=MAX_PREFILL_TOKENS if device.type == "cpu" else ACCELERATOR_MAX_PREFILL_TOKENS,
        num_slots=config.ring_slots,
        num_graft_nodes=config.num_graft_nodes,
        kv_cache=kv_cache_on(
            config.kv_cache,
            is_apart=num_texts == 1 and (device.type != "cpu" or config.link is not None),
            has_states=target.is_hybrid,
        ),
        cache_layer_bytes=target.cache_layer_bytes(dtype),
        row_layer_bytes=target.row_layer_bytes(config.kv_format),
        are_marks_apart=device.type != "cpu",
    )
    if packing is not None:
        need = need.packed(
            LayerFormat(
                PACKED,
                tuple(each.layout.slab_bytes for each in packing),
                tuple(each.layout.payload_bytes for each in packing),
            ),
            escape_bytes=sum(each.escape_bytes for each in packing),
            narrow_scratch_bytes=narrow_scratch_bytes,
        )
    return need if shape else need.with_largest_tree(is_cpu=device.type == "cpu")


def draft_device_of(config: EngineConfig, device: torch.device) -> torch.device:
    """Return where the draft of a session on `device` is. Raises BadInputError if there is no such device."""
    return device if config.draft_device == "auto" else select_device(config.draft_device)


def layer_formats(layouts: Sequence[LayerLayout], name: str | None = None) -> tuple[LayerFormat, ...]:
    """Return the layers as stored, then as each smaller quantized format; quantized layers have no other."""
    stored = LayerFormat(
        name or _stored_name(layouts),
        tuple(layout.slab_bytes for layout in layouts),
        tuple(layout.payload_bytes for layout in layouts),
    )
    if stored.name not in ("bfloat16", "float16", "float32", PACKED):
        return (stored,)
    shapes = [[_matrix_shape(tensor) for tensor in layout.tensors if len(tensor.shape) == 2] for layout in layouts]
    vectors = list(map(_vector_bytes, layouts))
    converted = (quantized_layers(name, shapes, vectors) for name in QUANTIZED_FORMATS)
    return (stored, *(layers for layers in converted if layers.total_bytes < stored.total_bytes))


def draft_need(
    config: EngineConfig, target: ModelFiles, draft: ModelFiles | None, *, dtype: torch.dtype, device: torch.device
) -> DraftNeed | None:
    """Return what the draft holds on `device`; None without one."""
    if config.is_plain:
        return None
    files, is_substitute = draft or target, draft is None
    held = files.held_format(config.draft_format, dtype, device, is_substitute=is_substitute)
    num_bytes = sum(files.draft_layer_bytes(held))
    if not is_substitute:
        num_bytes += files.other_bytes(device) + files.draft_head_bytes(held, device)
    label = f"substitute draft ({held})" if is_substitute else f"draft model ({held})"
    shared = files.draft_layer_bytes(held) if is_substitute and config.share_layers else ()
    is_widened = held != "stored" or files.is_quantized or files.stored_dtype != dtype
    return DraftNeed(
        label,
        num_bytes,
        files.cache_bytes_per_token(dtype),
        table_bytes=0 if is_substitute else files.table_bytes(device),
        workspace=files.workspace(dtype),
        scratch_bytes=files.scratch_bytes(dtype, device) if is_widened else 0,
        is_recorded=device.type == "cuda" and files.num_masks == 1 and not files.is_hybrid,
        shared_layer_bytes=shared,
    )


def _stored_name(layouts: Sequence[LayerLayout]) -> str:
    counts: Counter[str] = Counter()
    for tensor in chain.from_iterable(layout.tensors for layout in layouts):
        counts[tensor.dtype] += math.prod(tensor.shape)
    dtype = counts.most_common(1)[0][0]
    return _FORMAT_NAMES.get(dtype, dtype)


def _matrix_shape(tensor: SlabTensor) -> tuple[int, ...]:
    """Return the shape of a matrix, also of one that is packed."""
    return (tensor.shape[0], 4 * tensor.shape[1] // 3) if tensor.dtype == "I16" else tensor.shape


def _vector_bytes(layout: LayerLayout) -> int:
    return sum(math.prod(t.shape) * ITEM_BYTES[t.dtype] for t in layout.tensors if len(t.shape) != 2)


def compute_dtype(config: EngineConfig, target: ModelFiles, device: torch.device) -> torch.dtype:
    """Return the user's choice, or float32 on a processor, so that no text depends on its tree.

    An accelerator computes in the model's type, or in float16 where it has no bfloat16. Raises OptionError.
    """
    if config.compute_dtype == "auto":
        dtype = torch.float32 if device.type == "cpu" else target.stored_dtype
        return torch.float16 if dtype == torch.bfloat16 and not has_bfloat16(device) else dtype
    chosen: torch.dtype = getattr(torch, config.compute_dtype)
    if chosen == torch.bfloat16 and not has_bfloat16(device):
        raise OptionError(
            f"{device_name(device)} does not multiply bfloat16; give --compute-dtype float16, or float32 where a model "
            "made in bfloat16 writes nonsense in it"
        )
    return chosen
