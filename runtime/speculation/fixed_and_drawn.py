"""All children but one are the draft's most likely tokens, the last is drawn from the rest (arXiv 2502.18779).

With Q' the draft's distribution off the fixed tokens S, the drawn x is accepted with min(1, P[x] / Q'[x]); else the
token comes from norm(max(P - Q', 0)), which holds all of P on S, and is followed if it is in S. That is ordinary
speculative sampling with Q' in place of Q, so it emits P; some child is it with probability
P(S) + the sum over x of min(P[x], Q'[x]).
"""

import numpy as np

from runtime.speculation.rejection import (
    accept_probability,
    drawn_from,
    end_of_node,
    target_distribution,
    target_residual,
)
from runtime.speculation.sampling import logits_to_probs, sample, top_tokens
from runtime.speculation.scheme import Children, Judgement, Place, Row, fill_up


class FixedAndDrawn:
    """The drawn child is the last one: mostly it is worth least."""

    name = "hybrid"

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """The most likely tokens, then one draw from the others; nothing is drawn where those have no mass."""
        fixed = top_tokens(draft_row, num_children - 1)
        probs = logits_to_probs(draft_row, place.params, dtype=np.float32)
        probs[fixed] = 0
        if not probs.any():
            return Children(fill_up(fixed.tolist(), draft_row, num_children))
        return Children(np.append(fixed, sample(probs, rng)), range(num_children - 1, num_children), probs)

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """Accept the drawn x with min(1, P[x] / Q'[x]); else follow a token of the residual, if a child has it."""
        target_probs = target_distribution(target_row, place)
        if children.drawn:
            draft_probs = drawn_from(children)
            (token,) = children.drawn_token_ids
            if rng.random() < accept_probability(target_probs, draft_probs, token):
                return Judgement(token, children.drawn.start)
            target_probs = target_residual(target_probs, draft_probs)
        return end_of_node(children, target_probs, rng)
