"""Grouped attention against transformers' own function, of every architecture that looks its function up by name."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from runtime.model.architecture import build_empty_model
from runtime.model.attention import (
    GROUPED_ATTENTION,
    additive_mask,
    attention_masks,
    grouped_attention,
    register_grouped_attention,
)
from tests.support.every_architecture import WINDOW, small_config
from tests.support.model_factory import random_model
from tests.system.test_every_architecture import EQUAL, cases

THEIR_OWN = {
    **dict.fromkeys(("gemma2", "vaultgemma", "granite_swa", "gpt_neox_japanese", "xglm"), "eager"),
    "falcon": "sdpa",
}
"""Families with an attention of their own: soft caps, sinks, no fused kernel, or (falcon) torch's called directly."""


class Allocations(TorchDispatchMode):  # type: ignore[misc]
    """Counts the largest tensor with memory of its own that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        storages = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in storages:
                self.largest_bytes = max(self.largest_bytes, tensor.untyped_storage().nbytes())
        return result


class Groups(torch.nn.Module):
    def __init__(self, num_key_value_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = num_key_value_groups


def tensors(
    *, heads: int, key_heads: int, num_queries: int, num_keys: int, dtype: torch.dtype = torch.float32, dim: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries as a projection leaves them, keys and values as slots of a cache, and a mask that hides a third."""
    generator = torch.Generator().manual_seed(heads * 1000 + num_queries)
    query = torch.randn(1, num_queries, heads, dim, generator=generator).to(dtype).transpose(1, 2)
    cache = torch.randn(2, 1, key_heads, num_keys + 9, dim, generator=generator).to(dtype)
    allowed = torch.rand(num_queries, num_keys, generator=generator) > 0.33
    allowed[:, 0] = True
    return query, cache[0][:, :, :num_keys], cache[1][:, :, :num_keys], additive_mask(allowed, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_attention_is_transformers_own_to_the_bit(dtype: torch.dtype) -> None:
    """On a processor the text must stay what it was; the kernels see each head as before."""
    for heads, key_heads in ((32, 4), (14, 2), (32, 8), (4, 4), (8, 1)):
        for num_queries in (1, 2, 16, 70):
            parts = tensors(heads=heads, key_heads=key_heads, num_queries=num_queries, num_keys=203, dtype=dtype)
            module = Groups(heads // key_heads)
            found, _ = grouped_attention(module, *parts, scaling=0.2)
            expected, _ = sdpa_attention_forward(module, *parts, scaling=0.2)
            assert torch.equal(found, expected)
            assert found.stride() == expected.stride()


def test_no_keys_or_values_are_copied() -> None:
    parts = tensors(heads=32, key_heads=4, num_queries=4, num_keys=4096)
    with Allocations() as stock:
        sdpa_attention_forward(Groups(8), *parts)
    with Allocations() as grouped:
        grouped_attention(Groups(8), *parts)
    copied_bytes = 32 * 4096 * 16 * 4
    assert stock.largest_bytes == copied_bytes
    assert grouped.largest_bytes == 4 * 32 * 16 * 4, "nothing but the output"


def test_heads_may_have_masks_of_their_own() -> None:
    query, key, value, _ = tensors(heads=8, key_heads=2, num_queries=5, num_keys=5)
    mask = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(1))
    found, _ = grouped_attention(Groups(4), query, key, value, mask)
    assert torch.equal(found, sdpa_attention_forward(Groups(4), query, key, value, mask)[0])


def test_what_has_no_mask_goes_to_transformers() -> None:
    query, key, value, _ = tensors(heads=8, key_heads=2, num_queries=5, num_keys=5)
    for mask, settings in ((None, {"is_causal": True}), (None, {"is_causal": False})):
        found, _ = grouped_attention(Groups(4), query, key, value, mask, **settings)
        expected, _ = sdpa_attention_forward(Groups(4), query, key, value, mask, **settings)
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="softcap"):
        grouped_attention(Groups(4), query, key, value, torch.zeros(1, 1, 5, 5), softcap=30.0)


