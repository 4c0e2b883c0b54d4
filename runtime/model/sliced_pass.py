"""A pass wider than its activations may be: every layer computes it slice by slice while its weights are there.

So the weights cross the link once for a whole prompt, and what a layer holds is that of one slice: a slice attends to
the keys of those before it, which the layer's cache has by then, exactly as if each had been a pass of its own. Only
the hidden states between two layers are as long as the pass, and they are kept in one buffer, overwritten in place.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from offload.errors import PassCancelledError
from runtime.model.attention import additive_mask


class SlicedPass:
    """The pass of T tokens that is being computed slice by slice."""

    def __init__(
        self,
        bounds: Sequence[tuple[int, int]],
        *,
        num_cached: int,
        num_wanted: int,
        positions: torch.Tensor,
        key_positions: torch.Tensor,
        last_masks: Mapping[int | None, torch.Tensor],
        dtype: torch.dtype,
        is_cancelled: Callable[[], bool],
    ) -> None:
        """`positions` (T,) and `key_positions` (C + T,) lie on the device, as do `last_masks`, the last slice's.

        The tokens of all slices but the last see everything before them.
        """
        self.num_wanted = num_wanted
        """Rows, the last ones, that anybody wants behind the last layer."""
        self._bounds = tuple(bounds)
        self._num_cached = num_cached
        self._positions = positions
        self._key_positions = key_positions
        self._last_masks = last_masks
        self._dtype = dtype
        self._is_cancelled = is_cancelled
        self._num_tokens = bounds[-1][1]

    def run(
        self, forward: Callable[..., Any], hidden: torch.Tensor, arguments: Mapping[str, Any], *, window: int | None
    ) -> Any:
        """Run a layer's `forward` over `hidden` (1, T, E), which is overwritten with what it returns.

        Of the `arguments` those with a row for each token are cut; `attention_mask` is the slice's own.
        """
        rest: tuple[Any, ...] | None = None
        for start, stop in self._bounds:
            if self._is_cancelled():
                raise PassCancelledError("The pass was cancelled within a layer.")
            cut = tree_map_only(torch.Tensor, partial(self._cut, start=start, stop=stop), dict(arguments))
            cut["attention_mask"] = self._mask(start, stop, window)
            output = forward(hidden[:, start:stop], **cut)
            if isinstance(output, tuple):
                output, *others = output
                rest = tuple(others)
            hidden[:, start:stop] = output
        return hidden if rest is None else (hidden, *rest)

    def _cut(self, tensor: torch.Tensor, *, start: int, stop: int) -> torch.Tensor:
        if tensor.ndim == 1 and len(tensor) == self._num_tokens:
            return tensor[start:stop]
        is_by_token = tensor.ndim > 1 and tensor.shape[:2] == (1, self._num_tokens)
        return tensor[:, start:stop] if is_by_token else tensor

    def _mask(self, start: int, stop: int, window: int | None) -> torch.Tensor:
        """Return the mask (1, 1, stop - start, C + stop): built where it is used, so that one slice's is held."""
        if (start, stop) == self._bounds[-1]:
            return self._last_masks[window]
        num_keys = self._num_cached + stop
        keys = torch.arange(num_keys, device=self._positions.device)
        allowed = keys[None] <= keys[self._num_cached + start :, None]  # (slice, keys)
        if window is not None:
            allowed &= self._positions[start:stop, None] - self._key_positions[None, :num_keys] < window
        return additive_mask(allowed, self._dtype)


def can_be_sliced(decoder: nn.Module) -> bool:
    """Return whether the decoder takes what its last layer returns as it is, cut to a few rows, to its `norm`.

    Older architectures bring it into the shape of the token ids again.
    """
    return isinstance(getattr(decoder, "norm", None), nn.Module)
