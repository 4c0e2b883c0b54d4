"""How often each scheme rejects all of k children, over temperatures and top-p, and what a tree makes of that.

The target writes texts with every setting, many at a time, and at each of their positions all schemes look at the same
two rows of logits: by formulas where there are any, sequoia for one sequence of draws, coupled over draws of the noise.
Tokens per pass are predicted from each scheme's own acceptance by rank, for its own best tree of a size, as if it were
the same at every node. Sequoia (arXiv 2402.12374, section 4.2, robustness).
"""

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.calibration.texts import GrowingText, TextWriter
from runtime.config import SamplingParams
from runtime.engine.loading import OpenSession
from runtime.prompts.prompt_file import PromptRequest
from runtime.speculation.rejection import node_outcome
from runtime.speculation.sampling import Floats, Probs, draw_while_mass, logits_to_probs, sample, top_tokens
from runtime.speculation.schemes import Row, fill_up
from runtime.speculation.tree_search import best_first, make_non_increasing

SCHEME_NAMES = ("sequoia", "coupled", "specinfer", "top-k")
"""The schemes that are compared, in the order shown."""
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
TOP_PS = (0.8, 0.9, 1.0)
SETTINGS = (
    SamplingParams(temperature=0.0),
    *(SamplingParams(temperature=heat, top_p=top_p) for heat in TEMPERATURES for top_p in TOP_PS),
)
"""Every temperature with every top-p, and temperature 0, where top-p changes nothing, once."""
NUM_CHILDREN = 16
NUM_NOISE_DRAWS = 8
"""Draws of the shared noise at each position: coupled is the one scheme without a formula."""
TEXTS_PER_SETTING = 4
"""Texts that are written side by side."""
_SHOWN_CHILDREN = (1, 2, 4, 8, 16)
_LEAST_EXPONENTIAL = np.finfo(np.float32).tiny

Acceptance = Mapping[str, NDArray[np.float64]]
"""By scheme, how likely each of K children is the accepted one at some position, (K,)."""


def robustness_lines(report: Mapping[str, Any]) -> list[str]:
    """Say for people what each setting and scheme rejects after some numbers of children, and its tokens per pass."""
    rows = [
        f"{setting['temperature']:>4g} {setting['top_p']:>6g} {scheme['scheme']:<10}"
        + "".join(f"{scheme['rejection'][count - 1]:>7.3f}" for count in _SHOWN_CHILDREN)
        + f"{scheme['tokens_per_pass']:>8.2f}"
        for setting in report["settings"]
        for scheme in setting["schemes"]
    ]
    return [
        f"rejection rate after so many children, and tokens per pass of {report['tree_nodes']} nodes (predicted)",
        f"{'T':>4} {'top-p':>6} {'scheme':<10}{''.join(f'{count:>7}' for count in _SHOWN_CHILDREN)}  tokens",
        *rows,
    ]


def run_robustness(
    opened: OpenSession,
    requests: Sequence[PromptRequest],
    *,
    num_positions: int = 128,
    tree_nodes: int = 64,
    seed: int = 0,
) -> Generator[str, None, dict[str, Any]]:
    """Look at `num_positions` positions of each setting or more, and judge all schemes by the same ones; return all.

    Temperature 0 may have fewer positions, as its texts are the same every time. Raises OptionError if the first prompt
    leaves no room for an answer.
    """
    writer, rng = TextWriter(opened, requests, seed=seed), np.random.default_rng(seed)
    found = {params: list[Acceptance]() for params in SETTINGS}
    while wanted := _open_settings(found, num_positions):
        writer.begin(dict.fromkeys(wanted, TEXTS_PER_SETTING))
        while _open_settings(found, num_positions):
            seen = writer.grow(partial(_look, rng))
            if not seen:
                break
            for params, acceptance in seen:
                found[params].append(acceptance)
            fewest = min(len(positions) for params, positions in found.items() if not params.is_greedy)
            yield f"{fewest} of {num_positions} positions of each setting"
    report = {
        "target": opened.plan.target_name,
        "draft": opened.plan.draft_name,
        "tree_nodes": tree_nodes,
        "num_noise_draws": NUM_NOISE_DRAWS,
        "settings": [
            {
                "temperature": params.temperature,
                "top_p": params.top_p,
                "num_positions": len(positions),
                "schemes": [_summarize(name, positions, tree_nodes) for name in SCHEME_NAMES],
            }
            for params, positions in found.items()
        ],
    }
    yield from robustness_lines(report)
    return report


def _summarize(name: str, positions: Sequence[Acceptance], tree_nodes: int) -> dict[str, Any]:
    acceptance = np.array([by_scheme[name] for by_scheme in positions])  # (P, K)
    mean = acceptance.mean(axis=0)
    errors = rejection_of(acceptance).std(axis=0) / np.sqrt(max(len(positions) - 1, 1))
    return {
        "scheme": name,  # at temperature 0 all are the same
        "rejection": rejection_of(mean).round(5).tolist(),  # how often the target accepts none of 1, 2, .. children
        "rejection_errors": errors.round(5).tolist(),  # the standard error of each, over positions
        "tokens_per_pass": round(best_tree_tokens(mean, tree_nodes), 4),  # predicted for the scheme's own best tree
    }


