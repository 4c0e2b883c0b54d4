"""How a tree of tokens stands in a model: the cache that holds its nodes, and the masks that say who sees whom.

The cache is transformers' own kind, but its slots are allocated once: append, compact in place, truncate. One
slot per token and layer. A pass appends its tokens behind the committed ones; `compact` keeps an accepted path,
`truncate` forgets. The tail is never zeroed and nothing is reallocated: an untouched slot costs no memory yet. For
passes of fixed shape (`allow_fixed_passes`) the slots are given as a tensor, and one spare slot takes the padding.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _TreeCacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one decoder layer, each (1, K, capacity, D)."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.num_cached = 0
        self.has_spare_slot = False
        self.fixed: tuple[torch.Tensor, int] | None = None
        """During a pass of fixed shape: the new tokens' slots (T,), and how many keys the pass sees."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the slots once the first keys and values show their shapes and dtypes."""
        # A pass of fixed shape multiplies every slot, the hidden ones by nothing: they must be numbers.
        allocate = torch.zeros if self.has_spare_slot else torch.empty
        self.keys, self.values = (
            allocate(self._slot_shape(states), dtype=states.dtype, device=states.device)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def _slot_shape(self, states: torch.Tensor) -> tuple[int, int, int, int]:
        return (1, states.shape[1], self.capacity + self.has_spare_slot, states.shape[3])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (1, K, T, D) behind what is cached; returns views of everything cached, (1, K, num_cached, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.fixed is not None:
            slots, num_keys = self.fixed
            self.keys.index_copy_(2, slots, key_states)
            self.values.index_copy_(2, slots, value_states)
            return self.keys[:, :, :num_keys], self.values[:, :, :num_keys]
        start, self.num_cached = self.num_cached, self.num_cached + key_states.shape[2]
        if self.num_cached > self.capacity:
            raise RuntimeError(f"the cache has {self.capacity} slots and {self.num_cached} are needed")
        self.keys[:, :, start : self.num_cached] = key_states
        self.values[:, :, start : self.num_cached] = value_states
        return self.keys[:, :, : self.num_cached], self.values[:, :, : self.num_cached]

    def keep(self, start: int, slots: torch.Tensor) -> None:
        """Move the given slots, in order, to start, start + 1, ... and forget everything behind them."""
        if self.is_initialized and slots.numel():
            end = start + slots.numel()
            self.keys[:, :, start:end] = self.keys.index_select(2, slots)
            self.values[:, :, start:end] = self.values.index_select(2, slots)
        self.num_cached = start + slots.numel()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset during the next pass of `query_length` tokens."""
        return self.num_cached + query_length, 0

    def get_seq_length(self) -> int:
        return self.num_cached

    def get_max_length(self) -> int:
        return self.capacity


class TreeCache(Cache):  # type: ignore[misc]
    """The layers' caches, kept in step."""

    def __init__(self, *, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[_TreeCacheLayer(capacity) for _ in range(num_layers)])
        self.capacity = capacity

    @property
    def num_cached(self) -> int:
        """Tokens that every layer holds (during a pass: that the slowest layer holds)."""
        counts: list[int] = [layer.num_cached for layer in self.layers]
        return min(counts)

    @property
    def is_allocated(self) -> bool:
        """Whether a pass has shown every layer what its slots look like."""
        return all(layer.is_initialized for layer in self.layers)

    def allow_fixed_passes(self) -> None:
        """Give every layer a slot behind the last one, and numbers in all of them; before the first pass."""
        for layer in self.layers:
            layer.has_spare_slot = True

    @contextmanager
    def fixed_pass(self, slots: torch.Tensor, *, num_keys: int) -> Iterator[None]:
        """Updates meanwhile write to `slots` (T,), return the first `num_keys` keys and count nothing."""
        for layer in self.layers:
            layer.fixed = (slots, num_keys)
        try:
            yield
        finally:
            for layer in self.layers:
                layer.fixed = None

    def append(self, num_tokens: int) -> None:
        """Count tokens that a pass of fixed shape has written behind what is cached."""
        for layer in self.layers:
            layer.num_cached += num_tokens

    def truncate(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` tokens."""
        for layer in self.layers:
            layer.num_cached = min(layer.num_cached, num_tokens)

    @torch.inference_mode()
    def compact(self, start: int, slots: Sequence[int]) -> None:
        """Keep the first `start` tokens and then the given slots, in order; slots are >= start and increasing."""
        if list(slots) == list(range(start, start + len(slots))):
            self.truncate(start + len(slots))
            return
        index = torch.tensor(slots, dtype=torch.int64, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.keep(start, index)


def attention_masks(
    visible: npt.NDArray[np.bool_],
    *,
    query_positions: npt.NDArray[np.int64],
    key_positions: npt.NDArray[np.int64],
    windows: Iterable[int | None],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int | None, torch.Tensor]:
    """Return one additive mask (1, 1, T, K) per distinct window; None is full attention.

    0 where a query may look, the dtype's lowest value where it may not: both attention implementations of transformers
    take that unchanged. `visible` (T, K) says which keys are a query's own past; a window w also hides keys whose
    position is w or more behind the query's, the convention of transformers' sliding attention.
    """
    distances = query_positions[:, None] - key_positions[None, :]  # (T, K)
    return {
        window: additive_mask(
            torch.from_numpy(visible if window is None else visible & (distances < window)).to(device), dtype
        )
        for window in set(windows)
    }


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask (1, 1, T, K) of `allowed` (T, K), bool, on the same device."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    mask.masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[None, None]
