"""Rank the candidates of a draft's rows where these are: what crosses to the processor is a few numbers a row.

Greedy candidates are the largest logits, coupled ones the largest of logits / T + noise: a sum and a top-k. On an
accelerator penalties and bans come before that, as changes of some tokens, and filters, applied to the likeliest ones.
Whatever else shapes a distribution is evaluated row by row with the scheme's own function. Ties may fall otherwise, and
a far tail is left out: that changes proposals, never what is emitted.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from runtime.config import SamplingParams
from runtime.model.upload import upload
from runtime.speculation.sampling import NUCLEUS_TOLERANCE
from runtime.speculation.schemes import (
    AdjustedRows,
    Candidates,
    Coupled,
    Greedy,
    Place,
    RankingScheme,
    RowChanges,
    Scheme,
    position_noise,
)

NUM_FILTERED = 1024
"""Tokens of a row that filters look at on an accelerator; a nucleus that is larger has hardly a chance of being met."""
_DROPPED = -1e4
"""Below every score in logits, and from here on downwards by likelihood: tokens that a filter drops."""


def is_ranked_on_device(scheme: Scheme, params: SamplingParams, device: torch.device) -> bool:
    """Return whether no row has to leave the device; a temperature of almost 0 is left to the scheme.

    A processor ranks changed and filtered rows faster itself: its topk of a vocabulary takes longer than a row's own
    way.
    """
    if isinstance(scheme, AdjustedRows):
        return device.type != "cpu" and is_ranked_on_device(scheme.scheme, params, device)
    is_whole = params.top_k == 0 and params.top_p == 1 and params.min_p == 0
    is_coupled = isinstance(scheme, Coupled) and params.temperature > 1e-3
    return isinstance(scheme, Greedy) or (is_coupled and (is_whole or device.type != "cpu"))


def rank_on_device(
    scheme: Scheme,
    logits: torch.Tensor,
    positions: Sequence[int],
    places: Callable[[], Sequence[Place]],
    *,
    params: SamplingParams,
    num_candidates: int,
) -> Candidates:
    """Return the first `num_candidates` candidates (W, B), at most the vocabulary, from logits (W, V).

    `positions` (W,) are those of the tokens to be chosen, and `places` (W,) the same with their paths, which only
    penalties and bans ask for. `is_ranked_on_device` must say so. Where a filter keeps more than NUM_FILTERED tokens,
    those are all that can be proposed.
    """
    scores, token_ids = logits.float(), None
    if isinstance(scheme, AdjustedRows):
        changes = scheme.rules.changes([place.path for place in places()])
        if changes is None:  # a token is forced, and there is nothing to rank
            return rank_row_by_row(scheme, logits, places(), num_candidates=num_candidates)
        scheme, scores = scheme.scheme, _changed(scores, changes)
    if isinstance(scheme, Coupled):
        if params.top_k or params.top_p < 1 or params.min_p > 0:
            scores, token_ids = _filtered(scores, params, num_tokens=max(num_candidates, NUM_FILTERED))
        scores = _scaled_noise(scheme, positions, params.temperature, logits, token_ids).add_(scores)
        if token_ids is not None:  # behind what is kept the likeliest others, as `fill_up` has them
            order = torch.arange(scores.shape[-1], device=scores.device)
            scores = torch.where(scores == -torch.inf, _DROPPED - order, scores)
    best = scores.topk(min(num_candidates, logits.shape[-1]), dim=-1)  # (W, B)
    values = best.values.masked_fill(best.values <= _DROPPED, -torch.inf)
    chosen = best.indices if token_ids is None else token_ids.gather(1, best.indices)
    packed = torch.stack((values.view(torch.int32), chosen.to(torch.int32)))  # crosses in one copy
    scores_on_host, indices = packed.numpy(force=True)
    return Candidates(indices.astype(np.int64), scores_on_host.view(np.float32))


def _changed(logits: torch.Tensor, changes: RowChanges) -> torch.Tensor:
    """Return other logits (W, V), in the order of operations that `RowRules.adjusted` has.

    A row in which nothing would be left is left alone: its target may never reach it.
    """
    token_ids, drops, own_token_ids, own_drops, has_own = upload(
        (changes.token_ids, changes.drops, changes.own_token_ids, changes.own_drops, changes.has_own), logits.device
    )

    def changed(some: torch.Tensor, drops: torch.Tensor) -> torch.Tensor:
        if changes.penalty != 1:
            some = torch.where(some > 0, some / changes.penalty, some * changes.penalty)
        return some - drops

    result = logits.clone()
    result[:, token_ids] = changed(logits[:, token_ids], drops)
    own = changed(logits.gather(1, own_token_ids), own_drops)
    result.scatter_(1, own_token_ids, torch.where(has_own[:, None], own, result.gather(1, own_token_ids)))
    is_empty = result.amax(-1, keepdim=True) == -torch.inf
    return torch.where(is_empty, logits, result)


def _filtered(logits: torch.Tensor, params: SamplingParams, *, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T log Q (W, C) of the likeliest tokens, and which these are, as `logits_to_probs` would keep them.

    The largest is 0 and what a filter drops -inf. `num_tokens`: how many are looked at, of which top-p keeps the
    smallest set whose share of the whole distribution reaches it.
    """
    is_top_k = 0 < params.top_k < logits.shape[-1]
    top = logits.topk(min(num_tokens, logits.shape[-1]), dim=-1)
    kept = top.values - top.values[:, :1]
    if is_top_k:
        kept[:, params.top_k :] = -torch.inf
    if params.top_p < 1:
        rest = kept if is_top_k and params.top_k <= num_tokens else logits - top.values[:, :1]
        shares = (kept / params.temperature - (rest / params.temperature).logsumexp(-1, keepdim=True)).exp()
        before = shares.cumsum(-1) - shares
        kept = kept.masked_fill(before >= params.top_p - NUCLEUS_TOLERANCE, -torch.inf)
        kept[:, 0] = 0
    if params.min_p > 0:
        kept = kept.masked_fill(kept < params.temperature * math.log(params.min_p), -torch.inf)
    return kept, top.indices


def rank_row_by_row(
    scheme: RankingScheme, logits: torch.Tensor, places: Sequence[Place], *, num_candidates: int
) -> Candidates:
    """Return what `rank_on_device` does for any scheme that has scores, with logits (W, V) at `places` (W,)."""
    num_candidates = min(num_candidates, logits.shape[-1])
    rows = zip(logits.numpy(force=True), places, strict=True)
    ranked = [scheme.rank(row, num_candidates, place) for row, place in rows]
    return Candidates(np.stack([one.token_ids for one in ranked]), np.stack([one.scores for one in ranked]))


def _scaled_noise(
    scheme: Coupled,
    positions: Sequence[int],
    temperature: float,
    logits: torch.Tensor,
    token_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Return T * noise (W, V), or that of `token_ids` (W, C), where the logits are; nodes of one depth share theirs."""
    known = sorted(set(positions))
    noise = np.stack([position_noise(scheme.seed, position, logits.shape[-1]) for position in known])  # (positions, V)
    rows = np.array([known.index(position) for position in positions])
    shared, index = upload((noise, rows), logits.device)
    if token_ids is None:
        return shared.index_select(0, index).mul_(temperature)
    return shared[index[:, None], token_ids].mul_(temperature)
