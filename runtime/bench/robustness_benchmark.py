"""How often each scheme rejects all of k children, over temperatures and top-p, and what a tree makes of that.

The target writes texts with every setting, many at a time (see `calibration.texts`), and at each of their positions all
schemes look at the same two rows of logits: only numbers are kept. Tokens per pass are predicted from each scheme's own
acceptance by rank, for its own best tree of a size, as if it were the same at every node. Prints nothing. Sequoia
(arXiv 2402.12374, section 4.2, robustness).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bench.scheme_acceptance import (
    SCHEME_NAMES,
    PositionRows,
    best_tree_tokens,
    position_acceptance,
    rejection_of,
)
from runtime.calibration.texts import TextWriter
from runtime.engine.loading import OpenSession
from runtime.prompts.prompt_file import PromptRequest
from runtime.sampling_params import SamplingParams
from runtime.speculation.sampling import Floats, logits_to_probs, sample, top_tokens

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
TOP_PS = (0.8, 0.9, 1.0)
NUM_CHILDREN = 16
NUM_NOISE_DRAWS = 8
"""Draws of the shared noise at each position: the one scheme without a formula."""
TEXTS_PER_SETTING = 4
"""Written side by side."""


@dataclass(frozen=True, slots=True)
class SchemeRobustness:
    """One scheme with one setting."""

    scheme: str
    """Its name; at temperature 0 all are the same."""
    rejection: tuple[float, ...]
    """How often the target accepts none of 1, 2, .. children."""
    rejection_errors: tuple[float, ...]
    """The standard error of each, over positions."""
    tokens_per_pass: float
    """Predicted for the scheme's own best tree."""


@dataclass(frozen=True, slots=True)
class SettingRobustness:
    """All schemes with one setting, over the same positions."""

    temperature: float
    """Of target and draft."""
    top_p: float
    """The same; at temperature 0 it changes nothing."""
    num_positions: int
    """Tokens of the target's own texts that were looked at."""
    schemes: tuple[SchemeRobustness, ...]
    """In the order of SCHEME_NAMES."""


@dataclass(frozen=True, slots=True)
class RobustnessReport:
    """What `overstory bench robustness` shows."""

    target: str
    """Name of the target's folder."""
    draft: str
    """Name of the draft's folder, or `substitute`."""
    tree_nodes: int
    """Nodes of the trees, the root counted."""
    num_noise_draws: int
    """Draws of the noise at each position for the coupled scheme."""
    settings: tuple[SettingRobustness, ...]
    """By temperature, then top-p."""

    def to_record(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)


def all_settings() -> tuple[SamplingParams, ...]:
    """Every temperature with every top-p, and temperature 0 once."""
    sampled = [SamplingParams(temperature=heat, top_p=top_p) for heat in TEMPERATURES if heat for top_p in TOP_PS]
    return (SamplingParams(temperature=0.0), *sampled)


def run_robustness_benchmark(
    opened: OpenSession,
    requests: Sequence[PromptRequest],
    *,
    num_positions: int = 128,
    tree_nodes: int = 64,
    seed: int = 0,
) -> Iterator[str | SettingRobustness | RobustnessReport]:
    """Yield sentences of progress, each setting's figures, and last the whole.

    Settings have at least `num_positions` positions each; temperature 0 may have fewer, as its texts are the same every
    time. Raises OptionError if the first prompt leaves no room for an answer.
    """
    settings = all_settings()
    writer, rng = TextWriter(opened, requests, seed=seed), np.random.default_rng(seed)
    found = {params: _Sums() for params in settings}
    while wanted := _open_settings(found, num_positions):
        writer.begin(dict.fromkeys(wanted, TEXTS_PER_SETTING))
        while len(_open_settings(found, num_positions)) > 0:
            tokens = list[int]()
            for text, target_row, draft_row in writer.rows():
                acceptance, token_id = _look(text.params, target_row, draft_row, rng)
                found[text.params].add(acceptance)
                tokens.append(token_id)
            if not tokens:
                break
            writer.grow(tokens)
            fewest = min(sums.count for params, sums in found.items() if not params.is_greedy)
            yield f"{fewest} of {num_positions} positions of each setting"
    reports = []
    for params, sums in found.items():
        reports.append(sums.report(params, tree_nodes))
        yield reports[-1]
    target, draft_name = opened.plan.target_name, opened.plan.draft_name
    yield RobustnessReport(target, draft_name, tree_nodes, NUM_NOISE_DRAWS, tuple(reports))


class _Sums:
    """Over the positions of one setting."""

    def __init__(self) -> None:
        self.count = 0
        self._acceptance = {name: np.zeros(1) for name in SCHEME_NAMES}
        self._squares = {name: np.zeros(1) for name in SCHEME_NAMES}

    def add(self, by_scheme: Mapping[str, NDArray[np.float64]]) -> None:
        self.count += 1
        for name, acceptance in by_scheme.items():
            self._acceptance[name] = self._acceptance[name] + acceptance
            self._squares[name] = self._squares[name] + rejection_of(acceptance) ** 2

    def report(self, params: SamplingParams, tree_nodes: int) -> SettingRobustness:
        schemes = [self._of_scheme(name, tree_nodes) for name in SCHEME_NAMES]
        return SettingRobustness(params.temperature, params.top_p, self.count, tuple(schemes))

    def _of_scheme(self, name: str, tree_nodes: int) -> SchemeRobustness:
        mean = self._acceptance[name] / self.count
        rejection = rejection_of(mean)
        variance = np.maximum(self._squares[name] / self.count - rejection**2, 0)
        errors = np.sqrt(variance / max(self.count - 1, 1))
        return SchemeRobustness(
            name, _rounded(rejection), _rounded(errors), round(best_tree_tokens(mean, tree_nodes), 4)
        )


def _open_settings(found: Mapping[SamplingParams, _Sums], num_positions: int) -> list[SamplingParams]:
    """Those that need more positions; greedy texts are written once, as they would be the same again."""
    return [
        params
        for params, sums in found.items()
        if (sums.count == 0 if params.is_greedy else sums.count < num_positions)
    ]


def _look(
    params: SamplingParams, target_row: Floats, draft_row: Floats, rng: np.random.Generator
) -> tuple[Mapping[str, NDArray[np.float64]], int]:
    """What every scheme accepts here, and the token that the target goes on with."""
    num_children = min(NUM_CHILDREN, len(draft_row))
    row = np.asarray(draft_row, dtype=np.float32)
    if params.is_greedy:
        token_id = int(top_tokens(target_row, 1)[0])
        hits = (top_tokens(row, num_children) == token_id).astype(np.float64)
        return dict.fromkeys(SCHEME_NAMES, hits), token_id
    target_probs = np.asarray(logits_to_probs(target_row, params), dtype=np.float64)
    draft_probs = np.asarray(logits_to_probs(row, params), dtype=np.float64)
    rows = PositionRows(target_probs, draft_probs, row)
    acceptance = position_acceptance(rows, num_children, rng, num_noise_draws=NUM_NOISE_DRAWS)
    return acceptance, sample(target_probs, rng)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
