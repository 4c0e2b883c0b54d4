"""What a model's passes hold on the device beside weights and caches, from its sizes alone; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.config import MAX_TREE_LEVELS
from runtime.model.pass_shapes import (
    DELTA_BLOCK_TOKENS,
    MOST_DELTA_PAIRS,
    RECORDED_WIDTH,
    bucket_of,
    mask_row_elements,
    num_key_buckets,
)

HIDDEN_COPIES, INNER_COPIES = 3, 3
"""Hidden states and MLP activations of a token that a layer holds at once beside what comes in: in its MLP.

Residual, normed, and one more that is not freed yet; gate, up and their product. Measured on the simulated device with
512 tokens, what comes in included: 4.1 hidden states beside three inner ones in llama, qwen2 and gemma3, in float32 and
bfloat16 alike.
"""
RANKED_BYTES = 12
"""Of each logit of a draft's level: itself, itself less its penalty, and its noise, in float32."""

_WINDOWED = {"gemma2", "gemma3_text", "gemma4_text", "cohere2", "muse_glimmer_text"}
"""Whose layers have windows by turns even where config.json does not list them."""


_PAIR_BYTES = 16
"""Of each token of a tree with one of a block, in a head: four float32 numbers; before them decays in float64 too."""
_GATED_COPIES, _WRITTEN_COPIES = 5, 6
"""Of what a token gives the convolution, and of a node's values in float32, that the rule holds at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaSizes:
    """The sizes of a model's Gated DeltaNet layers."""

    num_layers: int
    num_heads: int
    """Hv: of values, each with a state."""
    num_key_heads: int
    """Hk: of queries and keys."""
    key_width: int
    value_width: int
    window: int
    """Tokens that the convolution sees."""

    @property
    def num_channels(self) -> int:
        """Of the convolution."""
        return 2 * self.num_key_heads * self.key_width + self.num_heads * self.value_width

    def state_bytes(self, item_bytes: int) -> int:
        """Return the bytes of a text's states in all of these layers."""
        state = 4 * self.num_heads * self.key_width * self.value_width
        return self.num_layers * (state + (self.window - 1) * self.num_channels * item_bytes)

    def row_bytes(self, item_bytes: int) -> int:
        """Return the bytes of a token that may still be taken back, in all of these layers."""
        return self.num_layers * (self.num_channels * item_bytes + 2 * 4 * self.num_heads)

    def layer_bytes(self, num_tokens: int, item_bytes: int, *, num_nodes: int) -> int:
        """Return what one layer holds while it computes tokens, of which all but a tree's nodes continue a text."""
        together = max(num_nodes + 1, DELTA_BLOCK_TOKENS)  # the text's last token stands behind the state too
        pairs = together * DELTA_BLOCK_TOKENS
        at_once = max(MOST_DELTA_PAIRS, pairs * self.num_heads // self.num_key_heads)
        heads = self.num_heads * max(self.key_width, self.value_width)
        of_token = _GATED_COPIES * self.num_channels * item_bytes + 4 * heads
        of_node = 4 * _WRITTEN_COPIES * heads
        state = 3 * 4 * self.num_heads * self.key_width * self.value_width
        return num_tokens * of_token + together * of_node + _PAIR_BYTES * min(at_once, pairs * self.num_heads) + state


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """The sizes that a pass's memory follows from."""

    hidden_size: int
    head_dim: int
    inner_size: int
    vocab_size: int
    item_bytes: int
    """Bytes of one activation."""
    num_masks: int = 1
    """Masks of a pass: one for each window that layers have."""
    expanded_width: int = 0
    """Numbers per key that a layer makes for its heads of what the cache keeps; see `expanded_width`."""
    delta: DeltaSizes | None = None
    """Of its layers that are Gated DeltaNet; None where there is none."""

    @property
    def state_bytes(self) -> int:
        """Bytes of a text's states; 0 where layers have none."""
        return 0 if self.delta is None else self.delta.state_bytes(self.item_bytes)

    def states_bytes(self, *, num_texts: int, num_nodes: int, is_grown: bool = False) -> int:
        """Return what recurrent layers keep of texts with so many nodes, while a pass makes all of it anew.

        Before it stands an accepted path; of a tree that `is_grown` level by level, as a draft's, its earlier levels.
        """
        if self.delta is None:
            return 0
        before = num_nodes if is_grown else num_texts * MAX_TREE_LEVELS
        rows = num_nodes + before + 2 * num_texts
        return 2 * num_texts * self.state_bytes + rows * self.delta.row_bytes(self.item_bytes)

    def pass_bytes(self, num_tokens: int, num_keys: int, *, num_nodes: int = 0) -> int:
        """Return what a pass of T tokens that see K keys holds at its widest, in one layer.

        `num_nodes`: of the trees in it, as far as they stand in no state yet; other tokens continue a text.
        """
        return num_tokens * self._token_bytes + self._layer_bytes(num_tokens, num_keys, num_nodes)

    def sliced_bytes(
        self, num_tokens: int, num_keys: int, *, slice_tokens: int, last_tokens: int, num_nodes: int = 0
    ) -> int:
        """Return what a pass of T tokens holds that every layer computes slice by slice.

        `last_tokens`: of the last slice, whose mask waits while the others are computed, and which has all nodes.
        """
        slices = max(
            self._layer_bytes(slice_tokens, num_keys, 0) + self._mask_bytes(last_tokens, num_keys),
            self._layer_bytes(last_tokens, num_keys, num_nodes),
        )
        return num_tokens * self._token_bytes + slices

    @property
    def _token_bytes(self) -> int:
        """Bytes of each token of a pass between two layers: hidden states, rotations, positions."""
        return (self.hidden_size + 2 * self.head_dim) * self.item_bytes + 16

    def _layer_bytes(self, num_tokens: int, num_keys: int, num_nodes: int) -> int:
        activations = num_tokens * (HIDDEN_COPIES * self.hidden_size + INNER_COPIES * self.inner_size)
        made = num_keys * self.expanded_width
        num_bytes = (activations + made) * self.item_bytes
        if self.delta is not None:
            of_rule = self.delta.layer_bytes(num_tokens, self.item_bytes, num_nodes=num_nodes)
            num_bytes = max(num_bytes, of_rule + num_tokens * HIDDEN_COPIES * self.hidden_size * self.item_bytes)
        return num_bytes + self._mask_bytes(num_tokens, num_keys)

    def _mask_bytes(self, num_tokens: int, num_keys: int) -> int:
        return self.num_masks * num_tokens * mask_row_elements(num_keys) * self.item_bytes

    def logits_bytes(self, num_rows: int) -> int:
        """Return what the head holds for so many rows: its own product, and that in float32."""
        return num_rows * self.vocab_size * (4 if self.item_bytes == 4 else self.item_bytes + 4)

    def ranking_bytes(self, num_rows: int) -> int:
        """Return what ranking the candidates of so many nodes holds, with the noise of two positions on its way."""
        return self.vocab_size * (num_rows * RANKED_BYTES + 16)

    def recorded_bytes(self, num_keys: int) -> int:
        """Return what recordings of passes that see up to K keys keep for good.

        The widest one's memory serves all, but what each returns, hidden states of its width, is its own.
        """
        widths = sum({bucket_of(count, 1) for count in range(1, RECORDED_WIDTH + 1)})
        returned = widths * num_key_buckets(num_keys) * self.hidden_size * self.item_bytes
        return self.pass_bytes(RECORDED_WIDTH, num_keys) + returned


def expanded_width(config: Mapping[str, Any], *, num_heads: int, num_kv_heads: int, head_dim: int) -> int:
    """Return the numbers per key that a layer makes while it attends, by a parsed config.json.

    Soft-capped attention still repeats the keys and values of a group; latent attention makes those of every head.
    """
    if config.get("attn_logit_softcapping") and num_heads > num_kv_heads:
        return 2 * num_heads * head_dim
    latent, rotary = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
    plain, values = config.get("qk_nope_head_dim"), config.get("v_head_dim")
    if latent and isinstance(rotary, int) and isinstance(plain, int) and isinstance(values, int):
        return num_heads * (2 * plain + rotary + values)
    return 0


def num_masks(config: Mapping[str, Any]) -> int:
    """Return how many windows a model's layers have, full attention included, by a parsed config.json."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds:
        return max(1, len(set(map(str, kinds)) - {"linear_attention"}))
    has_pattern = any(config.get(name) for name in ("sliding_window_pattern", "_sliding_window_pattern"))
    has_windows = config.get("model_type") in _WINDOWED and bool(config.get("sliding_window", True))
    return 2 if has_pattern or has_windows else 1
