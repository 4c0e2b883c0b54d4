"""Dense Llama-like models as numbers: what a model needs, from a dozen sizes instead of its files. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from offload.formats.stored_sizes import CHUNK_ELEMENTS, QUANTIZED_FORMATS, int8_rows_bytes, nf4_bytes
from offload.units import round_up_to_page
from runtime.fit.need import DraftNeed, LayerFormat, MemoryNeed, quantized_layers

_HELD_WORDS = {"stored": "as published", "int8": "int8 rows", "nf4": "nf4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a dense decoder with grouped-query attention, an MLP and two norms a layer."""

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
    """Elements of a layer's biases and other vectors, beside its two norms."""
    is_gated: bool = True
    """Whether the MLP has a gate beside up and down."""
    published_as: str | None = None
    """Format of the published layers: float16, int8, nf4; None is what item_bytes says."""
    max_context_tokens: int | None = None
    """None where not known."""
    usual_draft: str | None = None
    """Name of the known model that drafts for it."""
    folder: Path | None = None
    """Where its weights are; None if they are not on this machine."""
    note: str | None = None
    """Why the sizes may be wrong; None where nothing says so."""

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of a layer's linear weights: q, k, v, o, gate, up, down."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.inner_size
        attention = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
        gates = ((inner, hidden),) if self.is_gated else ()
        return (*attention, *gates, (inner, hidden), (hidden, inner))

    @property
    def num_layer_parameters(self) -> int:
        """Weights of one decoder layer that a token is multiplied with."""
        return sum(rows * columns for rows, columns in self.matrices)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, tied ones once."""
        layer = self.num_layer_parameters + 2 * self.hidden_size + self.num_vector_elements
        return self.num_layers * layer + self._num_other_elements

    @property
    def formats(self) -> tuple[LayerFormat, ...]:
        """The decoder layers as published, then int8 and NF4, unless they are published quantized."""
        name = self.published_as or {2: "bfloat16", 4: "float32"}[self.item_bytes]
        if name in QUANTIZED_FORMATS:
            return (self._quantized(name),)
        layer_bytes = self.num_layer_parameters * self.item_bytes + self._vector_bytes
        published = LayerFormat(name, (round_up_to_page(layer_bytes),) * self.num_layers)
        return (published, *map(self._quantized, QUANTIZED_FORMATS))

    def _quantized(self, name: str) -> LayerFormat:
        layer = quantized_layers(name, [self.matrices], [self._vector_bytes])
        return LayerFormat(name, layer.layer_bytes * self.num_layers)

    @property
    def _vector_bytes(self) -> int:
        return (2 * self.hidden_size + self.num_vector_elements) * self.item_bytes

    @property
    def others_bytes(self) -> int:
        """Bytes of embeddings, final norm and head."""
        return self._num_other_elements * self.item_bytes

    def cache_bytes_per_token(self, compute_item_bytes: int) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * compute_item_bytes

    @property
    def head_bytes(self) -> int:
        return self.vocab_size * self.hidden_size * self.item_bytes

    def held_bytes(self, held: str) -> int:
        """Return the bytes of the decoder layers as a draft holds them: `stored` as published, `int8` rows or `nf4`."""
        if held == "stored" or self.published_as in QUANTIZED_FORMATS:
            return self.formats[0].total_bytes
        size = {"int8": int8_rows_bytes, "nf4": nf4_bytes}[held]
        return self.num_layers * (sum(map(size, self.matrices)) + self._vector_bytes)

    def as_draft(self, compute_item_bytes: int, *, held: str = "int8", is_substitute: bool = False) -> DraftNeed:
        """Return this model as a draft; a substitute has the embeddings and the head of its target."""
        return DraftNeed(
            f"{'substitute draft' if is_substitute else f'draft {self.name}'} ({_HELD_WORDS[held]})",
            self.held_bytes(held) + (0 if is_substitute else self.others_bytes),
            self.cache_bytes_per_token(compute_item_bytes),
        )

    def need(
        self, draft: DraftNeed | None, *, context_tokens: int, max_nodes: int, compute_item_bytes: int
    ) -> MemoryNeed:
        """Return what running it takes, its files included, which are not on this machine yet."""
        formats = self.formats
        return MemoryNeed(
            formats=formats,
            others_bytes=self.others_bytes,
            draft=draft,
            cache_bytes_per_token=self.cache_bytes_per_token(compute_item_bytes),
            context_tokens=context_tokens,
            max_nodes=1 if draft is None else max_nodes,
            activation_bytes_per_token=(8 * self.hidden_size + 3 * self.inner_size) * compute_item_bytes,
            logits_bytes=64 * self.vocab_size * 4,
            scratch_bytes=2 * CHUNK_ELEMENTS * compute_item_bytes,
            file_bytes=formats[0].total_bytes + self.others_bytes,
        )

    @property
    def _num_other_elements(self) -> int:
        return (1 if self.is_tied else 2) * self.vocab_size * self.hidden_size + self.hidden_size
