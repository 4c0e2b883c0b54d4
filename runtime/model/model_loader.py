"""From a model folder to modules with weights: a streamed target, a resident draft, a substitute draft.

A `ModelFiles` is a checked folder whose weights are still on disk; from it the memory each piece needs is known before
anything is read. Embeddings, final norm and head are always resident, in their storage dtype; beside an accelerator
the input embeddings wait in host memory, unless they are the head too.
"""

import inspect
import logging
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import nn

from offload.checkpoint.checkpoint import SUPPORTED_DTYPES, Checkpoint
from offload.checkpoint.gguf_config import quantization_of_gguf
from offload.checkpoint.layer_layout import LayerLayout, layout_layer
from offload.copying.copy_engine import CopyEngine
from offload.device import has_float32_products
from offload.formats.draft_weight import HeldFormat, draft_converter, fastest_format, held_bytes
from offload.formats.int8 import PackedInt8Weight
from offload.formats.packed import PackedFormat
from offload.formats.stored_sizes import (
    CHUNK_ELEMENTS,
    PIECE_BYTES,
    WIDE_HEAD_ELEMENTS,
    int8_token_bytes,
    piece_elements,
    scratch_elements,
)
from offload.formats.weight_format import (
    TORCH_DTYPES,
    DenseWeight,
    StoredWeight,
    UpcastScratch,
    WeightFormat,
    WidenedFormat,
    WidenedWeight,
)
from offload.layer_slabs import read_ahead, read_slab, slab_on, slab_views
from offload.layer_streamer import LayerStreamer
from offload.memory import allocate_read_slab
from offload.packed_layers import PackedLayer, PackedLayout, plan_packing
from runtime.config import DraftFormat, KvFormat
from runtime.fit.workspace import DeltaSizes, Workspace, expanded_width
from runtime.model.architecture import DecoderParts, open_decoder
from runtime.model.draft_cache import DraftCache
from runtime.model.layer_binding import (
    HOST_DEVICE,
    ComputePlan,
    Convert,
    HostEmbedding,
    ModuleBinder,
    StoredLinear,
    Table,
    bind_embedding,
    part_names,
    replace_linears,
    undo_conversion,
)
from runtime.model.recurrent_cache import RecurrentShape
from runtime.model.streamed_model import StreamedModel
from runtime.model.tree_cache import CacheShape, LayerShape
from runtime.model.trial_pass import try_pass
from runtime.planner.prefill import PassWidths

logger = logging.getLogger(__name__)

