"""The draft's most likely tokens, and the target's own sample followed where one of them is it.

A baseline that earlier systems ship (SpecExec, arXiv 2406.02532, among them): what the draft's temperature says about
its less likely tokens is not used, so hot sampling leaves the tree soon.
"""

import numpy as np

from runtime.speculation.rejection import end_of_node, target_distribution
from runtime.speculation.sampling import top_tokens
from runtime.speculation.scheme import Children, Judgement, Place, Row


class TopKMatch:
    """Fixed candidates; one random number per emitted token."""

    name = "top-k"

    def place(self, draft_row: Row, num_children: int, place: Place, rng: np.random.Generator) -> Children:
        """The draft's most likely tokens, in order."""
        return Children(top_tokens(draft_row, num_children))

    def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
        """A token drawn from the target's distribution, whatever the children are."""
        return end_of_node(children, target_distribution(target_row, place), rng)
