"""What each verification scheme would accept at one position, and what the best tree makes of it. Pure NumPy.

A node with b children accepts child i < b with probability others[i] and its last child with last[b]; only the hybrid,
whose drawn child is the last, has two different vectors. Means over positions of what is returned here are what the
scheme accepts, by formulas where there are any: sequoia of one sequence of draws, coupled over draws of the noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.speculation.child_acceptance import node_outcome
from runtime.speculation.sampling import Probs, draw_while_mass, top_tokens
from runtime.speculation.scheme import Row, fill_up

SCHEME_NAMES = ("sequoia", "coupled", "hybrid", "specinfer", "top-k")
"""Those that are compared, in the order shown."""
_LEAST_EXPONENTIAL = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True, eq=False)
class ChildAcceptance:
    """How likely each child is the accepted one."""

    others: NDArray[np.float64]
    """(K,) by rank, if more children follow."""
    last: NDArray[np.float64]
    """(K,) by rank, if it is the last child."""

    def rejection(self) -> NDArray[np.float64]:
        """(K,) how likely none of the first 1 .. K children is accepted, if there are so many."""
        before = np.concatenate(([0.0], np.cumsum(self.others)[:-1]))
        return np.asarray(np.maximum(1 - before - self.last, 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class PositionRows:
    """What the models say at one position, after temperature, top-k and top-p."""

    target_probs: Probs
    """P (V,), sum 1."""
    draft_probs: Probs
    """Q (V,), sum 1."""
    draft_row: Row
    """(V,) the draft's logits."""


def position_acceptance(
    rows: PositionRows, num_children: int, rng: np.random.Generator, *, num_noise_draws: int
) -> Mapping[str, ChildAcceptance]:
    """By scheme, for up to `num_children` children, which the vocabulary must have."""
    likely = top_tokens(rows.draft_row, num_children)
    matched, shrinking = rows.target_probs[likely], _specinfer(rows, num_children)
    drawn, shared = _sequoia(rows, num_children, rng), _coupled(rows, num_children, rng, num_noise_draws)
    return {
        "sequoia": ChildAcceptance(drawn, drawn),
        "coupled": ChildAcceptance(shared, shared),
        "hybrid": ChildAcceptance(matched, _drawn_last(rows, likely)),
        "specinfer": ChildAcceptance(shrinking, shrinking),
        "top-k": ChildAcceptance(matched, matched),
    }


def best_tree_tokens(acceptance: ChildAcceptance, num_nodes: int) -> float:
    """G(num_nodes): the most tokens per pass that a tree of so many nodes is expected to bring, of any depth.

    As in `tree_search`, acceptance is taken to be the same at every node. With H(j, m) the most of m nodes below the
    first j children, G(n) = 1 + max over b, y of H(b - 1, n - 1 - y) + last[b] G(y), and H likewise with others.
    """
    others, last = acceptance.others[: num_nodes - 1], acceptance.last[: num_nodes - 1]
    worths = np.zeros(num_nodes + 1)
    below = np.full((len(others) + 1, num_nodes + 1), -np.inf)
    below[0, 0] = 0.0
    worths[1] = 1.0
    for size in range(1, num_nodes):
        left = below[:-1, size - 1 :: -1][:, :size]  # (K, size): what the children before have, for 1 .. size nodes
        below[1:, size] = (left + others[:, None] * worths[1 : size + 1]).max(axis=1)
        worths[size + 1] = 1 + (left + last[:, None] * worths[1 : size + 1]).max()
    return float(worths[num_nodes])


def _sequoia(rows: PositionRows, num_children: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """For one sequence of draws. Behind them, once Q's mass is gone, stand tokens without any: each is emitted by the
    last residual alone, so with probability P of its own."""
    drawn = draw_while_mass(rows.draft_probs, num_children, rng).tolist()
    acceptance = np.zeros(num_children)
    emitted = int(rows.target_probs.argmax())
    acceptance[: len(drawn)] = node_outcome(rows.target_probs, rows.draft_probs, drawn, emitted=emitted).acceptance
    filled = fill_up(drawn, rows.draft_row, num_children)[len(drawn) :]
    acceptance[len(drawn) :] = rows.target_probs[filled]
    return acceptance


def _coupled(
    rows: PositionRows, num_children: int, rng: np.random.Generator, num_noise_draws: int
) -> NDArray[np.float64]:
    """The mean over draws of the noise. argmax(log P + Gumbel) is argmax(P / E) with E exponential."""
    tokens = np.flatnonzero((rows.target_probs > 0) | (rows.draft_probs > 0))
    target_probs = rows.target_probs[tokens].astype(np.float32)
    draft_probs = rows.draft_probs[tokens].astype(np.float32)
    num_kept = min(num_children, int(np.count_nonzero(draft_probs)))
    acceptance = np.zeros(num_children)
    for _ in range(num_noise_draws):
        noise = np.maximum(rng.standard_exponential(len(tokens), dtype=np.float32), _LEAST_EXPONENTIAL)
        with np.errstate(over="ignore"):
            emitted = tokens[int((target_probs / noise).argmax())]
            scores = np.minimum(draft_probs / noise, np.finfo(np.float32).max)
        kept = tokens[top_tokens(scores, num_kept)].tolist()
        acceptance[fill_up(kept, rows.draft_row, num_children) == emitted] += 1 / num_noise_draws
    return acceptance


def _drawn_last(rows: PositionRows, likely: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) sum of min(P, Q') for the child drawn off the likeliest b - 1; without mass to draw it is the next one."""
    target_probs, left = rows.target_probs, rows.draft_probs.copy()
    has_both = (target_probs > 0) & (left > 0)
    acceptance = np.zeros(len(likely))
    for rank, token in enumerate(likely):
        mass = float(left.sum())
        if mass > 0:
            acceptance[rank] = np.minimum(target_probs[has_both], left[has_both] / mass).sum()
        else:
            acceptance[rank] = target_probs[token]
        left[token] = 0.0
    return acceptance


def _specinfer(rows: PositionRows, num_children: int) -> NDArray[np.float64]:
    """With S(beta) the sum of (P - beta Q)+, all of the first j draws are rejected with probability S(beta_j), where
    beta_0 = 0 and beta_(j+1) = beta_j + S(beta_j): the residual does not depend on which tokens were drawn."""
    target_probs, draft_probs = rows.target_probs, rows.draft_probs
    beta, scales = 0.0, [1.0]
    for _ in range(num_children):
        beta += scales[-1]
        scales.append(min(scales[-1], float(np.maximum(target_probs - beta * draft_probs, 0).sum())))
    return -np.diff(scales)
