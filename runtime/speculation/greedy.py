"""Temperature 0: candidates are the draft's most likely tokens, and the target's own most likely one is followed."""

import numpy as np

from runtime.speculation.sampling import top_tokens
from runtime.speculation.scheme import Candidates, Children, Judgement, Place, Row


class Greedy:
    """What every scheme is at temperature 0; uses no chance."""

    name = "greedy"

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """The draft's most likely tokens, in order."""
        return Children(top_tokens(draft_row, num_children))

    def rank(self, draft_row: Row, num_candidates: int, place: Place) -> Candidates:
        """The same with their logits."""
        best = top_tokens(draft_row, num_candidates)
        return Candidates(best, draft_row[best])

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """The target's most likely token, of equals the lower one."""
        token = int(top_tokens(target_row, 1)[0])
        return Judgement(token, children.index_of(token))
