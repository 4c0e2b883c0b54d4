"""Which candidates survive: the walk down a token tree that leaves exactly the target's distribution.

At each accepted node a scheme judges the children against the target's row; the walk goes on below the child that is
accepted, and ends where none is. Target rows are asked for one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.config import SamplingParams
from runtime.events import TokenLogprobs
from runtime.speculation.sampling import token_logprobs
from runtime.speculation.schemes import Children, Place, Scheme, scheme_for
from runtime.speculation.token_tree import TokenTree

TargetRow = Callable[[int], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one round emits: the tokens of the accepted nodes below the root, then one token of the target's own."""

    path: tuple[int, ...]
    """The accepted nodes from the root down; the root is always first."""
    next_token: int
    """Emitted after the path: from the residual where all children were rejected, from the target at a leaf."""
    accepted_ranks: tuple[int, ...]
    """For each node of the path the rank of the child that was accepted; 0 if none was."""
    num_children: tuple[int, ...]
    """For each node of the path how many children stood for acceptance."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """For each emitted token, if they are wanted."""

    def emitted_token_ids(self, tree: TokenTree) -> list[int]:
        """Return the tokens this round emits, in order; `tree` is the tree that was verified."""
        return [*tree.token_ids[list(self.path[1:])].tolist(), self.next_token]


def verify(
    tree: TokenTree,
    target_row: TargetRow,
    params: SamplingParams,
    rng: np.random.Generator,
    *,
    scheme: Scheme | None = None,
    top_logprobs: int | None = None,
) -> Verdict:
    """Walk from the root to the last accepted node and choose the token after it.

    `target_row(node)` returns the target's logits (V,) after that node; it is called once for each node of the path
    and for no other. The emitted tokens are distributed exactly as the target alone would write them, provided that
    the drawn children of each node were placed by the same scheme; without one it is that of `params`.
    `top_logprobs`: how many likeliest tokens to list beside each emitted one with log-probabilities; None: neither.
    """
    scheme = scheme or scheme_for(params)
    path, accepted_ranks = [0], []
    logprobs: list[TokenLogprobs] = []
    while True:
        node = path[-1]
        row = target_row(node)
        judgement = scheme.judge(Children.below(tree, node), row, Place.below(tree, node, params), rng)
        if top_logprobs is not None:
            logprobs.append(token_logprobs(row, judgement.token_id, top_logprobs))
        accepted_ranks.append(0 if judgement.child is None else judgement.child + 1)
        if judgement.child is None:
            return Verdict(
                path=tuple(path),
                next_token=judgement.token_id,
                accepted_ranks=tuple(accepted_ranks),
                num_children=tuple(tree.topology.num_children[path].tolist()),
                logprobs=tuple(logprobs),
            )
        path.append(tree.topology.children(node)[judgement.child])
