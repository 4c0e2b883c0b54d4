"""Attention as every pass here needs it: masks that say who sees whom, grouped queries without copies, texts apart.

transformers repeats keys and values for each query head of a group as soon as there is a mask and more than one query,
which for an 8B draft at 8,000 keys moves more bytes per step than its 4-bit weights. torch's fused kernels go by
strides: with the key heads in the place of the batch, a group's query heads share one key head by a stride of zero.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from runtime.model.pass_shapes import mask_row_elements

GROUPED_ATTENTION = "overstory_grouped"
"""What transformers' registries call `grouped_attention`."""


@dataclass(frozen=True, slots=True, eq=False)
class TextMask:
    """What one of several texts attends to."""

    tokens: slice
    """Of the pass, or of the slice of it that is computed."""
    keys: slice
    """Slots of the cache."""
    mask: torch.Tensor
    """(1, 1, T, K) additive."""


@dataclass(frozen=True, slots=True)
class PackedMask:
    """Stands in a mask's place where several texts are computed at once: none is multiplied with another's keys."""

    texts: tuple[TextMask, ...]
    """In the order of their tokens, which are all there are."""


def register_grouped_attention() -> str:
    """Make `grouped_attention` known to transformers, and return its name."""
    AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
    AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)
    return GROUPED_ATTENTION


def takes_packed_masks(decoder: nn.Module) -> bool:
    """Return whether the decoder's attention hands whatever stands for its mask to `grouped_attention`.

    A few look into the mask before, which the first pass of several texts shows.
    """
    return getattr(getattr(decoder, "config", None), "_attn_implementation", None) == GROUPED_ATTENTION


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | PackedMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return what transformers' `sdpa` does, (1, T, H, D'), of queries (1, H, T, D), keys (1, K, S, D), values like it.

    What has no groups, a single query, which copies nothing there, and whatever else is asked for are left to it. Of
    several texts each is attended on its own.
    """
    if isinstance(attention_mask, PackedMask):
        outputs = [
            grouped_attention(
                module,
                query[:, :, text.tokens],
                key[:, :, text.keys],
                value[:, :, text.keys],
                text.mask,
                dropout,
                scaling,
                **kwargs,
            )[0]
            for text in attention_mask.texts
        ]
        return torch.cat(outputs, dim=1), None
    num_groups = int(getattr(module, "num_key_value_groups", 1))
    is_left = num_groups == 1 or query.shape[2] == 1 or query.shape[0] > 1
    if is_left or attention_mask is None or _asks_for_more(kwargs):
        stock = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        return stock  # type: ignore[no-any-return]

    def shared(states: torch.Tensor) -> torch.Tensor:
        """The heads' states (K, G, S, D), of which G share their bytes."""
        return states[0][:, None].expand(-1, num_groups, -1, -1)

    def grouped(states: torch.Tensor) -> torch.Tensor:
        """What each query head has (1, H, T, ...) as (K, G, T, ...); what all share as it is."""
        return states if states.shape[1] == 1 else states.unflatten(1, (-1, num_groups))[0]  # type: ignore[no-untyped-call]

    output = F.scaled_dot_product_attention(
        grouped(query),
        shared(key),
        shared(value),
        attn_mask=grouped(attention_mask),
        dropout_p=dropout,
        scale=scaling,
    )
    return output.flatten(0, 1)[None].transpose(1, 2).contiguous(), None


def _asks_for_more(kwargs: dict[str, Any]) -> bool:
    return any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux"))


def attention_masks(
    positions: torch.Tensor,
    *,
    key_positions: torch.Tensor,
    sight: torch.Tensor,
    windows: Iterable[int | None],
    dtype: torch.dtype,
) -> dict[int | None, torch.Tensor]:
    """Return one additive mask (1, 1, T, K) per distinct window, where the arguments lie; None is full attention.

    0 where a query may look, the dtype's lowest value where it may not: both attention implementations of transformers
    take that unchanged. Queries at `positions` (T,) see, of the keys at `key_positions` (K,), the last D as `sight`
    (T, D) says, and the text before those up to their own position. A window w also hides keys whose position is w or
    more behind the query's, the convention of transformers' sliding attention.
    """
    num_text = len(key_positions) - sight.shape[1]
    seen = torch.cat((key_positions[:num_text] <= positions[:, None], sight), dim=1)  # (T, K)
    return {
        window: additive_mask(seen if window is None else seen & (positions[:, None] - key_positions < window), dtype)
        for window in set(windows)
    }


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask (1, 1, T, K) of `allowed` (T, K), bool, on the same device; its rows lie aligned."""
    num_queries, num_keys = allowed.shape
    mask = torch.zeros((num_queries, mask_row_elements(num_keys)), dtype=dtype, device=allowed.device)[:, :num_keys]
    mask.masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[None, None]