SharedLayers: TypeAlias = Mapping[int, tuple[Mapping[str, torch.Tensor], Mapping[str, WeightFormat]]]
"""Layers by index: named tensors in their storage types, and the formats of matrices that are packed."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checked model folder, laid out in slabs; no weight has been read."""

    checkpoint: Checkpoint
    config: Any
    """transformers' configuration; of a composite model that of its text part."""
    layouts: tuple[LayerLayout, ...]
    """Where each decoder layer's bytes are."""
    other_layout: LayerLayout
    """Everything that is not a decoder layer, as one slab."""
    table_layout: LayerLayout | None
    """The input embeddings among it, which an accelerator leaves in host memory; None where they are the head too."""
    rest_layout: LayerLayout
    """Everything else among it."""
    num_masks: int
    """Masks of a pass: one for each window that layers have."""
    formats: tuple[Mapping[str, WeightFormat], ...]
    """Per layer: the formats of its quantized or packed matrices by name."""
    other_formats: Mapping[str, WeightFormat]
    """The same outside of the layers: a table of embeddings, a head."""
    linears: tuple[Mapping[str, tuple[int, int]], ...]
    """Per layer: the shapes (O, I) of its linear layers' matrices by name."""
    cache_shapes: tuple[LayerShape, ...]
    """Per layer: what its cache keeps of one token, or of a text."""

    @classmethod
    def open(cls, folder: Path) -> "ModelFiles":
        """Check the folder and its architecture. Raises CheckpointError."""
        checkpoint = Checkpoint.open(folder)
        parts = open_decoder(checkpoint, dtype=torch.float32)
        layouts = tuple(map(layout_layer, parts.layer_tensors))
        others = layout_layer(parts.other_tensors)
        table_names = _table_names(parts)
        rest = {name: entry for name, entry in parts.other_tensors.items() if name not in table_names}
        table = {name: parts.other_tensors[name] for name in table_names}
        linears = tuple(
            {
                f"{name}.weight": (module.out_features, module.in_features)
                for name, module in layer.named_modules()
                if type(module) is nn.Linear
            }
            for layer in parts.layers
        )
        shapes = try_pass(parts)
        return cls(
            checkpoint,
            parts.config,
            layouts,
            others,
            layout_layer(table) if table else None,
            layout_layer(rest),
            len(set(parts.layer_windows)),
            parts.layer_formats,
            parts.other_formats,
            linears,
            shapes,
        )

    @property
    def payload_bytes(self) -> tuple[int, ...]:
        """Bytes of the weights of each decoder layer."""
        return tuple(layout.payload_bytes for layout in self.layouts)

    def other_bytes(self, device: torch.device) -> int:
        """Return the bytes that `device` holds of what is not a decoder layer."""
        return (self.rest_layout if self.table_bytes(device) else self.other_layout).slab_bytes

    def table_bytes(self, device: torch.device) -> int:
        """Return the bytes of input embeddings that wait in host memory beside `device`."""
        return 0 if device.type == "cpu" or self.table_layout is None else self.table_layout.slab_bytes

    @property
    def stored_dtype(self) -> torch.dtype:
        """Float type of the largest matrix outside the layers; bfloat16 where those are quantized too.

        Files of quantized blocks keep vectors in float32, which says nothing of the type that the model was made in.
        """
        floats = [t for t in self.other_layout.tensors if t.dtype in SUPPORTED_DTYPES and len(t.shape) > 1]
        largest = max(floats, key=lambda tensor: math.prod(tensor.shape), default=None)
        return torch.bfloat16 if largest is None else TORCH_DTYPES[largest.dtype]

    def packing(self) -> tuple[PackedLayout, ...] | None:
        """Return every layer as it would lie packed, or None where that is not worth it. Reads samples of the files."""
        return plan_packing(self.layouts, tuple(map(frozenset, self.linears)))

    @property
    def is_quantized(self) -> bool:
        """Whether matrices lost bits in their format; packed ones did not."""
        return any(not found.is_exact for layer in self.formats for found in layer.values())

    @property
    def is_widened(self) -> bool:
        """Whether all that is quantized in the layers is of formats that a draft can hold otherwise."""
        found = [found for layer in self.formats for found in layer.values() if not found.is_exact]
        return bool(found) and all(isinstance(each, WidenedFormat) for each in found)

    @property
    def keeps_format(self) -> bool:
        """Whether a draft of these files is held as they are stored, whatever is asked for."""
        return self.is_quantized and not self.is_widened

    @property
    def stored_name(self) -> str:
        """What people call the layers' format: a GGUF file's mix, else the formats of the matrices, or their type."""
        kinds = {found.name for layer in self.formats for found in layer.values()}
        if kinds and self.checkpoint.gguf is not None:
            return quantization_of_gguf(self.checkpoint.gguf)
        return "+".join(sorted(kinds)) or str(self.stored_dtype).removeprefix("torch.")

    @property
    def is_packed(self) -> bool:
        return any(isinstance(found, PackedFormat) for layer in self.formats for found in layer.values())

    def held_format(
        self, wanted: DraftFormat, dtype: torch.dtype, device: torch.device, *, is_substitute: bool
    ) -> HeldFormat:
        """Return how a draft of these files is held: `auto` is the fastest measured.

        What bitsandbytes quantized stays so. What is widened for every product is held so only if that is asked for,
        or on an accelerator without a fused kernel. A substitute held like its target would be the target itself, so
        it is int8 then.
        """
        if self.keeps_format:
            return "stored"
        held = fastest_format(dtype, device) if wanted == "auto" else wanted
        if self.is_widened and wanted == "auto" and held == "stored" and device.type == "cpu":
            held = "int8"
        return "int8" if is_substitute and held == "stored" else held

    def draft_layer_bytes(self, held: HeldFormat) -> tuple[int, ...]:
        """Return the bytes of each decoder layer in a draft of this format; norms and biases count in float32.

        A draft has packed matrices unpacked.
        """
        if held == "stored":
            layers = zip(self.layouts, self.formats, strict=True)
            return tuple(layout.slab_bytes + sum(map(_unpacked_bytes, layer.values())) for layout, layer in layers)
        return tuple(
            sum(
                held_bytes(linears[tensor.name], held) if tensor.name in linears else 4 * math.prod(tensor.shape)
                for tensor in layout.tensors
                if tensor.name not in part_names(formats)
            )
            for layout, linears, formats in zip(self.layouts, self.linears, self.formats, strict=True)
        )

    def draft_head_bytes(self, held: HeldFormat, device: torch.device = HOST_DEVICE) -> int:
        """Return the bytes of the head's own int8 copy, which only a separate draft of that format on a CPU has."""
        return held_bytes(self._head_shape, held) if held == "int8" and device.type == "cpu" else 0

    def cache_layer_bytes(self, compute_dtype: torch.dtype) -> tuple[int, ...]:
        """Return the bytes of keys and values that one token takes in each layer."""
        return tuple(
            shape.width * compute_dtype.itemsize if isinstance(shape, CacheShape) else 0 for shape in self.cache_shapes
        )

    def row_layer_bytes(self, kv_format: KvFormat) -> tuple[int, ...]:
        """Return the same where keys and values travel; empty where they do as they are computed."""
        if kv_format == "exact":
            return ()
        return tuple(
            int8_token_bytes(shape.keys[0] + shape.values[0], shape.width) if isinstance(shape, CacheShape) else 0
            for shape in self.cache_shapes
        )

    @property
    def is_hybrid(self) -> bool:
        """Whether layers keep states instead of keys and values."""
        return self._delta_sizes is not None

    @property
    def _delta_sizes(self) -> DeltaSizes | None:
        found = [shape for shape in self.cache_shapes if isinstance(shape, RecurrentShape)]
        if not found:
            return None
        num_heads, key_width, value_width = found[0].state
        return DeltaSizes(
            num_layers=len(found),
            num_heads=num_heads,
            num_key_heads=found[0].num_key_heads,
            key_width=key_width,
            value_width=value_width,
            window=found[0].window,
        )

    def cache_bytes_per_token(self, compute_dtype: torch.dtype) -> int:
        """Return the same of all layers together."""
        return sum(self.cache_layer_bytes(compute_dtype))

    def scratch_elements(self, compute_dtype: torch.dtype, device: torch.device) -> int:
        """Return how many weights are widened at a time: of the layers, and of a head in another type than computed."""
        shapes = [shape for linears in self.linears for shape in linears.values()]
        head = [self._head_shape] if self.stored_dtype != compute_dtype or self.other_formats else []
        return scratch_elements(shapes + head, is_host=device.type == "cpu")

    def scratch_bytes(self, compute_dtype: torch.dtype, device: torch.device) -> int:
        """Return what widening takes of `device`: the weights of `scratch_elements`, and the steps to them."""
        formats = (found for layer in (*self.formats, self.other_formats) for found in layer.values())
        steps_bytes = 0
        if any(isinstance(each, WidenedFormat) for each in formats):
            steps_bytes = PIECE_BYTES * piece_elements(is_host=device.type == "cpu")
        return self.scratch_elements(compute_dtype, device) * compute_dtype.itemsize + steps_bytes

    def head_scratch_elements(self, compute_dtype: torch.dtype, device: torch.device) -> int:
        """Return how many weights of a target's head are widened to float32 at a time; 0 where none has to be."""
        if compute_dtype == torch.float32 or self.multiplies_head_to_float32(compute_dtype, device):
            return 0
        return min(_most_head_elements(device), math.prod(self._head_shape))

    def multiplies_head_to_float32(self, compute_dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether the device itself multiplies the head, as it is stored, to float32."""
        is_dense = self.stored_dtype == compute_dtype and not self.other_formats
        return is_dense and has_float32_products(device, compute_dtype)

    @property
    def _head_shape(self) -> tuple[int, int]:
        return self.config.vocab_size, self.config.hidden_size

    def workspace(self, compute_dtype: torch.dtype) -> Workspace:
        """Return what its passes hold on the device."""
        config = self.config
        hidden, heads = config.hidden_size, config.num_attention_heads
        sizes = config.to_dict()  # attributes that differ by layer are no attributes of the whole
        inner, kv_heads, head_dim = map(sizes.get, ("intermediate_size", "num_key_value_heads", "head_dim"))
        head_dim = head_dim if type(head_dim) is int else hidden // heads
        return Workspace(
            hidden_size=hidden,
            head_dim=head_dim,
            inner_size=inner if type(inner) is int else 4 * hidden,
            vocab_size=config.vocab_size,
            item_bytes=compute_dtype.itemsize,
            num_masks=self.num_masks,
            expanded_width=expanded_width(
                sizes,
                num_heads=heads,
                num_kv_heads=kv_heads if type(kv_heads) is int else heads,
                head_dim=head_dim,
            ),
            delta=self._delta_sizes,
        )


def _unpacked_bytes(found: WeightFormat) -> int:
    """Return how many bytes more than packed a matrix takes at most once it is unpacked; 0 for a quantized one."""
    return found.shape[0] * found.shape[1] // 2 if isinstance(found, PackedFormat) else 0


def read_others(
    files: ModelFiles, engine: CopyEngine, *, device: torch.device = HOST_DEVICE
) -> dict[str, torch.Tensor]:
    """Return embeddings, final norm and head by full name, in the storage dtype, where they stay: see `table_layout`.

    Raises LinkError.
    """
    layout, table = files.other_layout, {}
    if files.table_layout is not None and device.type != "cpu":
        layout, table = files.rest_layout, slab_views(files.table_layout, read_slab(files.table_layout, engine))
    return table | slab_views(layout, slab_on(device, layout, read_slab(layout, engine)))


def open_streamed(
    files: ModelFiles,
    compute: ComputePlan,
    streamer: LayerStreamer,
    *,
    others: Mapping[str, torch.Tensor],
    capacity: int,
    num_lanes: int = 1,
    widened: torch.Tensor | None = None,
    widths: PassWidths | None = None,
    packed: Mapping[int, PackedLayer] = MappingProxyType({}),
) -> StreamedModel:
    """Return the model whose layers come from `streamer`; `others` as `read_others` returns them.

    `capacity` of each of `num_lanes` texts. `widened`: where keys and values that travel as int8 are widened, uint8;
    None where none do. `packed`: layers that
    lie so in memory, by index.
    """
    parts, table = _open_parts(files, compute, others)
    return StreamedModel(
        parts,
        compute,
        capacity=capacity,
        num_lanes=num_lanes,
        cache_shapes=files.cache_shapes,
        embedding=table,
        layouts=files.layouts,
        streamer=streamer,
        widened=widened,
        widths=widths,
        packed=packed,
    )


def load_draft(
    files: ModelFiles,
    compute: ComputePlan,
    held: HeldFormat,
    engine: CopyEngine,
    *,
    others: Mapping[str, torch.Tensor],
    capacity: int,
    num_lanes: int = 1,
    shared: SharedLayers | None = None,
    cache: DraftCache | None = None,
) -> Generator[int, None, StreamedModel]:
    """Load every layer into memory as `held` says, in one read of the file. Raises LinkError.

    Yields the weight bytes of each layer that has been read. A substitute's `shared` layers, by index, are bound as
    they are, not read and not copied: views of memory that outlives the model, such as layers that stay resident in the
    target. Without `shared` the head is the draft's own, and held in int8 too. NF4 layers come from `cache`, where they
    are there, and are left there for the next start.
    """
    parts, table = _open_parts(files, compute, others)
    bound = shared or {}
    model = partial(
        StreamedModel,
        parts,
        compute,
        capacity=capacity,
        num_lanes=num_lanes,
        cache_shapes=files.cache_shapes,
        embedding=table,
    )

    def binder(index: int, convert: Convert | None = None) -> ModuleBinder:
        return ModuleBinder(parts.layers[index], compute, formats=parts.layer_formats[index], convert=convert)

    for index, (tensors, formats) in bound.items():
        shared_binder = binder(index)
        shared_binder.learn(formats)
        shared_binder.bind(tensors)
    own = {index: layout for index, layout in enumerate(files.layouts) if index not in bound}
    if held == "stored" and not any(files.formats):
        for index, layout in own.items():
            binder(index).bind(slab_views(layout, slab_on(compute.device, layout, read_slab(layout, engine))))
            yield layout.payload_bytes
        return model()
    convert = draft_converter(held, compute.dtype, compute.device)
    if held == "nf4" and cache is not None and not bound and not files.is_quantized:
        yield from _bind_cached(files, parts, compute, engine, convert, cache)
        return model()
    largest = max((layout.slab_bytes for layout in own.values()), default=0)
    slabs = cycle([allocate_read_slab(largest) for _ in range(min(2, len(own)))])
    reads = read_ahead(engine, zip(own.values(), slabs, strict=False))
    for (index, layout), slab in zip(own.items(), reads, strict=True):
        binder(index, convert).bind(slab_views(layout, slab))
        yield layout.payload_bytes
    head = parts.model.get_output_embeddings()
    own_head = head.stored if shared is None and isinstance(head, StoredLinear) else None
    if held == "int8" and isinstance(own_head, DenseWeight | WidenedWeight):
        # A draft of half a billion parameters spends a third of its step in a bfloat16 head. Where the int8 kernel is
        # not several times faster (on accelerators) the head stays as it is.
        converted = convert(own_head)
        if isinstance(converted, PackedInt8Weight):
            head.stored = converted
    return model()


def _bind_cached(
    files: ModelFiles,
    parts: DecoderParts,
    compute: ComputePlan,
    engine: CopyEngine,
    convert: Convert,
    cache: DraftCache,
) -> Generator[int, None, None]:
    """Bind every layer as the cache has it, or quantize it and leave it there. Yields like `load_draft`."""
    is_kept: bool | None = None
    for index, cached in enumerate(cache.load(files.layouts, files.linears)):
        layout, layer = files.layouts[index], parts.layers[index]
        if cached is not None:
            move = partial(_moved, device=compute.device)
            ModuleBinder(layer, compute, formats=cached.formats, convert=move).bind(cached.tensors)
        else:
            views = slab_views(layout, read_slab(layout, engine))
            binder = ModuleBinder(layer, compute, formats=parts.layer_formats[index], convert=convert)
            binder.bind(views)
            is_kept = cache.has_room(files.linears) if is_kept is None else is_kept
            try:
                if is_kept:
                    known = binder.weights.keys() | binder.part_names
                    others = {name: view for name, view in views.items() if name not in known}
                    cache.save(index, binder.weights, others)
            except OSError as error:
                logger.warning("the NF4 copy of a draft was not kept in %s: %s", cache.model_folder, error)
                is_kept = False
        yield layout.payload_bytes


def _moved(stored: StoredWeight, *, device: torch.device) -> StoredWeight:
    return stored.to(device)


def _open_parts(
    files: ModelFiles, compute: ComputePlan, others: Mapping[str, torch.Tensor]
) -> tuple[DecoderParts, HostEmbedding | None]:
    """Return a new empty model with everything bound but the layers, and its input embeddings if they wait on the host.

    Tied parameters share their source's bytes.
    """
    parts = open_decoder(files.checkpoint, dtype=compute.dtype)
    num_elements = files.scratch_elements(compute.dtype, compute.device)
    replace_linears(parts.model, UpcastScratch(compute.dtype, compute.device, num_elements=num_elements))
    undo_conversion(parts.model, parts.paired_heads, parts.restored)
    _let_head_give_float32(parts.model, files, compute)
    tensors, formats = dict(others), dict(parts.other_formats)
    for name, source in parts.tied.items():
        found = formats.get(source)
        for suffix in ("",) if found is None else found.part_suffixes:
            if f"{source}{suffix}" in others:
                tensors[f"{name}{suffix}"] = others[f"{source}{suffix}"]
        if found is not None:
            formats[name] = found
    on_host = None
    for name, module in parts.model.named_modules():
        if isinstance(module, nn.Embedding) and _takes_ids(module) and f"{name}.weight" in tensors:
            table = _take_table(f"{name}.weight", tensors, formats)
            where = table.device if isinstance(table, torch.Tensor) else next(iter(table.parts.values())).device
            if where.type == compute.device.type:
                bind_embedding(module, table, compute.dtype)
            else:
                on_host = HostEmbedding(module, table, compute)
    ModuleBinder(parts.model, compute, formats=formats).bind(tensors)
    _move_tables(parts.model, compute.device)
    return parts, on_host


def _take_table(name: str, tensors: dict[str, torch.Tensor], formats: dict[str, WeightFormat]) -> Table:
    """Remove a table's tensors and its format, and return it."""
    found = formats.pop(name, None)
    if found is None:
        return tensors.pop(name)
    table = found.bind({suffix: tensors.pop(f"{name}{suffix}") for suffix in found.part_suffixes})
    assert isinstance(table, WidenedWeight)
    return table


def _table_names(parts: DecoderParts) -> frozenset[str]:
    """Return the full names of the input embeddings' tensors, where nothing but looking tokens up needs them."""
    inputs = parts.model.get_input_embeddings()
    for name, module in parts.model.named_modules():
        table = f"{name}.weight"
        is_alone = table in parts.other_tensors and table not in parts.tied.values()
        if module is inputs and isinstance(module, nn.Embedding) and _takes_ids(module) and is_alone:
            found = parts.other_formats.get(table)
            return frozenset((table,) if found is None else (f"{table}{suffix}" for suffix in found.part_suffixes))
    return frozenset()


def _let_head_give_float32(model: Any, files: ModelFiles, compute: ComputePlan) -> None:
    """Leave no logit rounded to a narrower type; a draft's only where the device cannot help it."""
    head, dtype, device = model.get_output_embeddings(), compute.dtype, compute.device
    is_free = files.multiplies_head_to_float32(dtype, device)
    if isinstance(head, StoredLinear) and dtype != torch.float32 and (is_free or not compute.is_fast):
        head.give_float32(UpcastScratch(torch.float32, device, num_elements=_most_head_elements(device)))


def _most_head_elements(device: torch.device) -> int:
    return CHUNK_ELEMENTS if device.type == "cpu" else WIDE_HEAD_ELEMENTS


def _takes_ids(module: nn.Embedding) -> bool:
    """Return whether a forward looks up what it is given; tables of positions may count the rows themselves."""
    return len(inspect.signature(module.forward).parameters) == 1


def _move_tables(model: nn.Module, device: torch.device) -> None:
    """Bring to `device` what no file holds: rotary and position tables, which are built on the host."""
    for module in model.modules():
        for name, table in module._buffers.items():
            if table is not None and not table.is_meta:
                module._buffers[name] = table.to(device)
