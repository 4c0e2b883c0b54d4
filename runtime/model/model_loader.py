"""From a model folder to modules with weights: a streamed target, a resident draft, a substitute draft.

A `ModelFiles` is a checked folder whose weights are still on disk; from it the memory each piece needs is known before
anything is read. Embeddings, final norm and head are always resident, in their storage dtype.
"""

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from offload.checkpoint.checkpoint import SUPPORTED_DTYPES, Checkpoint
from offload.checkpoint.layer_layout import LayerLayout, layout_layer
from offload.copying.copy_engine import CopyEngine
from offload.formats.draft_weight import HeldFormat, draft_converter, fastest_format, held_bytes
from offload.formats.int8 import PackedInt8Weight
from offload.formats.weight_format import TORCH_DTYPES, DenseWeight, UpcastScratch, WeightFormat
from offload.layer_slabs import LayerSlabs, read_slab, slab_views
from offload.layer_streamer import LayerStreamer
from runtime.config import DraftFormat
from runtime.model.architecture import DecoderParts, open_decoder
from runtime.model.layer_binding import (
    HOST_DEVICE,
    ComputePlan,
    Convert,
    ModuleBinder,
    StoredLinear,
    bind_embedding,
    replace_linears,
)
from runtime.model.streamed_model import StreamedModel
from runtime.model.tree_cache import TreeCache

LoadingModel: TypeAlias = Generator[int, None, StreamedModel]
"""A load on its way: yields the weight bytes of each layer that has been read, returns the model."""
SharedLayers: TypeAlias = Mapping[int, Mapping[str, torch.Tensor]]
"""Layers by index, as named tensors in their storage types."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checked model folder, laid out in slabs; no weight has been read."""

    checkpoint: Checkpoint
    config: Any
    """transformers' configuration."""
    slabs: LayerSlabs
    """Where each decoder layer's bytes are."""
    other_layout: LayerLayout
    """Everything that is not a decoder layer, as one slab."""
    formats: tuple[Mapping[str, WeightFormat], ...]
    """Per layer: the formats of its quantized matrices by name."""
    linears: tuple[Mapping[str, tuple[int, int]], ...]
    """Per layer: the shapes (O, I) of its linear layers' matrices by name."""

    @classmethod
    def open(cls, folder: Path) -> "ModelFiles":
        """Check the folder and its architecture. Raises CheckpointError."""
        checkpoint = Checkpoint.open(folder)
        parts = open_decoder(checkpoint, dtype=torch.float32)
        slabs = LayerSlabs([layout_layer(tensors) for tensors in parts.layer_tensors])
        others = layout_layer(parts.other_tensors)
        linears = tuple(
            {
                f"{name}.weight": (module.out_features, module.in_features)
                for name, module in layer.named_modules()
                if type(module) is nn.Linear
            }
            for layer in parts.layers
        )
        return cls(checkpoint, parts.model.config, slabs, others, parts.layer_formats, linears)

    @property
    def stored_dtype(self) -> torch.dtype:
        """Float type of the largest tensor outside the layers, the embedding, which is never quantized."""
        floats = [tensor for tensor in self.other_layout.tensors if tensor.dtype in SUPPORTED_DTYPES]
        largest = max(floats, key=lambda tensor: math.prod(tensor.shape))
        return TORCH_DTYPES[largest.dtype]

    @property
    def is_quantized(self) -> bool:
        """Whether any matrix of the decoder layers is stored quantized."""
        return any(self.formats)

    def held_format(
        self, wanted: DraftFormat, dtype: torch.dtype, device: torch.device, *, is_substitute: bool
    ) -> HeldFormat:
        """Return how a draft of these files is held: what is quantized stays so, and `auto` is the fastest measured.

        A substitute held like an unquantized target would be the target itself, so it is int8 then.
        """
        if self.is_quantized:
            return "stored"
        held = fastest_format(dtype, device) if wanted == "auto" else wanted
        return "int8" if is_substitute and held == "stored" else held

    def draft_layer_bytes(self, held: HeldFormat) -> tuple[int, ...]:
        """Return the bytes of each decoder layer in a draft of this format; norms and biases count in float32."""
        if held == "stored":
            return tuple(layout.slab_bytes for layout in self.slabs.layouts)
        return tuple(
            sum(
                held_bytes(linears[tensor.name], held) if tensor.name in linears else 4 * math.prod(tensor.shape)
                for tensor in layout.tensors
            )
            for layout, linears in zip(self.slabs.layouts, self.linears, strict=True)
        )

    def draft_head_bytes(self, held: HeldFormat, device: torch.device = HOST_DEVICE) -> int:
        """Return the bytes of the head's own int8 copy, which only a separate draft of that format on a CPU has."""
        shape = (self.config.vocab_size, self.config.hidden_size)
        return held_bytes(shape, held) if held == "int8" and device.type == "cpu" else 0

    def cache_bytes_per_token(self, compute_dtype: torch.dtype) -> int:
        """Return the bytes of keys and values that one token takes in all layers."""
        config = self.config
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * len(self.slabs.layouts) * num_heads * head_dim * compute_dtype.itemsize)

    def workspace_bytes(self, num_tokens: int, compute_dtype: torch.dtype) -> int:
        """Estimate the bytes of activations and logits that a pass of `num_tokens` tokens holds at its widest."""
        hidden, inner = self.config.hidden_size, getattr(self.config, "intermediate_size", 4 * self.config.hidden_size)
        return int(num_tokens * (8 * hidden + 3 * inner) * compute_dtype.itemsize + 64 * self.config.vocab_size * 4)


