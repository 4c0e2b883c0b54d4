"""Predicted yields beside counted ones, on texts whose ranks follow known laws."""

import json

import numpy as np
import pytest

from runtime.bench.yield_check import Prediction, check_yields, expected_by_size
from runtime.speculation.tree_search import best_first, expected_tokens

BY_RANK = np.array([0.7, 0.12, 0.05, 0.03])


def prediction(by_rank: np.ndarray, by_depth: np.ndarray, **around: np.ndarray) -> Prediction:
    low, high = around.get("low"), around.get("high")
    return Prediction(by_rank, by_depth, low=low, high=high, num_positions=300, num_texts=9)


def independent_texts(seed: int, num_texts: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice([1, 2, 3, 4, 0], size=1500, p=[*BY_RANK, 0.1]) for _ in range(num_texts)]


def test_where_positions_are_independent_the_positional_model_is_right() -> None:
    report = check_yields(independent_texts(1), prediction(BY_RANK, BY_RANK[None, :]), max_nodes=256)
    curve = report.curve
    assert curve.worst_error_by_rank < 0.03
    assert curve.by_depth == pytest.approx(curve.by_rank)
    assert curve.log_slope > 0
    assert curve.log_r_squared > 0.95
    for chain in report.chains:
        assert chain.standard_error is not None
        assert chain.measured == pytest.approx(chain.by_rank, abs=4 * chain.standard_error)


def test_where_easy_stretches_alternate_with_hard_ones_depth_repairs_the_chains() -> None:
    """Rank 1 always in one half of the text, half the time in the other: paths that got far lie in the easy half."""
    rng = np.random.default_rng(2)
    texts = []
    for _ in range(4):
        halves = [np.ones(200, dtype=np.int64), rng.choice([1, 0], size=200)] * 5
        texts.append(np.concatenate(halves))
    by_rank = np.array([0.75])
    by_depth = np.array([[0.75], [5 / 6], [0.9], [0.944], [0.971], [0.985], [0.992], [0.996]])
    report = check_yields(texts, prediction(by_rank, by_depth), max_nodes=32, max_levels=32)
    longest = report.chains[-1]
    assert longest.measured > 3 * longest.by_rank
    assert longest.by_depth == pytest.approx(longest.measured, rel=0.15)
    assert report.curve.worst_error_by_depth < 0.3 < report.curve.worst_error_by_rank


def test_other_acceptance_prices_the_same_trees() -> None:
    search = best_first(BY_RANK, 50, 6)
    assert expected_by_size(search, BY_RANK) == pytest.approx(search.expected_tokens)
    matrix = np.array([[0.5, 0.2], [0.8, 0.1]])
    assert expected_by_size(search, matrix)[-1] == pytest.approx(expected_tokens(search.topology(50), matrix))


def test_answers_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="deepest tree"):
        check_yields([np.array([1, 1])], prediction(BY_RANK, BY_RANK[None, :]))


def test_a_prediction_has_the_error_of_its_acceptance() -> None:
    """Half of what a chain of two brings between first ranks of 0.6 and 0.8; none where none is known."""
    texts, row = independent_texts(4, 2), BY_RANK[None, :]
    around = {"low": np.array([[0.6, 0.1]]), "high": np.array([[0.8, 0.1]])}
    report = check_yields(texts, prediction(BY_RANK, row, **around), max_nodes=8, max_levels=4)
    assert report.chains[0].by_depth_error == pytest.approx(0.1)
    assert report.curve.by_depth_errors[:2] == pytest.approx((0.0, 0.1))
    assert (report.num_predicted_positions, report.num_predicted_texts) == (300, 9)
    unknown = check_yields(texts, prediction(BY_RANK, row), max_nodes=8, max_levels=4)
    assert unknown.chains[0].by_depth_error is None
    assert unknown.curve.by_depth_errors == (None,) * 8


def test_a_single_text_has_no_error() -> None:
    report = check_yields(independent_texts(5, 1), prediction(BY_RANK, BY_RANK[None, :]), max_nodes=8, max_levels=4)
    assert report.curve.measured_errors == (None,) * 8
    assert report.chains[0].standard_error is None
    json.dumps(report.to_record(), allow_nan=False)


def test_the_record_is_json_with_the_powers_of_two() -> None:
    report = check_yields(independent_texts(3, 2), prediction(BY_RANK, BY_RANK[None, :]), max_nodes=64)
    record = json.loads(json.dumps(report.to_record()))
    assert list(record["curve"]["measured"]) == ["1", "2", "4", "8", "16", "32", "64"]
    assert len(record["chains"]) == 6
