"""A pass in slices: what a layer computes at once, while its weights are there, and which texts' tokens that are.

A pass may be wider than its activations, so that the weights cross the link once for a whole prompt and for every text
that is decoded: what a layer holds is that of one slice. A slice attends to the keys of those before it, which the
layer's cache has by then, exactly as if each had been a pass of its own. Only the hidden states between two layers are
as long as the pass, and they are kept in one buffer, overwritten in place.

A slice holds one piece of a text, or pieces of several texts, whose products are computed together and whose attention
is computed apart. Where an architecture's attention does not take `PackedMask`, every slice holds one text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from offload.errors import PassCancelledError
from runtime.model.attention import PackedMask, TextMask, additive_mask
from runtime.model.recurrent_cache import PiecePaths
from runtime.model.tree_cache import Entry
from runtime.model.upload import upload

Mask = torch.Tensor | PackedMask
Masks = Mapping[int | None, torch.Tensor]
"""(1, 1, T, K) additive, by window."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Tokens of one text that a layer computes at once."""

    lane: int
    start: int
    """Of the pass's tokens, the first one."""
    stop: int
    num_keys: int
    """What the lane holds with them."""
    shared: tuple[int, int] | None = None
    """(lane, tokens): whose keys and values stand before them, if they are not the lane's own."""
    masks: Masks | None = None
    """None: text, each of whose tokens sees everything before it."""
    paths: PiecePaths | None = None
    """How recurrent layers compute it; its tokens are counted within the piece. None where there is no such layer."""

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    def mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the mask (1, 1, T, K): of a long text built where it is used, so that one piece's is held."""
        if self.masks is not None:
            return self.masks[window]
        keys = torch.arange(self.num_keys, device=device)
        queries = keys[self.num_keys - self.num_tokens :, None]
        allowed = keys[None] <= queries  # (T, K)
        if window is not None:
            allowed &= queries - keys[None] < window
        return additive_mask(allowed, dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PassSlice:
    """What a layer computes at once: pieces of different texts, side by side."""

    pieces: tuple[Piece, ...]
    entry: Entry
    """Where the cache takes their keys and values."""
    first_slots: tuple[int, ...]
    """Of each piece's lane."""
    dtype: torch.dtype
    """Of masks."""
    device: torch.device
    _masks: dict[int | None, Mask] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, pieces: Sequence[Piece], *, capacity: int, dtype: torch.dtype, device: torch.device) -> "PassSlice":
        """Make a slice for a cache whose lanes have `capacity` slots."""
        counts = tuple((piece.lane, piece.num_tokens) for piece in pieces)
        shared = tuple((piece.shared[0], piece.lane, piece.shared[1]) for piece in pieces if piece.shared)
        first_slots = tuple(piece.lane * capacity for piece in pieces)
        paths = tuple(
            replace(piece.paths, tokens=slice(piece.start - pieces[0].start, piece.stop - pieces[0].start))
            for piece in pieces
            if piece.paths is not None
        )
        if len(pieces) == 1:
            return cls(tuple(pieces), Entry(counts, shared=shared, paths=paths), first_slots, dtype, device)
        ends = [first + piece.num_keys for first, piece in zip(first_slots, pieces, strict=True)]
        places = [np.arange(end - piece.num_tokens, end) for end, piece in zip(ends, pieces, strict=True)]
        (slots,) = upload((np.concatenate(places),), device)
        return cls(tuple(pieces), Entry(counts, slots, shared, paths), first_slots, dtype, device)

    @property
    def start(self) -> int:
        return self.pieces[0].start

    @property
    def stop(self) -> int:
        return self.pieces[-1].stop

    def mask(self, window: int | None) -> Mask:
        """Return what stands in the place of a layer's mask; that of several texts is the same for all layers."""
        if len(self.pieces) == 1:
            return self.pieces[0].mask(window, self.dtype, self.device)
        if window not in self._masks:
            self._masks[window] = PackedMask(
                tuple(
                    TextMask(
                        slice(piece.start - self.start, piece.stop - self.start),
                        slice(first, first + piece.num_keys),
                        piece.mask(window, self.dtype, self.device),
                    )
                    for first, piece in zip(self.first_slots, self.pieces, strict=True)
                )
            )
        return self._masks[window]


def group_pieces(pieces: Sequence[Piece], *, most_tokens: int | None, is_packed: bool) -> list[list[Piece]]:
    """Return the pieces, in order, side by side as far as `most_tokens` allow; None: any number.

    Pieces of one text stay apart, and unless `is_packed` so do those of all.
    """
    groups: list[list[Piece]] = []
    for piece in pieces:
        last = groups[-1] if groups else []
        num_tokens = sum(other.num_tokens for other in last) + piece.num_tokens
        is_room = most_tokens is None or num_tokens <= most_tokens
        if last and is_packed and is_room and all(other.lane != piece.lane for other in last):
            last.append(piece)
        else:
            groups.append([piece])
    return groups


class SlicedPass:
    """A pass of T tokens that is being computed slice by slice."""

    def __init__(
        self,
        slices: Sequence[PassSlice],
        *,
        enter: Callable[[Entry], None],
        is_overwritten: bool,
        is_cancelled: Callable[[], bool],
    ) -> None:
        """`enter` tells the cache what comes next; `is_overwritten`: whether a layer may write over its input."""
        self._slices = tuple(slices)
        self._enter = enter
        self._is_overwritten = is_overwritten
        self._is_cancelled = is_cancelled
        self._num_tokens = slices[-1].stop

    def run(
        self, forward: Callable[..., Any], hidden: torch.Tensor, arguments: Mapping[str, Any], *, window: int | None
    ) -> Any:
        """Run a layer's `forward` over `hidden` (1, T, E), which may be overwritten with what it returns.

        Of the `arguments` those with a row for each token are cut; `attention_mask` is the slice's own.
        """
        rest: tuple[Any, ...] | None = None
        result = hidden if self._is_overwritten else torch.empty_like(hidden)
        for each in self._slices:
            if self._is_cancelled():
                raise PassCancelledError("The pass was cancelled within a layer.")
            self._enter(each.entry)
            cut = tree_map_only(torch.Tensor, partial(self._cut, start=each.start, stop=each.stop), dict(arguments))
            cut["attention_mask"] = each.mask(window)
            output = forward(hidden[:, each.start : each.stop], **cut)
            if isinstance(output, tuple):
                output, *others = output
                rest = tuple(others)
            result[:, each.start : each.stop] = output
        return result if rest is None else (result, *rest)

    def _cut(self, tensor: torch.Tensor, *, start: int, stop: int) -> torch.Tensor:
        if tensor.ndim == 1 and len(tensor) == self._num_tokens:
            return tensor[start:stop]
        is_by_token = tensor.ndim > 1 and tensor.shape[:2] == (1, self._num_tokens)
        return tensor[:, start:stop] if is_by_token else tensor


def can_be_sliced(decoder: nn.Module) -> bool:
    """Return whether the decoder takes what its last layer returns as it is, cut to a few rows, to its `norm`.

    Older architectures bring it into the shape of the token ids again.
    """
    return isinstance(getattr(decoder, "norm", None), nn.Module)
