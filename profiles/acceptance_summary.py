"""From positions of the target's own text to acceptance by rank, and by depth and rank, with standard errors.

A position is a place in a text that the target wrote, with what verification would do there on average: how likely
each child that the draft draws is the accepted one (Sequoia, section 4.1; analytic, so with far less variance than
counting). Texts come as they are written, position after position. Knows no models and no files.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from profiles.candidate_chances import fit_spread, log_chances
from profiles.likely_paths import PathLevel, likely_paths, path_weights
from profiles.pair_profile import AcceptanceTable

MAX_DEPTHS = 32
NUM_PATHS = 32
"""Paths that acceptance by depth is asked behind. Over 24 greedy texts of a pair of real models a chain alone overrates
trees of 512 nodes by 11 %, 256 paths underrate trees of 64 nodes by 13 %; any accepted child of 32 underrates trees of
16 to 512 nodes by 23 to 31 %, and 32 paths are off by 6 % at most."""
NUM_GROUPS = 8
"""Of positions, by how sure the draft is."""
GROUP_POSITIONS = 20.0
"""Positions that the model of `candidate_chances` counts for in a group, since far ranks are hardly ever seen."""
MIN_DEPTH_POSITIONS = 20.0
"""A depth has a row of its own if it was reached with at least this much evidence; deeper ones are pooled."""


@dataclass(frozen=True, slots=True, eq=False)
class ForcedPosition:
    """One position of a text."""

    temperature: float
    """Of the text, and of both distributions."""
    text: int
    """Which text; positions of one text come in order, none left out."""
    acceptance: NDArray[np.float64]
    """(R,) how likely the child of each rank is the accepted one."""
    followed: NDArray[np.float64]
    """(R,) how likely the text's token came as the accepted child of each rank, given that the text has it here.

    Or numbers, 0 or more, of which that is the mean over the draft's draws; for greedy texts the same as `acceptance`.
    """
    scores: NDArray[np.float32] | None = None
    """(R,) of the draft's candidates, in logits, the best first; see `candidate_chances`."""
    emitted: int = -1
    """Which of these candidates the text has here; -1 if it has none of them."""


