"""Dense Llama-like models as numbers: what a model needs, from a dozen sizes instead of a folder.

For questions about models that are not on this machine. Each built-in shape names the config.json it was copied from.
Opens nothing.
"""

from dataclasses import dataclass

from offload.stored_sizes import CHUNK_ELEMENTS, int8_rows_bytes, round_up_to_page
from runtime.engine_config import PREFILL_CHUNK_TOKENS
from runtime.memory_need import QUANTISED_FORMATS, DraftNeed, LayerFormat, MemoryNeed, quantised_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a dense decoder with grouped-query attention, a gated MLP, two norms a layer and no biases."""

    name: str
    """For the user."""
    source: str
    """Where the numbers were read."""
    num_layers: int
    """num_hidden_layers."""
    hidden_size: int
    """hidden_size."""
    inner_size: int
    """intermediate_size."""
    num_heads: int
    """num_attention_heads."""
    num_kv_heads: int
    """num_key_value_heads."""
    head_dim: int
    """Of one head."""
    vocab_size: int
    """vocab_size."""
    is_tied: bool = False
    """Whether the head is the embeddings."""
    item_bytes: int = 2
    """Of one stored number: 2 is bfloat16, 4 float32."""

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of a layer's linear weights: q, k, v, o, gate, up, down."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.inner_size
        attention = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
        return (*attention, (inner, hidden), (inner, hidden), (hidden, inner))

    @property
    def num_parameters(self) -> int:
        """All of them, tied ones once."""
        layer = sum(rows * columns for rows, columns in self.matrices) + 2 * self.hidden_size
        return self.num_layers * layer + self._num_other_elements

    @property
    def formats(self) -> tuple[LayerFormat, ...]:
        """The decoder layers as published, then int8 and NF4."""
        vector_bytes = 2 * self.hidden_size * self.item_bytes
        layer_bytes = sum(rows * columns for rows, columns in self.matrices) * self.item_bytes + vector_bytes
        published = LayerFormat(
            {2: "bfloat16", 4: "float32"}[self.item_bytes], (round_up_to_page(layer_bytes),) * self.num_layers
        )
        quantised = [quantised_layers(name, [self.matrices], [vector_bytes]) for name in QUANTISED_FORMATS]
        return (published, *(LayerFormat(one.name, one.layer_bytes * self.num_layers) for one in quantised))

    @property
    def others_bytes(self) -> int:
        """Embeddings, final norm and head."""
        return self._num_other_elements * self.item_bytes

    def cache_bytes_per_token(self, compute_item_bytes: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * compute_item_bytes

    def as_draft(self, compute_item_bytes: int) -> DraftNeed:
        """This model as a separate draft in int8 rows."""
        int8_bytes = sum(map(int8_rows_bytes, self.matrices)) + 2 * self.hidden_size * self.item_bytes
        return DraftNeed(
            f"draft {self.name} (int8 rows)",
            self.num_layers * int8_bytes + self.others_bytes,
            self.cache_bytes_per_token(compute_item_bytes),
        )

    def need(
        self,
        draft: DraftNeed | None,
        *,
        context_tokens: int,
        max_nodes: int,
        compute_item_bytes: int,
        num_slots: int = 2,
    ) -> MemoryNeed:
        """What running it takes, its files included, which are not on this machine yet."""
        formats = self.formats
        return MemoryNeed(
            formats=formats,
            others_bytes=self.others_bytes,
            draft=draft,
            cache_bytes_per_token=self.cache_bytes_per_token(compute_item_bytes),
            context_tokens=context_tokens,
            max_nodes=1 if draft is None else max_nodes,
            prefill_tokens=PREFILL_CHUNK_TOKENS,
            activation_bytes_per_token=(8 * self.hidden_size + 3 * self.inner_size) * compute_item_bytes,
            logits_bytes=64 * self.vocab_size * 4,
            scratch_bytes=2 * CHUNK_ELEMENTS * compute_item_bytes,
            num_slots=num_slots,
            file_bytes=formats[0].total_bytes + self.others_bytes,
        )

    @property
    def _num_other_elements(self) -> int:
        return (1 if self.is_tied else 2) * self.vocab_size * self.hidden_size + self.hidden_size


LLAMA_3_70B = ModelShape(
    name="Llama-3-70B",
    source="config.json of meta-llama/Meta-Llama-3-70B-Instruct",
    num_layers=80,
    hidden_size=8192,
    inner_size=28672,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)
LLAMA_3_8B = ModelShape(
    name="Llama-3-8B",
    source="config.json of meta-llama/Meta-Llama-3-8B-Instruct",
    num_layers=32,
    hidden_size=4096,
    inner_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)
