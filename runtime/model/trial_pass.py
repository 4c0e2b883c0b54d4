"""A first pass through an empty model, which neither reads a weight nor takes memory.

It shows what no configuration says reliably: whether the architecture's forward works with a tree's masks, positions
and cache, in which order its layers run, and how many numbers each of them keeps per token. Settings that only break
while computing, such as rotary factors of a wrong length, end here in a sentence.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from offload.errors import CheckpointError
from runtime.model.architecture import DecoderParts, first_line, max_positions, unsupported
from runtime.model.layer_binding import ComputePlan
from runtime.model.recurrent_cache import RecurrentLayer, RecurrentShape
from runtime.model.safe_build import SafeBuild
from runtime.model.streamed_model import PassInput, StreamedModel
from runtime.model.tree_cache import CacheShape, LayerShape, TreeCache

_NUM_TOKENS = 2
_MAX_REAL_ELEMENTS = 2**27
"""Of tables of positions."""


def try_pass(parts: DecoderParts) -> tuple[LayerShape, ...]:
    """Return what each layer's cache keeps; `parts` serve for nothing else afterwards.

    Raises CheckpointError if a pass fails, or if its layers do not run once each, in order, each with a cache.
    """
    model = StreamedModel(parts, ComputePlan(torch.float32), capacity=2 * _NUM_TOKENS)
    layers = _TriedLayers(parts, model.cache)
    last = max((max_positions(parts.config) or 0) - _NUM_TOKENS, 0)
    try:
        with _Weightless(_MAX_REAL_ELEMENTS):
            logits = model.logits(model.run_pass(_chain_at(0, num_cached=0, token_id=model.vocab_size - 1)))
            layers.is_first_enough = True
            model.run_pass(_chain_at(last, num_cached=_NUM_TOKENS, token_id=0))
    except _SeenEnoughError:
        pass
    except CheckpointError:
        raise
    except Exception as error:  # settings of the wrong kind make transformers and torch raise nearly anything
        where = f"config.json ({parts.model.config.model_type})"
        raise CheckpointError(f"{where} describes a model whose first pass fails: {first_line(error)}") from error
    caches = [model.cache.layers[index] for index in layers.alike]
    if layers.num_run < len(caches) or model.cache.num_cached < _NUM_TOKENS:
        raise unsupported(parts.model, "layers that do not all keep keys and values of every token")
    if logits.shape != (_NUM_TOKENS, model.vocab_size):
        raise unsupported(parts.model, f"a head of {logits.shape[-1]} instead of {model.vocab_size} tokens")
    return tuple(
        _recurrent_shape(cache)
        if isinstance(cache, RecurrentLayer)
        else CacheShape(_heads(cache.keys), _heads(cache.values))
        for cache in caches
    )


def _recurrent_shape(cache: RecurrentLayer) -> RecurrentShape:
    tensors = cache.lanes[0].tensors
    assert tensors is not None, "a pass has run"
    num_heads, key_width, value_width = tensors.state.shape
    return RecurrentShape((num_heads, key_width, value_width), tensors.rows.shape[1], len(tensors.tail) + 1)


def _heads(cached: torch.Tensor) -> tuple[int, int]:
    """Return (K, D) of keys or values (1, K, slots, D)."""
    return cached.shape[1], cached.shape[3]


class _SeenEnoughError(Exception):
    """The first layer has run at the last position: the others do nothing else there than at the first."""


class _TriedLayers:
    """Watches that every layer runs once, in order; of layers that are alike only the first computes.

    A pass of thirty layers without memory would take as long as building them four times.
    """

    def __init__(self, parts: DecoderParts, cache: TreeCache) -> None:
        self._model = parts.model
        self._cache = cache
        self._outputs: dict[int, Any] = {}
        self.num_run = 0
        self.is_first_enough = False
        self.alike: list[int] = []
        """Per layer: the first one that is like it, often itself."""
        firsts: dict[Any, int] = {}
        for index, layer in enumerate(parts.layers):
            first = firsts.setdefault((parts.layer_windows[index], *_description(layer, index)), index)
            self.alike.append(first)
            layer.register_forward_pre_hook(partial(self._enter, index))
            if first == index:
                layer.register_forward_hook(partial(self._keep, index))
            else:
                layer.forward = partial(self._repeat, first, index)

    def _enter(self, index: int, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if self.is_first_enough:
            if index > 0:
                raise _SeenEnoughError
        elif index != self.num_run:
            raise unsupported(self._model, "layers that do not run once each, in order")
        else:
            self.num_run += 1

    def _keep(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._outputs[index] = output

    def _repeat(self, first: int, index: int, *args: Any, **kwargs: Any) -> Any:
        self._cache.repeat(first, index)
        return self._outputs[first]


def _description(layer: nn.Module, index: int) -> Iterator[Any]:
    """Yield what makes a layer compute as it does: its classes, shapes and plain attributes, but not its index."""
    for name, parameter in layer.named_parameters():
        yield name, parameter.shape
    for name, module in layer.named_modules():
        yield name, type(module)
        for attribute, value in vars(module).items():
            if isinstance(value, bool | float | str | None) or (type(value) is int and value != index):
                yield attribute, value


def _chain_at(start: int, *, num_cached: int, token_id: int) -> PassInput:
    """Return the pass of a few equal tokens from position `start` on, behind `num_cached` at the first positions."""
    positions = np.arange(start, start + _NUM_TOKENS)
    keys = np.concatenate([np.arange(num_cached), positions])
    visible = np.tri(_NUM_TOKENS, num_cached + _NUM_TOKENS, k=num_cached, dtype=np.bool_)
    return PassInput(np.full(_NUM_TOKENS, token_id, dtype=np.int64), positions, keys, visible)


class _Weightless(SafeBuild):  # type: ignore[no-untyped-call]
    """Computes shapes: whatever meets a tensor without memory has none itself; positions and their tables are real."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` on the meta device if any of its tensors is there."""
        if func is torch.ops.aten.embedding.default and not args[1].is_meta and int(args[1].max()) >= len(args[0]):
            raise IndexError(f"row {int(args[1].max())} of a table of {len(args[0])} rows")
        tensors = list(_tensors([*args, *(kwargs or {}).values()]))
        if not any(tensor.is_meta for tensor in tensors):
            return super().__torch_dispatch__(func, types, args, kwargs)
        if not all(tensor.is_meta for tensor in tensors):
            args, kwargs = tree_map_only(torch.Tensor, _without_memory, (tuple(args), dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
