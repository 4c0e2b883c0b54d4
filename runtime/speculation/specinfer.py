"""Draws with replacement, and a rejection that shrinks the target's distribution only (SpecInfer, arXiv 2305.09781).

A baseline: a token may be drawn twice, and a rejected one is drawn again all the same, so more children bring less.
"""

import numpy as np

from runtime.speculation.rejection import (
    accept_probability,
    drawn_from,
    end_of_node,
    target_distribution,
    target_residual,
)
from runtime.speculation.sampling import draw_with_replacement, logits_to_probs
from runtime.speculation.scheme import Children, Judgement, Place, Row


class SpecInfer:
    """Multi-step speculative sampling."""

    name = "specinfer"

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """Independent draws from the draft's distribution."""
        probs = logits_to_probs(draft_row, place.params, dtype=np.float32)
        drawn = draw_with_replacement(probs, num_children, rng)
        return Children(drawn, range(num_children), probs)

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Accept x with min(1, P[x] / Q[x]); else P <- norm(max(P - Q, 0)) and the next child."""
        target_probs = target_distribution(target_row, place)
        if not children.drawn:
            return end_of_node(children, target_probs, rng)
        draft_probs = drawn_from(children)
        for child, token in zip(children.drawn, children.drawn_token_ids, strict=True):
            if rng.random() < accept_probability(target_probs, draft_probs, token):
                return Judgement(token, child)
            target_probs = target_residual(target_probs, draft_probs)
        return end_of_node(children, target_probs, rng)
