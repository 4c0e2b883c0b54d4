"""Lets Gated DeltaNet layers of transformers compute over trees of tokens, with states that our cache keeps.

No architecture is written here. transformers' modules call the convolution and the delta rule by names of their module
file; each module gets a forward of its own whose code is theirs and in which these names mean what is here. Nothing
that others use is changed. What a layer holds of a text, and which tokens stand where, is `recurrent_cache`'s.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import cast

import torch
from torch import nn
from transformers.activations import ACT2FN

from runtime.model.gated_delta import convolve, delta_chain, delta_rule
from runtime.model.recurrent_cache import LaneState, PiecePaths, RecurrentLayer, RecurrentTensors

_CALLED = frozenset(
    ("causal_conv1d_fn", "causal_conv1d_update", "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")
)
"""What a module's forward calls by name."""


def has_delta_functions(module_file: ModuleType) -> bool:
    """Return whether a module file of transformers has the functions whose place ours take."""
    return all(inspect.isfunction(getattr(module_file, name, None)) for name in _CALLED)


def delta_module(layer: nn.Module) -> nn.Module | None:
    """Return the one Gated DeltaNet module of a decoder layer whose forward can be given other functions, or None."""
    found = [module for module in layer.modules() if _is_delta(module)]
    return found[0] if len(found) == 1 else None


def _is_delta(module: nn.Module) -> bool:
    plain = inspect.unwrap(type(module).forward)
    if not inspect.isfunction(plain) or not has_delta_functions(sys.modules[type(module).__module__]):
        return False
    return set(plain.__code__.co_names) >= _CALLED and "cache" in inspect.signature(plain).parameters


def compute_over_trees(module: nn.Module, layer: RecurrentLayer, *, has_tiled_heads: bool = False) -> None:
    """Let a Gated DeltaNet module compute the pieces that its cache `layer` has been told of.

    `has_tiled_heads`: see `DecoderParts`.
    """
    plain = cast(FunctionType, inspect.unwrap(type(module).forward))
    seam = _Seam(layer, has_tiled_heads=has_tiled_heads)
    ours: dict[str, Callable[..., object]] = {
        "causal_conv1d_fn": seam.convolve,
        "torch_chunk_gated_delta_rule": seam.apply_rule,
    }
    own = FunctionType(plain.__code__, {**plain.__globals__, **ours}, plain.__name__, plain.__defaults__)
    own.__kwdefaults__ = plain.__kwdefaults__

    def forward(hidden_states: torch.Tensor, *_: object, **__: object) -> object:
        return own(module, hidden_states, cache=seam, attention_mask=None)

    module.forward = forward


@dataclass(frozen=True, slots=True, eq=False)
class _Visited:
    """A piece between its convolution and the rule."""

    piece: PiecePaths
    before: LaneState
    """What the piece stands on."""
    inputs: torch.Tensor
    """(window - 1 + R, C): the tail, the stash and the new tokens."""
    convolved: torch.Tensor
    """(R, C) of all tokens behind the base."""


