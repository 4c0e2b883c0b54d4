"""Dense Llama-like models as numbers: a dozen sizes say what a model needs, in memory and on disk. Imports no torch."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from offload.formats.stored_sizes import (
    CHUNK_ELEMENTS,
    ESCAPE_BYTES,
    PACKED,
    QUANTIZED_FORMATS,
    WIDE_HEAD_ELEMENTS,
    int8_rows_bytes,
    int8_token_bytes,
    nf4_bytes,
    packed_bytes,
    scratch_elements,
)
from offload.units import round_up_to_page
from runtime.config import ACCELERATOR_MAX_PREFILL_TOKENS, MAX_PREFILL_TOKENS, PREFILL_CHUNK_TOKENS, KvFormat
from runtime.fit.file_formats import FILE_FORMATS, FormatQuestion, Matrices, StoredSizes
from runtime.fit.place import DraftNeed, LayerFormat, MemoryNeed, quantized_layers
from runtime.fit.workspace import DeltaSizes, Workspace

_ESCAPE_SHARE = 4e-4
"""Of a model's weights, for whose escapes memory is kept: twice what the worst of three trained models has."""
_HELD_WORDS = {"stored": "as published", "int8": "int8 rows", "nf4": "nf4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalAttention:
    """The heads of layers that attend to everything, where other layers, with windows, have others."""

    layers: frozenset[int]
    num_kv_heads: int
    head_dim: int
    has_values: bool = True
    """Whether values are projected by themselves; else they are the keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """The layers that keep a state instead of keys and values."""

    layers: frozenset[int]
    delta: DeltaSizes

    def matrices(self, hidden: int) -> Matrices:
        """Return the linear weights of a layer that stand where attention has its own."""
        values = self.delta.num_heads * self.delta.value_width
        gates = (self.delta.num_heads, hidden)
        return {
            "qkv": (self.delta.num_channels, hidden),
            "output_gate": (values, hidden),
            "beta": gates,
            "decay": gates,
            "o": (hidden, values),
        }

    @property
    def num_vector_elements(self) -> int:
        """Elements of a layer's convolution, decays and norm."""
        delta = self.delta
        return delta.window * delta.num_channels + 2 * delta.num_heads + delta.value_width


_LayerKind = Literal["usual", "global", "recurrent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a dense decoder with grouped-query attention, or a recurrence, and an MLP in each layer."""

    name: str
    source: str
    """Where the numbers were read."""
    num_layers: int
    hidden_size: int
    inner_size: int
    """Width of the MLP."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool = False
    """Whether the head is the embeddings."""
    item_bytes: int = 2
    """Bytes of one stored number: 2 is bfloat16, 4 float32."""
    num_vector_elements: int = 0
    """Elements of a layer's biases and other vectors, beside its norms."""
    has_gated_attention: bool = False
    """Whether what attention returns has a gate of its own."""
    is_gated: bool = True
    """Whether the MLP has a gate beside up and down."""
    published_as: str | None = None
    """Of the layers: float16, int8, nf4, packed, or one of FILE_FORMATS; None is what item_bytes says."""
    stored: StoredSizes | None = None
    """What the files' headers say, where the format's bytes are not those of a formula."""
    global_attention: GlobalAttention | None = None
    """What layers that attend to everything have instead of these heads; None where all are alike."""
    recurrence: Recurrence | None = None
    """Layers without keys and values; None where all attend."""
    num_norms: int = 2
    """Norms of a layer as wide as hidden states."""
    cache_heads: tuple[int, int] | None = None
    """(heads, numbers in all) that a layer's cache keeps of one token; None is a key and a value of each key head."""
    num_masks: int = 1
    """Windows that its layers have, full attention included."""
    expanded_width: int = 0
    """Numbers per key that a layer makes while it attends."""
    max_context_tokens: int | None = None
    """None where not known."""
    usual_draft: str | None = None
    """Name of the known model that drafts for it."""
    is_draft_compared: bool = True
    """Whether somebody compared its tokenizer with that draft's, or both are published as one family's."""
    hub_name: str | None = None
    """What the hub calls it; None where that is not known."""
    folder: Path | None = None
    """Where its weights are; None if they are not on this machine."""
    note: str | None = None
    """Why the sizes may be wrong; None where nothing says so."""

    @property
    def gguf_file(self) -> Path | None:
        """The GGUF file that its weights are; None if they are none, or not on this machine."""
        return self.folder if self.folder is not None and self.folder.is_file() else None

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of an ordinary layer's linear weights: q, k, v, o, gate, up, down."""
        return tuple(self._layer(self._usual_kind).values())

    @property
    def _usual_kind(self) -> _LayerKind:
        """Return the kind of most layers."""
        return "usual" if self.recurrence is None else "recurrent"

    def _layer(self, kind: _LayerKind) -> Matrices:
        """Return a layer's linear weights by their role."""
        heads = self.global_attention if kind == "global" else None
        num_kv_heads, head_dim = (
            (self.num_kv_heads, self.head_dim) if heads is None else (heads.num_kv_heads, heads.head_dim)
        )
        queries, keys = self.num_heads * head_dim, num_kv_heads * head_dim
        hidden, inner = self.hidden_size, self.inner_size
        values = {"v": (keys, hidden)} if heads is None or heads.has_values else {}
        gates = {"gate": (inner, hidden)} if self.is_gated else {}
        outputs = {"attention_gate": (queries, hidden)} if self.has_gated_attention else {}
        attention = {"q": (queries, hidden), "k": (keys, hidden), **values, **outputs, "o": (hidden, queries)}
        if kind == "recurrent":
            assert self.recurrence is not None
            attention = {**self.recurrence.matrices(hidden)}
        return {**attention, **gates, "up": (inner, hidden), "down": (hidden, inner)}

    def _by_layer(self, size: Callable[[Matrices, int], int]) -> tuple[int, ...]:
        """Return what `size` makes of each layer's linear weights and the number of its other elements."""
        kinds = self._kinds
        sizes = {kind: size(self._layer(kind), self._num_vectors(kind)) for kind in set(kinds)}
        return tuple(sizes[kind] for kind in kinds)

    @property
    def _kinds(self) -> tuple[_LayerKind, ...]:
        """What each layer is."""
        recurrent = frozenset() if self.recurrence is None else self.recurrence.layers
        of_global = frozenset() if self.global_attention is None else self.global_attention.layers
        return tuple(
            "recurrent" if index in recurrent else "global" if index in of_global else "usual"
            for index in range(self.num_layers)
        )

    @property
    def num_layer_parameters(self) -> int:
        """Weights of an ordinary decoder layer that a token is multiplied with."""
        return _num_weights(self._layer(self._usual_kind))

    @property
    def num_decoder_parameters(self) -> int:
        """The same of all layers."""
        return sum(self._by_layer(lambda layer, _: _num_weights(layer)))

    @property
    def num_parameters(self) -> int:
        return sum(self._by_layer(lambda layer, rest: _num_weights(layer) + rest)) + self._num_other_elements

    @property
    def formats(self) -> tuple[LayerFormat, ...]:
        """The decoder layers as published, then int8 and NF4, unless they are published quantized."""
        name = self.published_as or {2: "bfloat16", 4: "float32"}[self.item_bytes]
        if (sizes := self._sizes) is not None:
            return (LayerFormat(name, sizes.layer_bytes),)
        if name in QUANTIZED_FORMATS:
            return (self._quantized(name),)
        return (
            LayerFormat(name, self._packed_layers if self.is_packed else self._dense_layers),
            *map(self._quantized, QUANTIZED_FORMATS),
        )

    @property
    def dimensions(self) -> tuple[int, ...]:
        """What models of one architecture and size have in common, their vocabulary included."""
        heads = self.num_heads, self.num_kv_heads, self.head_dim
        return self.num_layers, self.hidden_size, self.inner_size, *heads, self.vocab_size

    def stored_as(self, name: str) -> "ModelShape":
        """Return the model as files in one of FILE_FORMATS hold it."""
        return replace(self, published_as=name, stored=None, note=None)

    @property
    def _sizes(self) -> StoredSizes | None:
        """What its files hold, where that is not what a format of this project's own gives."""
        return self.stored or (_file_sizes(self) if self.published_as in FILE_FORMATS else None)

    @property
    def is_narrow(self) -> bool:
        """Whether its layers are published quantized, so that they are run as they are or not at all."""
        return self.published_as in QUANTIZED_FORMATS or self._sizes is not None

    @property
    def _dense_layers(self) -> tuple[int, ...]:
        return self._by_layer(lambda layer, rest: round_up_to_page((_num_weights(layer) + rest) * self.item_bytes))

    @property
    def _packed_layers(self) -> tuple[int, ...]:
        return self._by_layer(
            lambda layer, rest: round_up_to_page(sum(map(packed_bytes, layer.values())) + rest * self.item_bytes)
        )

    @property
    def is_packed(self) -> bool:
        return self.published_as == PACKED

    def _quantized(self, name: str) -> LayerFormat:
        def size(layer: Matrices, rest: int) -> int:
            return quantized_layers(name, [layer.values()], [rest * self.item_bytes]).total_bytes

        return LayerFormat(name, self._by_layer(size))

    def _num_vectors(self, kind: _LayerKind) -> int:
        """Return the elements of a layer that are in no matrix."""
        own = self.num_vector_elements
        if kind == "recurrent":
            assert self.recurrence is not None
            own = self.recurrence.num_vector_elements
        return self.num_norms * self.hidden_size + own

    @property
    def others_bytes(self) -> int:
        """Bytes of embeddings, final norm and head."""
        sizes = self._sizes
        return self._num_other_elements * self.item_bytes if sizes is None else sizes.table_bytes + sizes.head_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the input embeddings, which an accelerator leaves in host memory; 0 where they are the head too."""
        if self.is_tied:
            return 0
        sizes = self._sizes
        return self._num_head_weights * self.item_bytes if sizes is None else sizes.table_bytes

    @property
    def is_head_narrow(self) -> bool:
        """Whether the head is stored in blocks, and widened for each product."""
        return self.others_bytes - self.table_bytes < self._num_head_weights * self.item_bytes

    @property
    def _num_head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    def cache_bytes_per_token(self, compute_item_bytes: int) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        return sum(self.cache_layer_bytes(compute_item_bytes))

    def cache_layer_bytes(self, compute_item_bytes: int) -> tuple[int, ...]:
        """Return the same by layer."""
        return tuple(num_elements * compute_item_bytes for _, num_elements in self._cached)

    def row_layer_bytes(self, kv_format: KvFormat) -> tuple[int, ...]:
        """Return the same by layer where keys and values travel; empty where they do as they are computed."""
        return () if kv_format == "exact" else tuple(int8_token_bytes(*cached) for cached in self._cached)

    @property
    def _cached(self) -> tuple[tuple[int, int], ...]:
        """(heads, numbers in all) that each layer keeps of a token."""
        by_kind: dict[_LayerKind, tuple[int, int]] = {
            "usual": self.cache_heads or (2 * self.num_kv_heads, 2 * self.num_kv_heads * self.head_dim),
            "recurrent": (0, 0),
        }
        if (heads := self.global_attention) is not None:
            by_kind["global"] = 2 * heads.num_kv_heads, 2 * heads.num_kv_heads * heads.head_dim
        return tuple(by_kind[kind] for kind in self._kinds)

    def held_bytes(self, held: str) -> int:
        """Return the bytes of the decoder layers as a draft holds them: `stored` as published, `int8` rows or `nf4`.

        What is packed a draft has unpacked; what bitsandbytes quantized stays so.
        """
        if held == "stored" and self.is_packed:
            return (self.num_parameters - self._num_other_elements) * self.item_bytes
        if held == "stored" or self.published_as in QUANTIZED_FORMATS:
            return self.formats[0].total_bytes
        size = {"int8": int8_rows_bytes, "nf4": nf4_bytes}[held]
        return sum(self._by_layer(lambda layer, rest: sum(map(size, layer.values())) + rest * self.item_bytes))

    def as_draft(
        self, compute_item_bytes: int, *, held: str = "int8", is_substitute: bool = False, is_cpu: bool = True
    ) -> DraftNeed:
        """Return this model as a draft; a substitute has the embeddings and the head of its target."""
        table_bytes = 0 if is_cpu or is_substitute else self.table_bytes
        is_stored = held == "stored" and not self.is_narrow
        is_widened = not is_stored or self.item_bytes != compute_item_bytes
        return DraftNeed(
            f"{'substitute draft' if is_substitute else f'draft {self.name}'} ({_HELD_WORDS[held]})",
            self.held_bytes(held) + (0 if is_substitute else self.others_bytes) - table_bytes,
            self.cache_bytes_per_token(compute_item_bytes),
            table_bytes,
            self.workspace(compute_item_bytes),
            scratch_bytes=self._scratch_bytes(compute_item_bytes, is_cpu=is_cpu) if is_widened else 0,
            is_recorded=not is_cpu and self.num_masks == 1 and self.recurrence is None,
        )

    def workspace(self, compute_item_bytes: int) -> Workspace:
        """Return what its passes hold."""
        return Workspace(
            hidden_size=self.hidden_size,
            head_dim=self.head_dim,
            inner_size=self.inner_size,
            vocab_size=self.vocab_size,
            item_bytes=compute_item_bytes,
            num_masks=self.num_masks,
            expanded_width=self.expanded_width,
            delta=None if self.recurrence is None else self.recurrence.delta,
        )

    def need(
        self,
        draft: DraftNeed | None,
        *,
        context_tokens: int,
        max_nodes: int,
        compute_item_bytes: int,
        is_cpu: bool = True,
    ) -> MemoryNeed:
        """Return what running it takes, its files included, which are not on this machine yet.

        `is_cpu`: whether a processor computes, which widens less at a time and has the embeddings at hand.
        """
        formats = self.formats
        table_bytes = 0 if is_cpu else self.table_bytes
        return MemoryNeed(
            formats=formats,
            others_bytes=self.others_bytes - table_bytes,
            table_bytes=table_bytes,
            draft=draft,
            cache_bytes_per_token=self.cache_bytes_per_token(compute_item_bytes),
            context_tokens=context_tokens,
            max_nodes=1 if draft is None else max_nodes,
            workspace=self.workspace(compute_item_bytes),
            scratch_bytes=self._scratch_bytes(compute_item_bytes, is_cpu=is_cpu),
            narrow_scratch_bytes=(
                self._narrow_scratch_bytes(compute_item_bytes, is_cpu=is_cpu) if self.is_packed else 0
            ),
            head_scratch_bytes=self._head_scratch_bytes(compute_item_bytes, is_cpu=is_cpu),
            is_widened=self.is_narrow or self.is_packed or self.item_bytes != compute_item_bytes,
            cache_layer_bytes=() if self._is_uniform else self.cache_layer_bytes(compute_item_bytes),
            slice_tokens=PREFILL_CHUNK_TOKENS if is_cpu else None,
            prefill_tokens=MAX_PREFILL_TOKENS if is_cpu else ACCELERATOR_MAX_PREFILL_TOKENS,
            file_bytes=formats[0].total_bytes + self.others_bytes,
            are_marks_apart=not is_cpu,
        )

    def packed(self, need: MemoryNeed, compute_item_bytes: int, *, is_cpu: bool = True) -> MemoryNeed:
        """Return the same need with layers that lie packed in memory, as trained weights let them."""
        num_escapes = math.ceil(_ESCAPE_SHARE * self.num_decoder_parameters)
        return need.packed(
            LayerFormat(PACKED, self._packed_layers),
            escape_bytes=ESCAPE_BYTES * num_escapes,
            narrow_scratch_bytes=self._narrow_scratch_bytes(compute_item_bytes, is_cpu=is_cpu),
        )

    def _scratch_bytes(self, compute_item_bytes: int, *, is_cpu: bool) -> int:
        """Return what widening its matrices takes at a time, a head in another type than computed included."""
        is_head_wide = self.item_bytes == compute_item_bytes and not self.is_head_narrow
        head = () if is_head_wide else ((self.vocab_size, self.hidden_size),)
        return compute_item_bytes * scratch_elements((*self._all_matrices, *head), is_host=is_cpu)

    def _narrow_scratch_bytes(self, compute_item_bytes: int, *, is_cpu: bool) -> int:
        """Return what unpacking its matrices takes at a time, where they are multiplied in another type."""
        return 0 if compute_item_bytes == 2 else 2 * scratch_elements(self._all_matrices, is_host=is_cpu)

    def _head_scratch_bytes(self, compute_item_bytes: int, *, is_cpu: bool) -> int:
        """Return what widening its head takes at a time, where it does not multiply to float32 by itself."""
        if compute_item_bytes == 4 or (compute_item_bytes == self.item_bytes and not self.is_head_narrow):
            return 0
        return 4 * min(CHUNK_ELEMENTS if is_cpu else WIDE_HEAD_ELEMENTS, self._num_head_weights)

    @property
    def _all_matrices(self) -> tuple[tuple[int, int], ...]:
        return tuple(shape for kind in dict.fromkeys(self._kinds) for shape in self._layer(kind).values())

    @property
    def _is_uniform(self) -> bool:
        return self.global_attention is None and self.recurrence is None

    @property
    def _num_other_elements(self) -> int:
        return (1 if self.is_tied else 2) * self._num_head_weights + self.hidden_size


def _num_weights(layer: Matrices) -> int:
    return sum(rows * columns for rows, columns in layer.values())


@functools.lru_cache(maxsize=64)
def _file_sizes(shape: ModelShape) -> StoredSizes:
    """Return what files in the shape's own format hold, one of FILE_FORMATS."""
    assert shape.published_as is not None
    question = FormatQuestion(
        layers=[shape._layer(kind) for kind in shape._kinds],
        num_vector_elements=[shape._num_vectors(kind) for kind in shape._kinds],
        group_size=shape.num_heads // shape.num_kv_heads,
        table_shape=(shape.vocab_size, shape.hidden_size),
        is_tied=shape.is_tied,
        item_bytes=shape.item_bytes,
    )
    return question.sizes_in(shape.published_as)
