"""Computes Gated DeltaNet (arXiv 2412.06464) over trees of tokens: its recurrence and the short convolution before it.

One head's state S (Dk, Dv) goes from token to token: it decays by exp(g), and what it says of the key is replaced by
beta parts of the value: S' = exp(g) S, S = S' + k (beta (v - k S')), output = q S. Behind one state the tokens of a
tree need no states of their own. With G the sum of g along the path from the state to a token, and u = beta (v - k S')
what a token writes, the state of token i is exp(G_i) S + the sum over its ancestors j, itself included, of
exp(G_i - G_j) k_j u_j. All u are then the solution of one triangular system, whose mask is the tree's instead of the
causal one (the WY form of arXiv 2406.06484), and outputs are a masked product like attention's.

Sums of decays are kept in float64: along a path they grow while their differences, which are wanted, may stay small.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from runtime.model.pass_shapes import DELTA_BLOCK_TOKENS, MOST_DELTA_PAIRS

_EPSILON = 1e-6
"""Under the root of the norm of queries and keys, as transformers has it."""


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
    for heads, key_heads in _head_groups(num_heads, key.shape[0], num_pairs=num_tokens * num_tokens):
        q, k = (states[key_heads].repeat_interleave(num_heads // len(key), 0) for states in (query, key))
        part = _Block.of(q, k, value[:, heads], sums[:, heads], beta[:, heads], paths.ancestors)
        _, read = part.run(state[heads], first=first)
        outputs[:, heads] = read.to(outputs.dtype)
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
        q, k = (states[:, rows].repeat_interleave(repeats, 0) for states in (query, key))
        sums = log_decay[rows].to(torch.float64).cumsum(0)
        causal = torch.ones(len(sums), len(sums), dtype=torch.bool, device=sums.device).tril()
        block = _Block.of(q, k, value[rows], sums, beta[rows], causal)
        written, read = block.run(state)
        outputs[rows] = read.to(outputs.dtype)
        left = (sums[-1] - sums).to(torch.float32).exp()  # (R, Hv)
        state.mul_(sums[-1].to(torch.float32).exp()[:, None, None])
        state.baddbmm_((k * left.T[:, :, None]).transpose(1, 2), written)
    return outputs, state


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Tokens behind a state, of H heads, float32."""

    system: torch.Tensor
    """(H, R, R) what each token's write takes from those of its ancestors; its diagonal and what lies above mean 0."""
    scores: torch.Tensor
    """(H, R, R) what each token reads of each write."""
    wanted: torch.Tensor
    """(H, R, Dv) what would be written behind an empty state, if each token were alone."""
    decayed_keys: torch.Tensor
    """(H, R, Dk) what of the state each write takes away."""
    decayed_queries: torch.Tensor
    """(H, R, Dk) what of the state each token reads."""

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sums: torch.Tensor,
        beta: torch.Tensor,
        ancestors: torch.Tensor,
    ) -> "_Block":
        """Take `query` and `key` (H, R, Dk), `value` (R, H, Dv), the decays' `sums` (R, H) and `beta` (R, H)."""
        by_head = sums.T
        decays = (by_head[:, :, None] - by_head[:, None]).to(torch.float32)
        decays.masked_fill_(~ancestors, -torch.inf).exp_()
        weights = beta.T[:, :, None].to(torch.float32)
        total = by_head[:, :, None].to(torch.float32).exp()
        weighted = key * weights
        return cls(
            system=(weighted @ key.transpose(1, 2)).mul_(decays),
            scores=(query @ key.transpose(1, 2)).mul_(decays),
            wanted=value.transpose(0, 1).to(torch.float32) * weights,
            decayed_keys=weighted * total,
            decayed_queries=query * total,
        )

    def run(self, state: torch.Tensor, *, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what each token writes, (H, R, Dv), and what those from the `first` on read, (T, H, Dv).

        `state` (H, Dk, Dv): the one on which they stand.
        """
        wanted = self.wanted - self.decayed_keys @ state
        written = torch.linalg.solve_triangular(self.system, wanted, upper=False, unitriangular=True)
        read = self.scores[:, first:] @ written + self.decayed_queries[:, first:] @ state
        return written, read.transpose(0, 1)


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
