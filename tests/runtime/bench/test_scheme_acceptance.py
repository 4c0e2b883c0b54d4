"""Formulas against what the shipped schemes really accept, and trees against the search for plain vectors."""

import numpy as np
import pytest

from runtime.bench.scheme_acceptance import (
    SCHEME_NAMES,
    PositionRows,
    best_tree_tokens,
    position_acceptance,
    rejection_of,
)
from runtime.sampling_params import SamplingParams
from runtime.speculation.sampling import logits_to_probs
from runtime.speculation.schemes import Place, scheme_for
from runtime.speculation.tree_search import dynamic_program, make_non_increasing

NUM_PLAYED = 1500


def rows_for(params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    target = rng.standard_normal(9).astype(np.float32) * 1.5
    return target, (0.7 * target + rng.standard_normal(9)).astype(np.float32)


def played_rejection(name: str, num_children: int, params: SamplingParams) -> float:
    """How often the shipped scheme accepts no child."""
    target, draft = rows_for(params)
    chosen = SamplingParams(temperature=params.temperature, top_p=params.top_p, verification=name)
    scheme, rng, rejected = scheme_for(chosen), np.random.default_rng(8), 0
    for position in range(NUM_PLAYED):
        place = Place(chosen, position)
        rejected += scheme.judge(scheme.place(draft, num_children, place, rng), target, place, rng).child is None
    return rejected / NUM_PLAYED


@pytest.mark.parametrize("params", [SamplingParams(temperature=1), SamplingParams(temperature=1, top_p=0.6)], ids=str)
def test_rejections_are_those_of_the_shipped_schemes(params: SamplingParams) -> None:
    """1, 2 and 5 children, 1,500 nodes each, seeds 8 and 9, within 4.5 standard errors; top-p leaves few tokens."""
    target, draft = rows_for(params)
    rows = PositionRows(logits_to_probs(target, params), logits_to_probs(draft, params), draft)
    rng = np.random.default_rng(9)
    found = [position_acceptance(rows, 5, rng, num_noise_draws=4) for _ in range(400)]
    for name in SCHEME_NAMES:
        rejection = np.mean([rejection_of(by_scheme[name]) for by_scheme in found], axis=0)
        for num_children in (1, 2, 5):
            expected = rejection[num_children - 1]
            error = np.sqrt(max(expected * (1 - expected), 1e-6) * 2 / NUM_PLAYED)
            played = played_rejection(name, num_children, params)
            assert played == pytest.approx(expected, abs=4.5 * error), (name, num_children)


def test_equal_models_are_never_rejected_where_children_are_drawn() -> None:
    params = SamplingParams(temperature=1)
    target, _ = rows_for(params)
    probs = logits_to_probs(target, params)
    found = position_acceptance(PositionRows(probs, probs, target), 3, np.random.default_rng(0), num_noise_draws=5)
    for name in ("sequoia", "coupled", "specinfer"):
        assert rejection_of(found[name]) == pytest.approx(0, abs=1e-6), name
    assert rejection_of(found["top-k"])[0] == pytest.approx(1 - probs.max())


@pytest.mark.parametrize("vector", [[0.7, 0.2, 0.05], [0.9], [0.3, 0.3, 0.2, 0.1], [0.5, 0.1, 0.2]], ids=str)
@pytest.mark.parametrize("num_nodes", [1, 2, 7, 40])
def test_the_best_tree_is_that_of_the_search(vector: list[float], num_nodes: int) -> None:
    """The last vector is one as it may be measured: its ranks are pooled."""
    expected = dynamic_program(make_non_increasing(vector), num_nodes, num_nodes).expected_tokens[-1, -1]
    assert best_tree_tokens(np.array(vector), num_nodes) == pytest.approx(expected)
