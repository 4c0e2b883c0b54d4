"""Draws without replacement, and a rejection that shrinks both distributions (Sequoia, arXiv 2402.12374, algorithm 2).

Children are tried in drawing order against the target's distribution, which after a rejection shrinks to its residual;
the draft's shrinks likewise, as it did while the children were drawn.
"""

import numpy as np

from runtime.speculation.rejection import (
    accept_probability,
    drawn_from,
    end_of_node,
    residual_step,
    target_distribution,
)
from runtime.speculation.sampling import draw_while_mass, logits_to_probs
from runtime.speculation.scheme import Children, Judgement, Place, Row, fill_up


class Sequoia:
    """The paper's scheme."""

    name = "sequoia"

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """Different tokens, each drawn from what the ones before leave of the draft's distribution.

        Once nothing is left of it, the draft's most likely other tokens, which count as not drawn.
        """
        probs = logits_to_probs(draft_row, place.params, dtype=np.float32)
        drawn = draw_while_mass(probs, num_children, rng).tolist()
        return Children(fill_up(drawn, draft_row, num_children), range(len(drawn)), probs)

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Accept x with min(1, P[x] / Q[x]); else P <- norm(max(P - Q, 0)), Q[x] <- 0, renormalised, and the next."""
        target_probs = target_distribution(target_row, place)
        if not children.drawn:
            return end_of_node(children, target_probs, rng)
        draft_probs = drawn_from(children)
        rejected: list[int] = []
        for child, token in zip(children.drawn, children.drawn_token_ids, strict=True):
            if rng.random() < accept_probability(target_probs, draft_probs, token):
                return Judgement(token, child)
            rejected.append(token)
            target_probs, draft_probs = residual_step(target_probs, draft_probs, rejected)
        return end_of_node(children, target_probs, rng)
