"""How trees of tokens stand in a model: the cache that holds their nodes.

It is transformers' own kind, but its slots are allocated once, all layers' in one tensor: append, compact in
place, truncate. One slot per token and layer, with keys and values of all heads in one row, so that the text so far is
contiguous. Texts that are decoded together have a lane each: as many slots, side by side in the same tensor. A pass
appends its tokens behind the committed ones; `compact` keeps an accepted path, `truncate` forgets.
The tail is never zeroed and nothing is reallocated: an untouched slot costs no memory yet. For passes of fixed shape
(`allow_fixed_passes`) the slots are given as a tensor, and one spare slot takes the padding. The rows of layers that
travel are not here: the ring lends them for each visit (`lend`), and what is kept of them is moved in host memory. Rows
of int8 are widened then, one layer's after the other's in the same place. Recurrent layers have no slots at all: see
`recurrent_cache`. They cannot be cut anywhere, so that `truncate` says what is left.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from offload.travelling_rows import TravellingRows
from runtime.model.int8_rows import Int8Rows
from runtime.model.recurrent_cache import PiecePaths, RecurrentLayer, RecurrentShape, RecurrentTensors
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


LayerShape = CacheShape | RecurrentShape
"""What a layer keeps: of each token, or of a whole text."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """The tokens that the next update brings."""

    num_tokens: tuple[tuple[int, int], ...]
    """(lane, tokens) in their order, each lane once."""
    slots: torch.Tensor | None = None
    """(T,) where they go, on the cache's device, if there are several lanes; one lane's go behind what it has."""
    shared: tuple[tuple[int, int, int], ...] = ()
    """(source, lane, tokens): the lane begins with what the source lane holds of its first tokens by then."""
    paths: tuple[PiecePaths, ...] = ()
    """How recurrent layers compute them, lane by lane; empty where there is none."""


_ALONE = Entry(((0, 0),))
"""Whatever comes, to the first lane."""


class _TreeCacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one decoder layer, each (1, K, slots, D): views of rows that hold both of a token."""

    is_sliding = False

    def __init__(
        self, index: int, capacity: int, num_lanes: int, allocate: Callable[[int, torch.Tensor, CacheShape], None]
    ) -> None:
        """`allocate` gives the layer of an index its rows, like a tensor of the wanted type, in the shape it shows."""
        super().__init__()
        self.capacity = capacity
        self.counts = [0] * num_lanes
        """Tokens of each lane that the layer holds."""
        self.entry = _ALONE
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
            narrow.widen(0, self.counts[0], (self.keys, self.values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (1, K, T, D) behind what the entry's lanes hold.

        Returns views of everything that its lane holds (1, K, cached, D), or, of several lanes, of all slots.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.fixed is not None:
            slots, num_keys = self.fixed
            self.keys.index_copy_(2, slots, key_states)
            self.values.index_copy_(2, slots, value_states)
            return self.keys[:, :, :num_keys], self.values[:, :, :num_keys]
        for _, lane, num_tokens in self.entry.shared:
            self.counts[lane] = num_tokens
        if self.entry.slots is not None:
            for lane, num_tokens in self.entry.num_tokens:
                self._count(lane, num_tokens)
            self.keys.index_copy_(2, self.entry.slots, key_states)
            self.values.index_copy_(2, self.entry.slots, value_states)
            self._share()
            return self.keys, self.values
        self._share()
        ((lane, _),) = self.entry.num_tokens
        start, stop = self._count(lane, key_states.shape[2])
        if self._narrow is not None:
            self._narrow.write(start, (key_states, value_states))
            self._narrow.widen(start, stop, (self.keys, self.values))
        else:
            self.keys[:, :, start:stop] = key_states
            self.values[:, :, start:stop] = value_states
        first = lane * self.capacity
        return self.keys[:, :, first:stop], self.values[:, :, first:stop]

    def _share(self) -> None:
        for source, lane, num_tokens in self.entry.shared:
            other, first = source * self.capacity, lane * self.capacity
            for states in (self.keys, self.values):
                states[:, :, first : first + num_tokens] = states[:, :, other : other + num_tokens]

    def _count(self, lane: int, num_tokens: int) -> tuple[int, int]:
        """Count more tokens of a lane, and return the first of their slots and the one behind the last."""
        before, after = self.counts[lane], self.counts[lane] + num_tokens
        if after > self.capacity:
            raise RuntimeError(f"the cache has {self.capacity} slots for each text and {after} are needed")
        self.counts[lane] = after
        return lane * self.capacity + before, lane * self.capacity + after

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset during the next pass of `query_length` tokens."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.counts[self.entry.num_tokens[0][0]]

    def get_max_length(self) -> int:
        return self.capacity


class TreeCache(Cache):  # type: ignore[misc]
    """The layers' caches, kept in step, in one piece of memory."""

    def __init__(
        self,
        *,
        num_layers: int,
        capacity: int,
        num_lanes: int = 1,
        shapes: Sequence[LayerShape] | None = None,
        travelling: TravellingRows | None = None,
        widened: torch.Tensor | None = None,
        recurrent: Collection[int] = (),
    ) -> None:
        """`capacity` of each lane; `shapes` of the layers; None: not known, and each layer takes memory of its own.

        `recurrent`: the layers that keep states instead of keys and values.
        The `travelling` ones take none, and must be lent rows before a pass reaches them: as they are computed, or
        int8 where there is memory on the device in which one layer's are `widened`, uint8. They know one lane alone.
        """
        assert travelling is None or not travelling.layers or num_lanes == 1, "what travels has one lane"
        super().__init__(
            layers=[
                RecurrentLayer(num_lanes)
                if index in recurrent
                else _TreeCacheLayer(index, capacity, num_lanes, self._allocate)
                for index in range(num_layers)
            ]
        )
        self._attending: list[_TreeCacheLayer] = [one for one in self.layers if isinstance(one, _TreeCacheLayer)]
        self.recurrent: list[RecurrentLayer] = [one for one in self.layers if isinstance(one, RecurrentLayer)]
        self.capacity = capacity
        """Tokens that a lane has room for."""
        self.num_lanes = num_lanes
        self._shapes = shapes
        self._travelling = travelling
        self._widened = widened
        self._has_spare_slot = False
        self._blocks: list[torch.Tensor] = []  # each (layers of one width, slots, width)
        self._rows: dict[int, torch.Tensor] = {}  # by layer, of those that stay on the device, (slots, width)

    @property
    def num_cached(self) -> int:
        """Tokens of the first lane, the only one unless several texts are decoded together."""
        return self.num_cached_in(0)

    def num_cached_in(self, lane: int) -> int:
        """Return the tokens of a lane that every layer holds (during a pass: that the slowest layer holds)."""
        counts = [layer.counts[lane] for layer in self._attending]
        return min(counts + [layer.lanes[lane].count for layer in self.recurrent])

    @property
    def is_allocated(self) -> bool:
        """Whether a pass has shown every layer what its slots look like."""
        return all(layer.is_initialized for layer in self._attending)

    def allow_fixed_passes(self) -> None:
        """Give every layer a slot behind the last one, and numbers in all of them; before the first pass."""
        self._has_spare_slot = True

    @contextmanager
    def fixed_pass(self, slots: torch.Tensor, *, num_keys: int) -> Iterator[None]:
        """Updates meanwhile write to `slots` (T,), return the first `num_keys` keys and count nothing."""
        assert not self.recurrent, "a state is not kept in slots"
        for layer in self._attending:
            layer.fixed = (slots, num_keys)
        try:
            yield
        finally:
            for layer in self._attending:
                layer.fixed = None

    def append(self, num_tokens: int) -> None:
        """Count tokens that a pass of fixed shape has written behind what the first lane holds."""
        for layer in self._attending:
            layer.counts[0] += num_tokens

    def enter(self, entry: Entry) -> None:
        """Let the next update of every layer bring these tokens, until another entry is named."""
        for layer in self._attending:
            layer.entry = entry
        for recurrent in self.recurrent:
            recurrent.pieces = entry.paths

    def settle(self) -> None:
        """Let a pass that has succeeded be what recurrent layers hold."""
        for layer in self.recurrent:
            layer.settle()

    def undo(self, num_tokens: int, *, lane: int = 0) -> None:
        """Forget what a pass that failed has made of a lane that held `num_tokens` before."""
        for layer in self._attending:
            layer.counts[lane] = min(layer.counts[lane], num_tokens)
        for recurrent in self.recurrent:
            recurrent.drop()

    def repeat(self, first: int, index: int) -> None:
        """Let a layer hold as many tokens as the `first` one that is like it, for a pass that computes only that."""
        layer, other = self.layers[index], self.layers[first]
        if isinstance(layer, RecurrentLayer):
            layer.repeat(other)
        else:
            layer.counts[:] = other.counts

    def reachable(self, num_tokens: int, *, lane: int = 0) -> int:
        """Return what `truncate` would leave."""
        held = min(num_tokens, self.num_cached_in(lane))
        return self.recurrent[0].reachable(held, lane) if self.recurrent else held

    def num_folded(self, num_tokens: int, *, lane: int = 0) -> int:
        """Return how many of a lane's first tokens, so many as it can be cut to, no branch may part from any more."""
        return min(num_tokens, self.recurrent[0].lanes[lane].base) if self.recurrent else 0

    def truncate(self, num_tokens: int, *, lane: int = 0) -> int:
        """Forget all but a lane's first `num_tokens` tokens; return how many are left, fewer where states hold more."""
        left = self.reachable(num_tokens, lane=lane)
        for layer in self._attending:
            layer.counts[lane] = left
        for recurrent in self.recurrent:
            recurrent.truncate(left, lane)
        return left

    def occupy(self, num_tokens: int) -> None:
        """Let the first lane hold so many tokens, whatever its slots hold; for measurements."""
        for layer in self._attending:
            layer.counts[0] = num_tokens
        for recurrent in self.recurrent:
            recurrent.occupy(num_tokens, 0)

    @torch.inference_mode()
    def compact(self, start: int, slots: Sequence[int], *, lane: int = 0) -> None:
        """Keep a lane's first `start` tokens and then the given slots, in order; slots are >= start and increasing."""
        end = start + len(slots)
        for recurrent in self.recurrent:
            recurrent.compact(start, slots, lane)
        if list(slots) == list(range(start, end)):
            for layer in self._attending:
                layer.counts[lane] = min(layer.counts[lane], end)
            return
        if self._blocks:
            first = lane * self.capacity
            (index,) = upload((first + np.array(slots, dtype=np.int64),), self._blocks[0].device)
            for block in self._blocks:  # all layers at once
                block[:, first + start : first + end] = block.index_select(1, index)
        if self._travelling is not None:
            self._travelling.keep(start, slots)
        for layer in self._attending:
            layer.counts[lane] = end

    @torch.inference_mode()
    def copy(self, num_tokens: int, *, source: int, lane: int) -> None:
        """Let a lane hold what another one holds of its first `num_tokens` tokens, and nothing else."""
        assert num_tokens == self.reachable(num_tokens, lane=source), "the source can be cut to so many"
        first, other = lane * self.capacity, source * self.capacity
        for block in self._blocks:
            block[:, first : first + num_tokens] = block[:, other : other + num_tokens]
        for layer in self._attending:
            layer.counts[lane] = num_tokens
        for recurrent in self.recurrent:
            recurrent.copy(num_tokens, source=source, lane=lane)

    def row_bytes(self, dtype: torch.dtype) -> tuple[int, ...] | None:
        """Return what each layer keeps of a token, in bytes, if its numbers are of this type: nothing, if a state.

        None if nobody knows.
        """
        if self._shapes is None:
            return None
        rows = [None if self._travelling is None else self._travelling.of_layer(i) for i in range(len(self.layers))]
        widths = [shape.width if isinstance(shape, CacheShape) else 0 for shape in self._shapes]
        sizes = zip(rows, widths, strict=True)
        return tuple(width * dtype.itemsize if own is None else own.shape[1] for own, width in sizes)

    def state_bytes(self, dtype: torch.dtype) -> tuple[int, ...]:
        """Return the bytes that each layer with a state keeps of a text in it, if its numbers are of this type."""
        shapes = [shape for shape in self._shapes or () if isinstance(shape, RecurrentShape)]
        return tuple(shape.state_bytes(dtype.itemsize) for shape in shapes)

    @property
    def has_marks(self) -> bool:
        """Whether earlier states of texts are kept, of which there are too few for many lanes."""
        return any(layer.most_marks > 0 for layer in self.recurrent)

    def last_mark(self, *, lane: int = 0) -> int:
        """Return how many tokens the last state that is kept of a lane holds; 0 where there is none."""
        return self.recurrent[0].last_mark(lane) if self.recurrent else 0

    @torch.inference_mode()
    def take_states(self, num_tokens: int, into: torch.Tensor, *, lane: int = 0) -> None:
        """Copy the states of a lane's mark to host memory, uint8 1-D, a layer behind the other."""
        begin = 0
        for layer in self.recurrent:
            mark = layer.mark(lane, num_tokens)
            for part in (mark.state, mark.tail):
                content = part.reshape(-1).view(torch.uint8)
                into[begin : begin + content.numel()].copy_(content)
                begin += content.numel()

    @torch.inference_mode()
    def put_states(self, num_tokens: int, content: torch.Tensor, like: torch.Tensor, *, lane: int = 0) -> None:
        """Let a lane hold so many tokens, whose rows are there: their states as `take_states` gave them.

        `like`: of the type and on the device that passes compute with.
        """
        shapes = [shape for shape in self._shapes or () if isinstance(shape, RecurrentShape)]
        begin = 0

        def take(size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            nonlocal begin
            first, begin = begin, begin + math.prod(size) * dtype.itemsize
            return content[first:begin].clone().view(dtype).view(*size)

        for layer, shape in zip(self.recurrent, shapes, strict=True):
            state, tail = take(shape.state, torch.float32), take((shape.window - 1, shape.num_channels), like.dtype)
            rows, gates = torch.empty(0, shape.num_channels, dtype=like.dtype), torch.empty(0, shape.state[0])
            layer.put(num_tokens, lane, RecurrentTensors(state, tail, rows, gates, gates), like.device)
        for each in self._attending:
            each.counts[lane] = num_tokens

    @torch.inference_mode()
    def take_rows(self, start: int, num_tokens: int, into: torch.Tensor, *, lane: int = 0) -> None:
        """Copy what all layers hold of a lane's tokens to host memory, uint8 1-D, a layer behind the other."""
        assert start + num_tokens <= self.num_cached_in(lane), "the lane holds so many"
        begin = 0
        for rows in self._rows_of(start, num_tokens, lane=lane):
            into[begin : begin + rows.numel()].view(rows.shape).copy_(rows)
            begin += rows.numel()

    @torch.inference_mode()
    def put_rows(self, start: int, num_tokens: int, content: torch.Tensor, *, lane: int = 0) -> None:
        """Let a lane hold these tokens behind its first `start`, as `take_rows` gave them, and none behind them.

        Where layers keep states they count once `put_states` has brought these, or never: `truncate` forgets them.
        """
        assert all(start <= layer.counts[lane] for layer in self._attending), "the lane holds what comes before"
        begin = 0
        for rows in self._rows_of(start, num_tokens, lane=lane):
            rows.copy_(content[begin : begin + rows.numel()].view(rows.shape))
            begin += rows.numel()
        for layer in self._attending:
            layer.counts[lane] = start + num_tokens

    def allocate(self, like: torch.Tensor) -> None:
        """Take the memory of layers of known shapes, like a tensor of their type and device, if no pass has yet."""
        for index, shape in enumerate(self._shapes or ()):
            if isinstance(shape, CacheShape) and not self.layers[index].is_initialized:
                self._allocate(index, like, shape)

    def _rows_of(self, start: int, num_tokens: int, *, lane: int) -> Iterator[torch.Tensor]:
        """Yield every layer's rows of these tokens, uint8 (tokens, bytes), in its own memory."""
        for index, layer in enumerate(self.layers):
            if isinstance(layer, RecurrentLayer):
                continue
            travelling = None if self._travelling is None else self._travelling.of_layer(index)
            if travelling is not None:
                yield travelling[start : start + num_tokens]
            else:
                first = lane * self.capacity + start
                yield self._rows[index][first : first + num_tokens].view(torch.uint8)

    def lend(self, layer_index: int, rows: torch.Tensor, dtype: torch.dtype) -> None:
        """Let a travelling layer keep its keys and values in `rows`, uint8 (capacity, bytes), until others are lent."""
        assert self._shapes is not None
        shape = self._shapes[layer_index]
        assert isinstance(shape, CacheShape), "states do not travel"
        if self._widened is None:
            self.layers[layer_index].bind(rows.view(dtype), shape)
            return
        widened = self._widened.view(dtype)[: len(rows) * shape.width].view(len(rows), shape.width)
        self.layers[layer_index].bind(widened, shape, narrow=Int8Rows(rows, (shape.keys, shape.values)))

    def _allocate(self, index: int, like: torch.Tensor, shape: CacheShape) -> None:
        """Bind every layer to rows of one allocation, the one of that index to rows of `shape`."""
        known = enumerate(self._shapes or ())
        shapes = {place: one for place, one in known if isinstance(one, CacheShape)} or {index: shape}
        for travelling in () if self._travelling is None else self._travelling.layers:
            del shapes[travelling]
        assert shapes[index] == shape, f"layer {index} keeps {shape}, and {shapes[index]} was expected"
        num_slots = self.num_lanes * self.capacity + self._has_spare_slot
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
                self._rows[layer_index] = rows
                self.layers[layer_index].bind(rows, shapes[layer_index])


def _aligned(num_elements: int) -> int:
    """Return the size of a block after which the next one lies as well as the first."""
    return -(-num_elements // _ALIGNMENT_ELEMENTS) * _ALIGNMENT_ELEMENTS
