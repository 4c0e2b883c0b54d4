"""The draft's candidates for many nodes at once, ranked where the logits are if that can be.

Greedy candidates are the largest logits, coupled ones the largest of logits / T + noise; both are a sum and a top-k
on the device, and a few numbers a row cross to the processor. Whatever else shapes a distribution (top-k, top-p,
min-p, penalties, bans) is evaluated row by row with the scheme's own function. Ties may fall differently here: that
changes what is proposed, never what is emitted. Knows no tree.
"""

from collections.abc import Sequence

import numpy as np
import torch

from runtime.sampling_params import SamplingParams
from runtime.speculation.schemes import Candidates, Coupled, Greedy, Place, RankingScheme, Scheme


def is_ranked_on_device(scheme: Scheme, params: SamplingParams) -> bool:
    """Whether no row has to leave the device; a temperature of almost 0 is left to the scheme."""
    is_whole = params.top_k == 0 and params.top_p == 1 and params.min_p == 0 and params.temperature > 1e-3
    return isinstance(scheme, Greedy) or (isinstance(scheme, Coupled) and is_whole)


def rank_on_device(
    scheme: Scheme, logits: torch.Tensor, positions: Sequence[int], *, params: SamplingParams, num_candidates: int
) -> Candidates:
    """The first `num_candidates` candidates (W, B), at most the vocabulary, from logits (W, V).

    `positions` (W,) are those of the tokens to be chosen. `is_ranked_on_device` must say so.
    """
    scores = logits.float()
    if isinstance(scheme, Coupled):
        scores = scores + _scaled_noise(scheme, positions, params.temperature, logits)
    best = scores.topk(min(num_candidates, logits.shape[-1]), dim=-1)  # (W, B)
    packed = torch.stack((best.values.view(torch.int32), best.indices.to(torch.int32)))  # crosses in one copy
    values, indices = packed.numpy(force=True)
    return Candidates(indices.astype(np.int64), values.view(np.float32))


def rank_row_by_row(
    scheme: RankingScheme, logits: torch.Tensor, places: Sequence[Place], *, num_candidates: int
) -> Candidates:
    """The same for any scheme that has scores, with logits (W, V) at `places` (W,)."""
    num_candidates = min(num_candidates, logits.shape[-1])
    rows = zip(logits.numpy(force=True), places, strict=True)
    ranked = [scheme.rank(row, num_candidates, place) for row, place in rows]
    return Candidates(np.stack([one.token_ids for one in ranked]), np.stack([one.scores for one in ranked]))


def _scaled_noise(scheme: Coupled, positions: Sequence[int], temperature: float, logits: torch.Tensor) -> torch.Tensor:
    """(W, V) T noise, where the logits are; nodes of one depth share their noise."""
    known = sorted(set(positions))
    noise = np.stack([scheme.noise_at(position, logits.shape[-1]) for position in known])  # (positions, V)
    shared = torch.from_numpy(noise).to(logits.device) * temperature
    return shared[[known.index(position) for position in positions]]