def _open_settings(found: Mapping[SamplingParams, Sequence[Acceptance]], num_positions: int) -> list[SamplingParams]:
    """Return those that need more positions; greedy texts are written once, as they would be the same again."""
    return [
        params
        for params, positions in found.items()
        if (not positions if params.is_greedy else len(positions) < num_positions)
    ]


def _look(
    rng: np.random.Generator, text: GrowingText, target_row: Floats, draft_row: Floats
) -> tuple[tuple[SamplingParams, Acceptance], int]:
    """Return what every scheme accepts here at the text's setting, and the token that the target goes on with."""
    params, row = text.params, np.asarray(draft_row, dtype=np.float32)
    if params.is_greedy:
        token_id = int(top_tokens(target_row, 1)[0])
        hits = (top_tokens(row, NUM_CHILDREN) == token_id).astype(np.float64)
        return (params, dict.fromkeys(SCHEME_NAMES, hits)), token_id
    target_probs = np.asarray(logits_to_probs(target_row, params), dtype=np.float64)
    draft_probs = np.asarray(logits_to_probs(row, params), dtype=np.float64)
    acceptance = position_acceptance(target_probs, draft_probs, row, NUM_CHILDREN, rng)
    return (params, acceptance), sample(target_probs, rng)


def position_acceptance(
    target_probs: Probs, draft_probs: Probs, draft_row: Row, num_children: int, rng: np.random.Generator
) -> Acceptance:
    """Return what every scheme accepts of `num_children` children; the vocabulary has as many.

    P and Q (V,) are the models' after temperature, top-k and top-p, `draft_row` (V,) the draft's logits before them.
    """
    return {
        "sequoia": _sequoia(target_probs, draft_probs, draft_row, num_children, rng),
        "coupled": _coupled(target_probs, draft_probs, draft_row, num_children, rng),
        "specinfer": _specinfer(target_probs, draft_probs, num_children),
        "top-k": target_probs[top_tokens(draft_row, num_children)],
    }


def rejection_of(acceptance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how likely none of the first 1 .. K children is accepted, (..., K), from acceptance (..., K)."""
    return np.asarray(np.maximum(1 - np.cumsum(acceptance, axis=-1), 0.0))


def best_tree_tokens(acceptance: NDArray[np.float64], num_nodes: int) -> float:
    """Return the most tokens per pass that a tree of `num_nodes` nodes is expected to bring, of any depth."""
    best = best_first(make_non_increasing(acceptance), num_nodes, num_nodes)
    return float(best.expected_tokens[-1])


def _sequoia(
    target_probs: Probs, draft_probs: Probs, draft_row: Row, num_children: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Judge one sequence of draws. Behind them, once Q's mass is gone, stand tokens without any: each is emitted by the
    last residual alone, so with probability P of its own."""
    drawn = draw_while_mass(draft_probs, num_children, rng).tolist()
    acceptance = np.zeros(num_children)
    emitted = int(target_probs.argmax())
    acceptance[: len(drawn)] = node_outcome(target_probs, draft_probs, drawn, emitted=emitted).acceptance
    filled = fill_up(drawn, draft_row, num_children)[len(drawn) :]
    acceptance[len(drawn) :] = target_probs[filled]
    return acceptance


def _coupled(
    target_probs: Probs, draft_probs: Probs, draft_row: Row, num_children: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the mean over draws of the noise. argmax(log P + Gumbel) is argmax(P / E) with E exponential."""
    tokens = np.flatnonzero((target_probs > 0) | (draft_probs > 0))
    target_probs = target_probs[tokens].astype(np.float32)
    draft_probs = draft_probs[tokens].astype(np.float32)
    num_kept = min(num_children, int(np.count_nonzero(draft_probs)))
    acceptance = np.zeros(num_children)
    for _ in range(NUM_NOISE_DRAWS):
        noise = np.maximum(rng.standard_exponential(len(tokens), dtype=np.float32), _LEAST_EXPONENTIAL)
        with np.errstate(over="ignore"):
            emitted = tokens[int((target_probs / noise).argmax())]
            scores = np.minimum(draft_probs / noise, np.finfo(np.float32).max)
        kept = tokens[top_tokens(scores, num_kept)].tolist()
        acceptance[fill_up(kept, draft_row, num_children) == emitted] += 1 / NUM_NOISE_DRAWS
    return acceptance


def _specinfer(target_probs: Probs, draft_probs: Probs, num_children: int) -> NDArray[np.float64]:
    """Return the mean over all draws, by a formula: the residual does not depend on which tokens were drawn.

    With S(beta) the sum of (P - beta Q)+, all of the first j draws are rejected with probability S(beta_j), where
    beta_0 = 0 and beta_(j+1) = beta_j + S(beta_j).
    """
    beta, scales = 0.0, [1.0]
    for _ in range(num_children):
        beta += scales[-1]
        scales.append(min(scales[-1], float(np.maximum(target_probs - beta * draft_probs, 0).sum())))
    return -np.diff(scales)
