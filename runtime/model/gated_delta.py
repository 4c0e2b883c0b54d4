"""Computes Gated DeltaNet (arXiv 2412.06464) over trees of tokens: its recurrence and the short convolution before it.

One head's state S (Dk, Dv) goes from token to token: it decays by exp(g), and what it says of the key is replaced by
beta parts of the value: S' = exp(g) S, S = S' + k (beta (v - k S')), output = q S. Behind one state the tokens of a
tree need no states of their own. With G the sum of g along the path from the state to a token, and u = beta (v - k S')
what a token writes, the state of token i is exp(G_i) S + the sum over its ancestors j, itself included, of
exp(G_i - G_j) k_j u_j. All u are then the solution of one triangular system, whose mask is the tree's instead of the
causal one (the WY form of arXiv 2406.06484), and outputs are a masked product like attention's.

States of their own, level by level, cost more for every tree, since one of a layer of Qwen3.5-27B takes 3 MB a token:
11 to 20 times as much time of a processor with 64 nodes, 7 to 12 with 256, 7 to 8 with 512 (5 to 147 levels), 12 for a
chain of 64, 2.4 for one token.

Sums of decays are kept in float64: along a path they grow while their differences, which are wanted, may stay small.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from runtime.model.pass_shapes import DELTA_BLOCK_TOKENS, MOST_DELTA_PAIRS

_EPSILON = 1e-6
"""Under the root of the norm of queries and keys, as transformers has it."""
_FORGOTTEN = -60.0
"""Sums of decays below which nothing is left: exp of it is 1e-26, and products of less would be denormal, which takes a
processor twice as long for a whole tree."""


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """How R tokens behind a state hang together."""

    ancestors: torch.Tensor
    """(R, R) bool: which tokens are on the path to each, itself included; parents stand before their children."""

    def windows(self, width: int) -> torch.Tensor:
        """Return the last `width` tokens of each path, the oldest first: (R, width) int64.

        They are indices into the `width` - 1 tokens before the tree, followed by the tree's R.
        """
        num_tokens = len(self.ancestors)
        places = torch.arange(width - 1 + num_tokens, device=self.ancestors.device)
        seen = F.pad(self.ancestors, (width - 1, 0), value=True)
        return torch.where(seen, places, -1).topk(width, dim=1).values.flip(1)


def convolve(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, windows: torch.Tensor | None = None
) -> torch.Tensor:
    """Convolve each channel over each token's window, before any activation: (T, C).

    `inputs` (width - 1 + R, C), `weight` (C, width); `windows` (T, width) of tokens of a tree, see `Paths`; None: a
    chain, T = R.
    """
    num_tokens = len(inputs) - weight.shape[1] + 1 if windows is None else len(windows)
    sums = torch.zeros(num_tokens, inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
    for place in range(weight.shape[1]):
        seen = inputs[place : place + num_tokens] if windows is None else inputs.index_select(0, windows[:, place])
        sums.addcmul_(seen, weight[:, place])
    return sums if bias is None else sums + bias


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    paths: Paths,
    *,
    num_outputs: int | None = None,
) -> torch.Tensor:
    """Return what the last tokens of a tree read, each from the state of its own path: (T, Hv, Dv), like `value`.

    `query` and `key` (R, Hk, Dk), `value` (R, Hv, Dv), where each key head serves Hv / Hk values' heads; `log_decay`
    and `beta` (R, Hv); `state` (Hv, Dk, Dv) float32, the one on which the tree stands. `num_outputs` T; None: all R.
    Queries and keys are normalised and queries scaled here.
    """
    num_tokens, num_heads = beta.shape
    first = 0 if num_outputs is None else num_tokens - num_outputs
    query, key = _normalised(query, key)
    outputs = torch.empty_like(value[first:])
    sums = paths.ancestors.to(torch.float64) @ log_decay.to(torch.float64)  # (R, Hv)
    num_pairs = num_tokens * min(num_tokens, DELTA_BLOCK_TOKENS)
    for heads, key_heads in _head_groups(num_heads, key.shape[0], num_pairs=num_pairs):
        own = value[:, heads], sums[:, heads], beta[:, heads]
        _, read = _run(query[key_heads], key[key_heads], *own, paths.ancestors, state[heads], first=first)
        outputs[:, heads] = read.transpose(0, 1).to(outputs.dtype)
    return outputs


def delta_chain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each token of a text reads, (R, Hv, Dv), and the state behind all of them, (Hv, Dk, Dv) float32.

    The arguments are those of `delta_rule`; the text is computed in blocks.
    """
    num_tokens, num_heads = beta.shape
    query, key = _normalised(query, key)
    repeats = num_heads // len(key)
    outputs, state = torch.empty_like(value), state.clone()
    for start in range(0, num_tokens, DELTA_BLOCK_TOKENS):
        rows = slice(start, min(start + DELTA_BLOCK_TOKENS, num_tokens))
        sums = log_decay[rows].to(torch.float64).cumsum(0)
        causal = torch.ones(len(sums), len(sums), dtype=torch.bool, device=sums.device).tril()
        written, read = _run(query[:, rows], key[:, rows], value[rows], sums, beta[rows], causal, state)
        outputs[rows] = read.transpose(0, 1).to(outputs.dtype)
        left = (sums[-1] - sums).to(torch.float32).exp()  # (R, Hv)
        state.mul_(sums[-1].to(torch.float32).exp()[:, None, None])
        kept = key[:, rows].repeat_interleave(repeats, 0).mul_(left.T[:, :, None])
        state.baddbmm_(kept.transpose(1, 2), written)
    return outputs, state


