"""How a tree of tokens stands in a model: the cache that holds its nodes.

It is transformers' own kind, but its slots are allocated once, all layers' in one tensor: append, compact in
place, truncate. One slot per token and layer, with keys and values of all heads in one row, so that the text so far is
contiguous. A pass appends its tokens behind the committed ones; `compact` keeps an accepted path, `truncate` forgets.
The tail is never zeroed and nothing is reallocated: an untouched slot costs no memory yet. For passes of fixed shape
(`allow_fixed_passes`) the slots are given as a tensor, and one spare slot takes the padding. The rows of layers that
travel are not here: the ring lends them for each visit (`lend`), and what is kept of them is moved in host memory. Rows
of int8 are widened then, one layer's after the other's in the same place.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from offload.travelling_rows import TravellingRows
from runtime.model.int8_rows import Int8Rows
from runtime.model.upload import upload

_ALIGNMENT_ELEMENTS = 128


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one layer keeps of a token."""

    keys: tuple[int, int]
    """(K, D): heads and their width."""
    values: tuple[int, int]

    @property
    def key_width(self) -> int:
        return math.prod(self.keys)

    @property
    def width(self) -> int:
        """Numbers in all."""
        return self.key_width + math.prod(self.values)


class _TreeCacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one decoder layer, each (1, K, slots, D): views of rows that hold both of a token."""

    is_sliding = False

    def __init__(self, index: int, capacity: int, allocate: Callable[[int, torch.Tensor, CacheShape], None]) -> None:
        """`allocate` gives the layer of an index its rows, like a tensor of the wanted type, in the shape it shows."""
        super().__init__()
        self.capacity = capacity
        self.num_cached = 0
        self.fixed: tuple[torch.Tensor, int] | None = None
        """During a pass of fixed shape: the new tokens' slots (T,), and how many keys the pass sees."""
        self._index = index
        self._allocate = allocate
        self._narrow: Int8Rows | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Have the slots allocated, once the first keys and values show their shapes and dtype."""
        heads = [(states.shape[1], states.shape[3]) for states in (key_states, value_states)]
        self._allocate(self._index, key_states, CacheShape(*heads))

    def bind(self, rows: torch.Tensor, shape: CacheShape, *, narrow: Int8Rows | None = None) -> None:
        """Keep keys and values in `rows` (slots, width) from now on, or in `narrow` ones, which are widened there."""
        self.keys, self.values = (
            part.view(len(rows), *heads).transpose(0, 1)[None]
            for part, heads in (
                (rows[:, : shape.key_width], shape.keys),
                (rows[:, shape.key_width :], shape.values),
            )
        )
        self.is_initialized, self._narrow = True, narrow
        if narrow is not None:
            narrow.widen(0, self.num_cached, (self.keys, self.values))

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
        if self._narrow is not None:
            self._narrow.write(start, (key_states, value_states))
            self._narrow.widen(start, self.num_cached, (self.keys, self.values))
        else:
            self.keys[:, :, start : self.num_cached] = key_states
            self.values[:, :, start : self.num_cached] = value_states
        return self.keys[:, :, : self.num_cached], self.values[:, :, : self.num_cached]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset during the next pass of `query_length` tokens."""
        return self.num_cached + query_length, 0

    def get_seq_length(self) -> int:
        return self.num_cached

    def get_max_length(self) -> int:
        return self.capacity


class TreeCache(Cache):  # type: ignore[misc]
    """The layers' caches, kept in step, in one piece of memory."""

    def __init__(
        self,
        *,
        num_layers: int,
        capacity: int,
        shapes: Sequence[CacheShape] | None = None,
        travelling: TravellingRows | None = None,
        widened: torch.Tensor | None = None,
    ) -> None:
        """`shapes` of the layers; None: not known, and each layer takes memory of its own as it shows them.

        The `travelling` ones take none, and must be lent rows before a pass reaches them: as they are computed, or
        int8 where there is memory on the device in which one layer's are `widened`, uint8.
        """
        super().__init__(layers=[_TreeCacheLayer(index, capacity, self._allocate) for index in range(num_layers)])
        self.capacity = capacity
        self._shapes = shapes
        self._travelling = travelling
        self._widened = widened
        self._has_spare_slot = False
        self._blocks: list[torch.Tensor] = []  # each (layers of one width, slots, width)

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
        self._has_spare_slot = True

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
        end = start + len(slots)
        if list(slots) == list(range(start, end)):
            self.truncate(end)
            return
        if self._blocks:
            (index,) = upload((np.array(slots, dtype=np.int64),), self._blocks[0].device)
            for block in self._blocks:  # all layers at once
                block[:, start:end] = block.index_select(1, index)
        if self._travelling is not None:
            self._travelling.keep(start, slots)
        for layer in self.layers:
            layer.num_cached = end

    def lend(self, layer_index: int, rows: torch.Tensor, dtype: torch.dtype) -> None:
        """Let a travelling layer keep its keys and values in `rows`, uint8 (capacity, bytes), until others are lent."""
        assert self._shapes is not None
        shape = self._shapes[layer_index]
        if self._widened is None:
            self.layers[layer_index].bind(rows.view(dtype), shape)
            return
        widened = self._widened.view(dtype)[: len(rows) * shape.width].view(len(rows), shape.width)
        self.layers[layer_index].bind(widened, shape, narrow=Int8Rows(rows, (shape.keys, shape.values)))

    def _allocate(self, index: int, like: torch.Tensor, shape: CacheShape) -> None:
        """Bind every layer to rows of one allocation, the one of that index to rows of `shape`."""
        shapes = {index: shape} if self._shapes is None else dict(enumerate(self._shapes))
        for travelling in () if self._travelling is None else self._travelling.layers:
            del shapes[travelling]
        assert shapes[index] == shape, f"layer {index} keeps {shape}, and {shapes[index]} was expected"
        num_slots = self.capacity + self._has_spare_slot
        layers_by_width: dict[int, list[int]] = {}
        for layer_index, one in shapes.items():
            layers_by_width.setdefault(one.width, []).append(layer_index)
        sizes = [len(members) * num_slots * width for width, members in layers_by_width.items()]
        # A pass of fixed shape multiplies every slot, the hidden ones by nothing: they must be numbers.
        allocate = torch.zeros if self._has_spare_slot else torch.empty
        memory = allocate(sum(map(_aligned, sizes)), dtype=like.dtype, device=like.device)
        begin = 0
        for (width, members), size in zip(layers_by_width.items(), sizes, strict=True):
            block = memory[begin : begin + size].view(len(members), num_slots, width)
            begin += _aligned(size)
            self._blocks.append(block)
            for rows, layer_index in zip(block, members, strict=True):
                self.layers[layer_index].bind(rows, shapes[layer_index])


def _aligned(num_elements: int) -> int:
    """Return the size of a block after which the next one lies as well as the first."""
    return -(-num_elements // _ALIGNMENT_ELEMENTS) * _ALIGNMENT_ELEMENTS