class AcceptanceSummary:
    """Collects positions and makes a table of each temperature."""

    def __init__(self) -> None:
        self._texts: defaultdict[float, defaultdict[int, list[ForcedPosition]]] = defaultdict(lambda: defaultdict(list))

    def add(self, position: ForcedPosition) -> None:
        """Add the next position of its text."""
        self._texts[position.temperature][position.text].append(position)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Those that have a position, ascending."""
        return tuple(sorted(self._texts))

    def num_positions(self, temperature: float) -> int:
        """Positions seen at this temperature."""
        return sum(map(len, self._texts[temperature].values()))

    def table(self, temperature: float) -> AcceptanceTable:
        """Acceptance by rank and by depth at a temperature that has at least one position.

        By rank: means over all N positions. Their standard errors are those between texts, since texts differ more than
        their positions: with sums x_i over the n_i positions of text i of k, and the mean m,

            error^2 = k / (k - 1) sum_i (x_i - m n_i)^2 / N^2;

        a single text has only its positions, as if they were independent: variance / (N - 1).

        By depth: a round may start anywhere, so each position of a text is the root (depth 0) of a path that starts
        there. Position t has depth j on the path that started at t - j, and counts there with the weight W[t, j] of
        `likely_paths.path_weights`: how likely verification went from t - j to t along one of the NUM_PATHS likeliest
        paths. Row j is sum_t W[t, j] acceptance[t] / sum_t W[t, j]: what follows an accepted path of j drafts. If easy
        stretches stay easy, deeper rows are higher. Its number of positions is Kish's effective one,
        (sum W)^2 / sum W^2. Of greedy texts this counts accepted paths.

        A depth has its own row while its number reaches MIN_DEPTH_POSITIONS, at most MAX_DEPTHS - 1 rows; the last row
        pools all deeper ones (each position weighted by the sum of its W there).
        """
        by_text = list(self._texts[temperature].values())
        means = np.mean([position.acceptance for text in by_text for position in text], axis=0)  # (R,)
        levels = likely_paths(means.tolist(), NUM_PATHS)
        texts = [_TextPositions.of(positions, levels) for positions in by_text]
        num_positions, num_ranks = sum(map(len, by_text)), len(means)
        errors = _errors_of(means, [text.acceptance for text in texts])
        rows, evidence = _by_depth(texts)
        return AcceptanceTable(
            temperature=temperature,
            by_rank=_probabilities(means),
            by_rank_errors=errors,
            num_positions=(num_positions,) * num_ranks,
            by_depth=tuple(_probabilities(row) for row in rows),
            by_depth_positions=tuple(max(1, round(float(count))) for count in evidence),
            num_texts=len(texts),
            **_of_context([position for text in by_text for position in text]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _TextPositions:
    """N positions of one text."""

    acceptance: NDArray[np.float64]
    """(N, R)"""
    weights: NDArray[np.float64]
    """(N, D + 1) W[t, j]."""

    @classmethod
    def of(cls, positions: list[ForcedPosition], levels: tuple[PathLevel, ...]) -> "_TextPositions":
        followed = np.stack([position.followed for position in positions])
        return cls(np.stack([position.acceptance for position in positions]), path_weights(followed, levels))

    def weights_at(self, depth: int, *, and_deeper: bool = False) -> NDArray[np.float64]:
        """(N,) of each position at one depth, or at it and all deeper ones together."""
        if depth >= self.weights.shape[1]:
            return np.zeros(len(self.weights))
        return self.weights[:, depth:].sum(axis=1) if and_deeper else self.weights[:, depth]


class _OfContext(TypedDict, total=False):
    spread: float
    by_confidence: tuple[tuple[float, ...], ...]


def _of_context(positions: list[ForcedPosition]) -> _OfContext:
    """What single positions say beyond their mean, of those whose candidates have scores.

    Positions in order of the first candidate's chance, in NUM_GROUPS groups; in each the share of positions at which a
    rank was emitted, drawn towards the mean of what the scores say by GROUP_POSITIONS of it.
    """
    ranked = [(position.scores, position.emitted) for position in positions if position.scores is not None]
    emitted = np.array([index for _, index in ranked], dtype=np.int64)
    if len(ranked) < NUM_GROUPS or not (emitted >= 0).any():
        return {}
    scores = np.stack([row for row, _ in ranked])  # (P, R)
    spread = fit_spread(scores, emitted)
    chances = np.exp(log_chances(scores, spread=spread))
    seen = emitted[:, None] == np.arange(scores.shape[1])
    rows = []
    for group in np.array_split(np.argsort(chances[:, 0], kind="stable"), NUM_GROUPS):
        likely = GROUP_POSITIONS * chances[group].mean(axis=0)
        rows.append(_probabilities((seen[group].sum(axis=0) + likely) / (len(group) + GROUP_POSITIONS)))
    return {"spread": round(spread, 4), "by_confidence": tuple(rows)}


def _errors_of(means: NDArray[np.float64], by_text: list[NDArray[np.float64]]) -> tuple[float | None, ...]:
    """(R,) standard errors of the means over the positions (N_i, R) of all texts; None for a single position."""
    num_positions, num_texts = sum(map(len, by_text)), len(by_text)
    if num_positions < 2:
        return (None,) * len(means)
    if num_texts == 1:
        errors = by_text[0].std(axis=0) / np.sqrt(num_positions - 1)
    else:
        surplus = np.array([text.sum(axis=0) - len(text) * means for text in by_text])  # (k, R)
        errors = np.sqrt(num_texts / (num_texts - 1) * (surplus**2).sum(axis=0)) / num_positions
    return tuple(round(float(error), 7) for error in errors)


def _by_depth(texts: list[_TextPositions]) -> tuple[list[NDArray[np.float64]], list[float]]:
    """The rows (R,) by depth, and the effective positions of each; the last row pools what is deeper."""
    rows: list[NDArray[np.float64]] = []
    evidence: list[float] = []
    for depth in range(MAX_DEPTHS - 1):
        row, count = _weighted(texts, [text.weights_at(depth) for text in texts])
        if depth > 0 and count < MIN_DEPTH_POSITIONS:
            break
        rows.append(row)
        evidence.append(count)
    row, count = _weighted(texts, [text.weights_at(len(rows), and_deeper=True) for text in texts])
    if count > 0:
        rows.append(row)
        evidence.append(count)
    return rows, evidence


def _weighted(texts: list[_TextPositions], weights: list[NDArray[np.float64]]) -> tuple[NDArray[np.float64], float]:
    """Weighted mean of the acceptance, (R,), and the effective number of positions, 0 if no weight is left."""
    every = np.concatenate(weights)  # (N,)
    total = float(every.sum())
    if total <= 0:
        return np.zeros(texts[0].acceptance.shape[1]), 0.0
    sums = sum((weight @ text.acceptance for weight, text in zip(weights, texts, strict=True)), start=np.zeros(()))
    return np.asarray(sums / total), total**2 / float((every**2).sum())


def _probabilities(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Rounded to what a profile needs; sums of rounding errors must not exceed 1."""
    return tuple(round(float(value), 7) for value in np.clip(values, 0.0, 1.0))
