"""What one session must hold, as numbers: the decoder layers in each format, and everything beside them.

Built from a checked folder's headers (`need_of_files`) or from a shape alone (`ModelShape.need`); no weight is read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from offload.formats.stored_sizes import int8_rows_bytes, nf4_bytes
from offload.residency_plan import NUM_STAGES
from offload.units import round_up_to_page
from runtime.config import PREFILL_CHUNK_TOKENS

OTHERS = "target's embeddings, norm and head"
"""What is allocated before the layers; draft and first pass allocate everything else after them."""


@dataclass(frozen=True, slots=True)
class LayerFormat:
    """The decoder layers in one storage format."""

    name: str
    """bfloat16, float16, float32, int8 or nf4."""
    layer_bytes: tuple[int, ...]
    """Bytes of each layer as allocated, in whole pages."""
    payload_bytes: tuple[int, ...] = ()
    """Bytes of each layer's weights, where files say so; empty if all are."""

    @property
    def total_bytes(self) -> int:
        return sum(self.layer_bytes)


@dataclass(frozen=True, slots=True)
class DraftNeed:
    """What a draft holds on the device."""

    label: str
    """What a person calls it."""
    num_bytes: int
    """Bytes of its weights."""
    cache_bytes_per_token: int
    """Bytes of a token's keys and values."""
    shared_layer_bytes: tuple[int, ...] = ()
    """Bytes per layer of the target that the draft does not hold if that layer is resident; empty if it shares none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What one session needs, whatever the machine."""

    formats: tuple[LayerFormat, ...]
    """The format that would be run, then the smaller ones it could be converted to."""
    others_bytes: int
    """Embeddings, final norm and head: always resident, never quantized."""
    draft: DraftNeed | None
    """None: plain streaming."""
    cache_bytes_per_token: int
    """Bytes of a token's keys and values in the target."""
    context_tokens: int
    """Most tokens of prompt and answer together."""
    max_nodes: int
    """Largest tree; 1 without a draft."""
    activation_bytes_per_token: int
    """Bytes that a pass holds per token at its widest."""
    logits_bytes: int
    """Bytes that it holds whatever its width."""
    scratch_bytes: int
    """Bytes in which narrow weights are widened."""
    num_slots: int = 2
    """Slots of the ring."""
    num_graft_nodes: int = 0
    """Nodes that may be added to the largest tree."""
    file_bytes: int = 0
    """Bytes of disk that files still to be downloaded or written will take."""

    @property
    def layers(self) -> LayerFormat:
        """The decoder layers as they would be run."""
        return self.formats[0]

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the caches have room for: the context and one tree."""
        return self.context_tokens + self.max_nodes + self.num_graft_nodes

    @property
    def ring_bytes(self) -> int:
        """Bytes of the ring when every layer streams."""
        return self.num_slots * max(self.layers.layer_bytes)

    @property
    def stage_bytes(self) -> int:
        """Bytes of host memory through which layers reach a device that cannot fetch them itself."""
        return NUM_STAGES * max(self.layers.layer_bytes)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of all fixed entries, with no layer resident."""
        return sum(self.fixed_entries().values())

    @property
    def least_bytes(self) -> int:
        """Bytes that must be on the device: all fixed entries, and a ring or all layers."""
        return self.fixed_bytes + min(self.ring_bytes, self.layers.total_bytes - sum(self.saved_bytes or ()))

    @property
    def saved_bytes(self) -> tuple[int, ...] | None:
        """Bytes per layer that its residency saves in the draft; None if nothing is shared."""
        return (self.draft.shared_layer_bytes or None) if self.draft is not None else None

    def fixed_entries(self, residents: Iterable[int] = ()) -> dict[str, int]:
        """Return the bytes beside decoder layers and ring by purpose; a draft may share the `residents`."""
        entries = {OTHERS: self.others_bytes}
        cache_bytes = self.cache_bytes_per_token
        if self.draft is not None:
            shared = self.draft.shared_layer_bytes
            entries[self.draft.label] = self.draft.num_bytes - sum(shared[index] for index in residents if shared)
            cache_bytes += self.draft.cache_bytes_per_token
        pass_tokens = min(PREFILL_CHUNK_TOKENS + self.max_nodes + self.num_graft_nodes, self.capacity_tokens)
        return {
            **entries,
            f"keys and values of {self.capacity_tokens} tokens": self.capacity_tokens * cache_bytes,
            "upcast scratch": self.scratch_bytes,
            "activations": pass_tokens * self.activation_bytes_per_token + self.logits_bytes,
        }

    def without_draft(self) -> "MemoryNeed":
        """Return the same for plain streaming."""
        return replace(self, draft=None, max_nodes=1, num_graft_nodes=0)

    def in_format(self, name: str) -> "MemoryNeed":
        """Return the same with the layers in that one of `formats`, in files still to be written. Raises KeyError.

        int8 rows are made from the original, which needs its place as well; NF4 folders are also published.
        """
        names = [layers.name for layers in self.formats]
        if name not in names:
            raise KeyError(f"{name} is not among {names}")
        rest = self.formats[names.index(name) :]
        if rest == self.formats:
            return self
        file_bytes = rest[0].total_bytes + self.others_bytes + (self.file_bytes if name == "int8" else 0)
        return replace(self, formats=rest, file_bytes=file_bytes)


def quantized_layers(name: str, shapes: Sequence[Iterable[Sequence[int]]], vector_bytes: Sequence[int]) -> LayerFormat:
    """Return layers whose matrices have these shapes, in int8 or nf4, with vectors of `vector_bytes` as they are."""
    size = {"int8": int8_rows_bytes, "nf4": nf4_bytes}[name]
    payloads = [sum(map(size, matrices)) + rest for matrices, rest in zip(shapes, vector_bytes, strict=True)]
    return LayerFormat(name, tuple(map(round_up_to_page, payloads)))