def test_masks_that_are_sliced_keep_aligned_rows() -> None:
    """Otherwise torch pads (copies) them in every layer on an accelerator."""
    for num_queries, num_keys in ((1, 1), (3, 7), (16, 4113), (5, 32)):
        mask = additive_mask(torch.ones(num_queries, num_keys, dtype=torch.bool), torch.bfloat16)
        assert mask.shape == (1, 1, num_queries, num_keys)
        assert [stride % 16 for stride in mask.stride()[:-1]] == [0, 0, 0]
        assert mask.stride(-1) == 1 and not mask.any()


def allowed(mask: torch.Tensor) -> list[list[bool]]:
    return (mask[0, 0] == 0).tolist()


def masks_of(
    sight: list[list[int]], queries: list[int], keys: list[int], windows: list[int | None]
) -> dict[int | None, torch.Tensor]:
    return attention_masks(
        torch.tensor(queries),
        key_positions=torch.tensor(keys),
        sight=torch.tensor(sight, dtype=torch.bool).view(len(queries), -1),
        windows=windows,
        dtype=torch.float32,
    )


def test_a_full_mask_is_the_text_and_what_is_in_sight() -> None:
    """Text up to the own position; siblings share one, and see themselves alone."""
    (mask,) = masks_of([[0, 0], [1, 0], [0, 1]], [0, 2, 2], [0, 1, 2, 2], [None]).values()
    assert allowed(mask) == [[True, False, False, False], [True, True, True, False], [True, True, False, True]]
    assert mask.shape == (1, 1, 3, 4)
    assert mask.min() == torch.finfo(torch.float32).min


def test_text_alone_is_seen_as_it_stands() -> None:
    (mask,) = masks_of([[], []], [2, 3], [0, 1, 2, 3], [None]).values()
    assert allowed(mask) == [[True, True, True, False], [True, True, True, True]]


def test_all_keys_may_be_told_one_by_one() -> None:
    (mask,) = masks_of([[1, 0, 1], [0, 1, 1]], [9, 9], [0, 1, 1], [None]).values()
    assert allowed(mask) == [[True, False, True], [False, True, True]]


def test_a_window_counts_the_query_itself_and_goes_by_position_not_by_slot() -> None:
    """Siblings share a position: the slot distance of the second one is larger than its distance in the text."""
    masks = masks_of([[1, 0], [0, 1]], [3, 3], [0, 1, 2, 3, 3], [2, None])
    assert allowed(masks[2]) == [[False, False, True, True, False], [False, False, True, False, True]]
    assert allowed(masks[None]) == [[True, True, True, True, False], [True, True, True, False, True]]


def test_each_distinct_window_has_one_mask() -> None:
    assert set(masks_of([[1]], [0], [0], [4, None, 4, 8])) == {4, None, 8}


@pytest.mark.parametrize("name", cases(EQUAL))
def test_every_family_computes_with_it_what_it_computes_with_transformers_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sliding windows, rotary kinds and norms of queries included; the first tokens are hidden."""
    config = small_config(name)
    chosen = build_empty_model(config, dtype=torch.float32).config._attn_implementation
    if name in THEIR_OWN:
        assert chosen == THEIR_OWN[name]
        return
    assert chosen == GROUPED_ATTENTION
    model = random_model(config)
    ids = torch.randint(7, 90, (1, 3 * WINDOW), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(ids.shape[1]) >= 3).to(torch.int64)[None]
    is_shared = False
    own = F.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal is_shared
        is_shared |= key.shape[1] > 1 and key.stride(1) == 0
        return own(query, key, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    logits = []
    for attention in ("sdpa", register_grouped_attention()):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            logits.append(model(input_ids=ids, attention_mask=mask).logits[:, 3:])
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)
    groups = {getattr(module, "num_key_value_groups", 1) for module in model.modules()}
    assert is_shared == (max(groups) > 1), "a family with groups goes another way"
