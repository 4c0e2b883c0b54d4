"""The steps of rejection sampling: may this candidate stand, and what of the target is left if it may not.

Shared by every scheme that draws candidates from the draft's distribution. Each step keeps the law of what is emitted:
the candidate's chance to be emitted, plus that of the same token from the residual, is the target's probability.
Sources: Sequoia (arXiv 2402.12374, algorithm 2); SpecInfer (arXiv 2305.09781).
"""

from collections.abc import Sequence

import numpy as np

from runtime.speculation.sampling import Probs, logits_to_probs, sample
from runtime.speculation.scheme import Children, Judgement, Place, Row


def target_distribution(target_row: Row, place: Place) -> Probs:
    """P (V,), what plain decoding would draw from, of the target's logits (V,)."""
    return np.asarray(logits_to_probs(target_row, place.params), dtype=np.float64)


def accept_probability(target_probs: Probs, draft_probs: Probs, token: int) -> float:
    """min(1, P[x] / Q[x]) for a token x that was drawn from Q, so Q[x] > 0."""
    return min(1.0, float(target_probs[token] / draft_probs[token]))


def target_residual(target_probs: Probs, draft_probs: Probs) -> Probs:
    """norm(max(P - Q, 0)), (V,): what is left of P after a draw from Q was rejected."""
    target_left = target_probs - draft_probs
    np.maximum(target_left, 0, out=target_left)
    target_mass = target_left.sum()
    if target_mass > 0:
        target_left /= target_mass
        return target_left
    return target_probs  # P == Q rejects by the last bit of P[x] / Q[x] only, and then there is nothing to subtract


def residual_step(target_probs: Probs, draft_probs: Probs, rejected: Sequence[int]) -> tuple[Probs, Probs]:
    """P and Q, both (V,), after one more rejection: P <- norm(max(P - Q, 0)); Q[x] <- 0, renormalised.

    `rejected` holds all tokens rejected at this node, x the last of them. Once Q's mass is gone it is uniform over
    the tokens not rejected, as the draws were.
    """
    draft_left = draft_probs.copy()
    draft_left[rejected[-1]] = 0
    draft_mass = draft_left.sum()
    if draft_mass == 0:
        draft_left[:] = 1
        draft_left[list(rejected)] = 0
        draft_mass = max(len(draft_left) - len(rejected), 1)
    draft_left /= draft_mass
    return target_residual(target_probs, draft_probs), draft_left


def end_of_node(children: Children, target_probs: Probs, rng: np.random.Generator) -> Judgement:
    """What a node emits whose drawn children were all rejected, or that has none; P `target_probs` (V,) is left.

    A child x that was not drawn may stand with probability P[x], else P[x] <- 0, renormalised, for the next one. That
    is one draw from P and a look whether a child has it.
    """
    token = sample(target_probs, rng)
    return Judgement(token, children.index_of(token))


def drawn_from(children: Children) -> Probs:
    """The distribution Q (V,) of the drawn children, with sum 1."""
    assert children.draft_probs is not None, "drawn children have a distribution"
    probs: Probs = children.draft_probs.astype(np.float64)
    probs /= probs.sum()
    return probs