@dataclass(frozen=True, slots=True)
class EmptyModel:
    """A model without its decoder layers' weights: what draft and target loading have in common."""

    files: ModelFiles
    parts: DecoderParts
    """Everything but the decoder layers is bound."""
    compute: ComputePlan

    @classmethod
    def build(cls, files: ModelFiles, compute: ComputePlan, *, others: Mapping[str, torch.Tensor]) -> "EmptyModel":
        """`others` are the tensors of files.other_layout by full name, in the storage dtype."""
        parts = open_decoder(files.checkpoint, dtype=compute.dtype)
        replace_linears(parts.model, UpcastScratch(compute.dtype, compute.device))
        _bind_others(parts, others, compute)
        _move_tables(parts.model, compute.device)
        return cls(files, parts, compute)

    def streamed(self, streamer: LayerStreamer, *, capacity: int) -> StreamedModel:
        """Return the model whose layers come from `streamer`."""
        binders = [self._binder(index) for index in range(self.parts.num_layers)]
        return StreamedModel(
            self.parts,
            self.compute,
            TreeCache(num_layers=self.parts.num_layers, capacity=capacity),
            binders=binders,
            slabs=self.files.slabs,
            streamer=streamer,
        )

    def as_draft(
        self,
        held: HeldFormat,
        engine: CopyEngine,
        *,
        capacity: int,
        shared: SharedLayers | None = None,
        has_own_head: bool = False,
    ) -> LoadingModel:
        """Load every layer into memory as `held` says, in one read of the file. Raises LinkError.

        `shared` layers, by index, are bound as they are, not read and not copied: views of memory that outlives the
        model, such as layers that stay resident in the target. A head that is the draft's own is held in int8 too.
        """
        if held == "stored" and not self.files.is_quantized:
            yield from self._bind_as_stored(engine)
        else:
            yield from self._bind_converted(held, engine, shared or {})
        if has_own_head and held == "int8":
            self._quantize_head()
        return StreamedModel(self.parts, self.compute, TreeCache(num_layers=self.parts.num_layers, capacity=capacity))

    def _bind_as_stored(self, engine: CopyEngine) -> Iterator[int]:
        for index, layout in enumerate(self.files.slabs.layouts):
            self._binder(index).bind(slab_views(layout, read_slab(layout, engine).to(self.compute.device)))
            yield layout.payload_bytes

    def _bind_converted(self, held: HeldFormat, engine: CopyEngine, shared: SharedLayers) -> Iterator[int]:
        slabs, convert = self.files.slabs, draft_converter(held, self.compute.dtype, self.compute.device)
        for index, tensors in shared.items():
            self._binder(index).bind(tensors)
        own = [index for index in range(len(slabs.layouts)) if index not in shared]
        for index, tensors in slabs.stream_from_disk(engine, indices=own):
            self._binder(index, convert=convert).bind(tensors)
            yield slabs.layouts[index].payload_bytes

    def _binder(self, index: int, *, convert: Convert | None = None) -> ModuleBinder:
        formats = self.parts.layer_formats[index]
        return ModuleBinder(self.parts.layers[index], self.compute, formats=formats, convert=convert)

    def _quantize_head(self) -> None:
        """Give the head an int8 copy of its own where its kernel then is several times faster (not on accelerators).

        A draft of half a billion parameters spends a third of its step in a bfloat16 head.
        """
        head = self.parts.model.get_output_embeddings()
        if isinstance(head, StoredLinear) and isinstance(head.stored, DenseWeight):
            converted = draft_converter("int8", self.compute.dtype, self.compute.device)(head.stored)
            if isinstance(converted, PackedInt8Weight):
                head.stored = converted


def read_others(
    files: ModelFiles, engine: CopyEngine, *, device: torch.device = HOST_DEVICE
) -> dict[str, torch.Tensor]:
    """Return embeddings, final norm and head by full name, as views of one slab on `device` in the storage dtype.

    Raises LinkError.
    """
    return slab_views(files.other_layout, read_slab(files.other_layout, engine).to(device))


def _bind_others(parts: DecoderParts, others: Mapping[str, torch.Tensor], compute: ComputePlan) -> None:
    """Bind everything outside the decoder layers; tied parameters share their source's bytes."""
    tied = {name: others[source] for name, source in parts.tied.items() if source in others}
    tensors = {**tied, **others}
    for name, module in parts.model.named_modules():
        if isinstance(module, nn.Embedding) and f"{name}.weight" in tensors:
            bind_embedding(module, tensors.pop(f"{name}.weight"), compute.dtype)
    ModuleBinder(parts.model, compute, formats=parts.other_formats).bind(tensors)


def _move_tables(model: nn.Module, device: torch.device) -> None:
    """Bring to `device` what no file holds: rotary and position tables, which are built on the host."""
    for module in model.modules():
        for name, table in module._buffers.items():
            if table is not None and not table.is_meta:
                module._buffers[name] = table.to(device)