def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sums: torch.Tensor,
    beta: torch.Tensor,
    ancestors: torch.Tensor,
    state: torch.Tensor,
    *,
    first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each token writes, (H, R, Dv), and what those from the `first` on read, (H, T, Dv), both float32.

    `query` and `key` (K, R, Dk) float32, `value` (R, H, Dv), the decays' `sums` (R, H), `beta` (R, H), `state` (H, Dk,
    Dv). Tokens are solved in blocks: what earlier ones have written is taken off in one product, and half of the pairs,
    those of a token with later ones, are never looked at.
    """
    num_tokens, repeats = key.shape[1], len(state) // len(key)
    by_head, weights = sums.T, beta.T[:, :, None].to(torch.float32)
    total = _decay(by_head[:, :, None].to(torch.float32))
    of_state = torch.cat((key, query[:, first:]), dim=1).repeat_interleave(repeats, 0) @ state  # (H, R + T, Dv)
    wanted = value.transpose(0, 1) - of_state[:, :num_tokens].mul_(total)
    read = of_state[:, num_tokens:].mul_(total[:, first:])
    written = torch.empty_like(wanted)
    for start in range(0, num_tokens, DELTA_BLOCK_TOKENS):
        stop = min(start + DELTA_BLOCK_TOKENS, num_tokens)
        decays = (by_head[:, start:stop, None] - by_head[:, None, :stop]).to(torch.float32)
        decays = _decay(decays.masked_fill_(~ancestors[start:stop, :stop], -torch.inf))  # (H, B, C)
        earlier = key[:, :stop].transpose(1, 2)
        taken = _for_values(key[:, start:stop] @ earlier, decays)
        left, own = wanted[:, start:stop], weights[:, start:stop]
        if start:
            left = torch.baddbmm(left, taken[:, :, :start], written[:, :start], alpha=-1)
        written[:, start:stop] = torch.linalg.solve_triangular(
            taken[:, :, start:] * own, left * own, upper=False, unitriangular=True
        )
        if stop > first:
            begin = max(start, first)
            scores = _for_values(query[:, begin:stop] @ earlier, decays[:, begin - start :])
            read[:, begin - first : stop - first].baddbmm_(scores, written[:, :stop])
    return written, read


def _decay(sums: torch.Tensor) -> torch.Tensor:
    """Make of sums of decays, in their place, what is left of a number after them."""
    return torch.threshold_(sums, _FORGOTTEN, -torch.inf).exp_()


def _for_values(products: torch.Tensor, decays: torch.Tensor) -> torch.Tensor:
    """Return the products (K, B, C) of heads of the keys, each decayed (H, B, C) as its heads of the values are."""
    by_key = decays.view(len(products), -1, *decays.shape[1:])
    return (by_key * products[:, None]).view(decays.shape)


def _normalised(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as (Hk, R, Dk) float32 of length one, queries divided by the root of their width."""
    query, key = (states.transpose(0, 1).to(torch.float32) for states in (query, key))
    query, key = (states * torch.rsqrt(states.square().sum(-1, keepdim=True) + _EPSILON) for states in (query, key))
    return query * query.shape[-1] ** -0.5, key


def _head_groups(num_heads: int, num_key_heads: int, *, num_pairs: int) -> list[tuple[slice, slice]]:
    """Return so many heads at a time, of values and of keys, as have few enough pairs of tokens."""
    repeats = num_heads // num_key_heads
    at_once = max(1, MOST_DELTA_PAIRS // (repeats * num_pairs))
    bounds = [(begin, min(begin + at_once, num_key_heads)) for begin in range(0, num_key_heads, at_once)]
    return [(slice(begin * repeats, end * repeats), slice(begin, end)) for begin, end in bounds]
