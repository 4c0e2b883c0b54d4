"""What each verification scheme would accept at one position, and what the best tree makes of it. Pure NumPy.

Means over positions of what is returned here are what the scheme accepts, by formulas where there are any: sequoia of
one sequence of draws, coupled over draws of the noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.speculation.rejection import node_outcome
from runtime.speculation.sampling import Probs, draw_while_mass, top_tokens
from runtime.speculation.schemes import Row, fill_up
from runtime.speculation.tree_search import best_first, make_non_increasing

SCHEME_NAMES = ("sequoia", "coupled", "specinfer", "top-k")
"""Those that are compared, in the order shown."""
_LEAST_EXPONENTIAL = np.finfo(np.float32).tiny


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
) -> Mapping[str, NDArray[np.float64]]:
    """By scheme: how likely each of `num_children` children, which the vocabulary must have, is the accepted one."""
    return {
        "sequoia": _sequoia(rows, num_children, rng),
        "coupled": _coupled(rows, num_children, rng, num_noise_draws),
        "specinfer": _specinfer(rows, num_children),
        "top-k": rows.target_probs[top_tokens(rows.draft_row, num_children)],
    }


def rejection_of(acceptance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how likely none of the first 1 .. K children is accepted, (K,), from acceptance (K,)."""
    return np.asarray(np.maximum(1 - np.cumsum(acceptance), 0.0))


def best_tree_tokens(acceptance: NDArray[np.float64], num_nodes: int) -> float:
    """Return the most tokens per pass that a tree of `num_nodes` nodes is expected to bring, of any depth."""
    best = best_first(make_non_increasing(acceptance), num_nodes, num_nodes)
    return float(best.expected_tokens[-1])


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


def _specinfer(rows: PositionRows, num_children: int) -> NDArray[np.float64]:
    """With S(beta) the sum of (P - beta Q)+, all of the first j draws are rejected with probability S(beta_j), where
    beta_0 = 0 and beta_(j+1) = beta_j + S(beta_j): the residual does not depend on which tokens were drawn."""
    target_probs, draft_probs = rows.target_probs, rows.draft_probs
    beta, scales = 0.0, [1.0]
    for _ in range(num_children):
        beta += scales[-1]
        scales.append(min(scales[-1], float(np.maximum(target_probs - beta * draft_probs, 0).sum())))
    return -np.diff(scales)
