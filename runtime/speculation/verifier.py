"""Which candidates survive: the walk down a token tree that leaves exactly the target's distribution.

At each accepted node the children are tried in drawing order against the target's distribution, which after a
rejection shrinks to its residual; the draft's shrinks likewise, since children are drawn without replacement. Knows
no model: target rows are asked for one by one. Sequoia (arXiv 2402.12374, algorithm 2; ALGORITHMS: `sequoia`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.sampling_params import SamplingParams
from runtime.speculation.sampling import logits_to_probs, sample, top_tokens
from runtime.speculation.token_tree import TokenTree

Probs = NDArray[np.float64]
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

    @property
    def num_emitted(self) -> int:
        """Tokens this round emits, 1 or more."""
        return len(self.path)

    def emitted_token_ids(self, tree: TokenTree) -> list[int]:
        """The tokens this round emits, in order; `tree` is the tree that was verified."""
        return [*tree.token_ids[list(self.path[1:])].tolist(), self.next_token]


def verify(tree: TokenTree, target_row: TargetRow, params: SamplingParams, rng: np.random.Generator) -> Verdict:
    """Walk from the root to the last accepted node and choose the token after it.

    `target_row(node)` returns the target's logits (V,) after that node; it is called once for each node of the path
    and for no other. The emitted tokens are distributed exactly as the target alone would write them, provided that
    the children of each node were drawn with `draw_without_replacement` from the node's `draft_probs`. Greedy: the
    child equal to the target's argmax is accepted, and neither `draft_probs` nor `rng` is used.
    Raises ValueError if a node with children has no draft_probs and decoding is not greedy.
    """
    path, accepted_ranks = [0], []
    while True:
        node = path[-1]
        accepted, next_token = _judge(tree, node, target_row(node), params=params, rng=rng)
        accepted_ranks.append(0 if accepted is None else int(tree.topology.ranks[accepted]))
        if accepted is None:
            return Verdict(
                path=tuple(path),
                next_token=next_token,
                accepted_ranks=tuple(accepted_ranks),
                num_children=tuple(tree.topology.num_children[path].tolist()),
            )
        path.append(accepted)


def accept_probability(target_probs: Probs, draft_probs: Probs, token: int) -> float:
    """min(1, P[x] / Q[x]) for a token x that was drawn from Q, so Q[x] > 0."""
    return min(1.0, float(target_probs[token] / draft_probs[token]))


def residual_step(target_probs: Probs, draft_probs: Probs, rejected: Sequence[int]) -> tuple[Probs, Probs]:
    """P and Q, both (V,), after one more rejection: P <- norm(max(P - Q, 0)); Q[x] <- 0, renormalised.

    `rejected` holds all tokens rejected at this node, x the last of them. Once Q's mass is gone it is uniform over
    the tokens not rejected, as the draws were.
    """
    target_left = target_probs - draft_probs
    np.maximum(target_left, 0, out=target_left)
    target_mass = target_left.sum()
    if target_mass > 0:
        target_left /= target_mass
    else:  # P == Q rejects by the last bit of P[x] / Q[x] only, and then there is nothing to subtract
        target_left = target_probs
    draft_left = draft_probs.copy()
    draft_left[rejected[-1]] = 0
    draft_mass = draft_left.sum()
    if draft_mass == 0:
        draft_left[:] = 1
        draft_left[list(rejected)] = 0
        draft_mass = max(len(draft_left) - len(rejected), 1)
    draft_left /= draft_mass
    return target_left, draft_left


def _judge(
    tree: TokenTree, node: int, logits: NDArray[np.float32], *, params: SamplingParams, rng: np.random.Generator
) -> tuple[int | None, int]:
    """The accepted child of `node` and its token, or None and the token that takes its place."""
    children = tree.topology.children(node)
    if params.is_greedy:
        token = int(top_tokens(logits, 1)[0])
        return next((child for child in children if tree.token_ids[child] == token), None), token
    target_probs = np.asarray(logits_to_probs(logits, params), dtype=np.float64)
    if children:
        draft_probs = _draft_probs_of(tree, node)
        rejected: list[int] = []
        for child in children:
            token = int(tree.token_ids[child])
            if rng.random() < accept_probability(target_probs, draft_probs, token):
                return child, token
            rejected.append(token)
            target_probs, draft_probs = residual_step(target_probs, draft_probs, rejected)
    return None, sample(target_probs, rng)


def _draft_probs_of(tree: TokenTree, node: int) -> Probs:
    row = tree.draft_probs.get(node)
    if row is None:
        raise ValueError(f"node {node} has children but no draft_probs, which sampled verification needs")
    probs: Probs = row.astype(np.float64)
    probs /= probs.sum()
    return probs