class _Seam:
    """Stands where a module expects its functions, and its cache, which holds nothing that it could see itself."""

    def __init__(self, layer: RecurrentLayer, *, has_tiled_heads: bool) -> None:
        self._layer = layer
        self._has_tiled_heads = has_tiled_heads
        self._visited: list[_Visited] = []

    def get_conv_state(self, *_: object, **__: object) -> None:
        """Let the module take every call for the beginning of a text."""

    def get_recurrent_state(self, *_: object, **__: object) -> None:
        """Let the module take every call for the beginning of a text."""

    def update_conv_state(self, inputs: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Return what is to be convolved as it is: `convolve` knows what stands before it."""
        return inputs

    def update_recurrent_state(self, *_: object, **__: object) -> None:
        """Keep nothing: `apply_rule` has."""

    def is_recording_past(self, *_: object) -> bool:
        """Return that one token is convolved like many."""
        return True

    def convolve(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        **_: object,
    ) -> torch.Tensor:
        """Convolve (1, C, T) over each token's own path."""
        new = inputs[0].T  # (T, C)
        width = weight.shape[1]
        self._visited = []
        outputs = []
        for piece in self._layer.pieces:
            before = self._layer.before(piece)
            held = before.tensors
            tail = new.new_zeros(width - 1, new.shape[1]) if held is None else held.tail
            rows = torch.cat((tail, *([] if held is None else [held.rows]), new[piece.tokens]))
            split = piece.num_folded
            parts = [convolve(rows[split:], weight, bias, piece.windows(width))]
            if split:
                parts.insert(0, convolve(rows[: width - 1 + split], weight, bias, None))
            convolved = torch.cat(parts)  # (R, C)
            if activation is not None:
                convolved = ACT2FN[activation](convolved)
            self._visited.append(_Visited(piece, before, rows, convolved))
            outputs.append(convolved[piece.tokens.start - piece.tokens.stop :])
        return torch.cat(outputs).T[None]

    def apply_rule(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """Return what the tokens read, (1, T, Hv, Dv), of `query` and `key` (1, T, Hk, Dk), `g` and `beta` (1, T, Hv).

        What stands in the stash was convolved beside them, and is split as they are.
        """
        heads = [states.shape[2:] for states in (query, key, value)]
        log_decay, weights = (self._grouped(gates[0].to(torch.float32), key.shape[2]) for gates in (g, beta))
        outputs = torch.cat([self._read(each, heads, log_decay, weights) for each in self._visited])
        self._visited = []
        if self._has_tiled_heads:
            outputs = _turned(outputs, key.shape[2])
        return outputs[None].to(value.dtype), None

    def _grouped(self, states: torch.Tensor, num_key_heads: int) -> torch.Tensor:
        """Return (T, Hv, ...) with the heads that go with one head of the keys beside each other."""
        return _turned(states, states.shape[1] // num_key_heads) if self._has_tiled_heads else states

    def _read(
        self, each: _Visited, heads: list[torch.Size], log_decay: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        """Return what the new tokens of a piece read (T, Hv, Dv), and keep what its lane holds then."""
        piece, held, split = each.piece, each.before.tensors, each.piece.num_folded
        parts = each.convolved.split([size.numel() for size in heads], dim=1)  # type: ignore[no-untyped-call]
        query, key, value = (part.unflatten(1, size) for part, size in zip(parts, heads, strict=True))
        value = self._grouped(value, heads[1][0])
        log_decay, beta = log_decay[piece.tokens], beta[piece.tokens]
        if held is None:
            state = beta.new_zeros(heads[2][0], heads[1][1], heads[2][1])
        else:
            log_decay, beta = torch.cat((held.log_decay, log_decay)), torch.cat((held.beta, beta))
            state = held.state
        num_new, read = piece.tokens.stop - piece.tokens.start, []
        if split:
            chain, state = delta_chain(
                query[:split], key[:split], value[:split], log_decay[:split], beta[:split], state
            )
            read.append(chain)
        rest = query[split:], key[split:], value[split:], log_decay[split:], beta[split:]
        read.append(delta_rule(*rest, state, piece.paths, num_outputs=min(num_new, len(beta) - split)))
        tail = len(each.inputs) - len(each.convolved)
        made = RecurrentTensors(
            state,
            each.inputs[split : split + tail].clone(),
            each.inputs[split + tail :].clone(),
            log_decay[split:].clone(),
            beta[split:].clone(),
        )
        self._layer.after(piece, LaneState(each.before.base + split, made))
        return torch.cat(read)[-num_new:]


def _turned(states: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return (T, H, ...) with its heads column by column, which stand in so many rows of a table."""
    table = states.reshape(len(states), num_rows, states.shape[1] // num_rows, *states.shape[2:])
    return table.transpose(1, 2).flatten(1, 2)
