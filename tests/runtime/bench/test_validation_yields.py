"""Yields counted by hand and against the model they must agree with, beside predicted ones, where ranks follow laws."""

import json
from dataclasses import replace

import numpy as np
import pytest

from profiles.pair_profile import AcceptanceTable, PairProfile
from runtime.bench.validation import check_yields, count_yields
from runtime.speculation.acceptance import builtin_acceptance
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import best_first, expected_tokens, node_worths
from tests.support.profile_factory import PAIR
from tests.support.trees import tree_of_counts

BY_RANK = np.array([0.7, 0.12, 0.05, 0.03])


MANY = 10**9
"""Positions, so many that what was measured is believed as it is."""


def pair(by_rank: np.ndarray, by_depth: np.ndarray | None = None, *, error: float | None = None) -> PairProfile:
    """A pair of this acceptance, no rank beyond which was ever accepted; `error` is the first rank's."""
    rows = np.atleast_2d(by_rank if by_depth is None else by_depth)
    width = len(builtin_acceptance(substitute_held=None))
    ranks, *depths = (tuple(np.pad(row, (0, width - len(row))).tolist()) for row in (by_rank, *rows))
    errors = (error, *[None] * (width - 1))
    table = AcceptanceTable(0.0, ranks, errors, (MANY,) * width, tuple(depths), (MANY,) * len(depths), 9)
    return replace(PAIR, acceptance=(table,))


def independent_texts(seed: int, num_texts: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice([1, 2, 3, 4, 0], size=1500, p=[*BY_RANK, 0.1]) for _ in range(num_texts)]


def test_where_positions_are_independent_the_positional_model_is_right() -> None:
    report = check_yields(independent_texts(1), pair(BY_RANK), max_nodes=256)
    assert report["worst_error_by_rank"] < 0.03
    assert [tree["by_depth"] for tree in report["trees"]] == pytest.approx(
        [tree["by_rank"] for tree in report["trees"]]
    )
    assert report["log_slope"] > 0
    assert report["log_r_squared"] > 0.95
    for chain in report["chains"]:
        assert chain["standard_error"] is not None
        assert chain["measured"] == pytest.approx(chain["by_rank"], abs=4 * chain["standard_error"])


def test_where_easy_stretches_alternate_with_hard_ones_depth_repairs_the_chains() -> None:
    """Rank 1 always in one half of the text, half the time in the other: paths that got far lie in the easy half."""
    rng = np.random.default_rng(2)
    texts = []
    for _ in range(4):
        halves = [np.ones(200, dtype=np.int64), rng.choice([1, 0], size=200)] * 5
        texts.append(np.concatenate(halves))
    by_rank = np.array([0.75])
    by_depth = np.array([[0.75], [5 / 6], [0.9], [0.944], [0.971], [0.985], [0.992], [0.996]])
    report = check_yields(texts, pair(by_rank, by_depth), max_nodes=32, max_levels=32)
    longest = report["chains"][-1]
    assert longest["measured"] > 3 * longest["by_rank"]
    assert longest["by_depth"] == pytest.approx(longest["measured"], rel=0.15)
    assert report["worst_error_by_depth"] < 0.3 < report["worst_error_by_rank"]


def test_other_acceptance_prices_the_same_trees() -> None:
    search = best_first(BY_RANK, 50, 6)
    assert np.cumsum(node_worths(search, BY_RANK)) == pytest.approx(search.expected_tokens)
    matrix = np.array([[0.5, 0.2], [0.8, 0.1]])
    assert node_worths(search, matrix).sum() == pytest.approx(expected_tokens(search.topology(50), matrix))


def test_answers_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="deepest tree"):
        check_yields([np.array([1, 1])], pair(BY_RANK))


def test_a_prediction_has_the_error_of_its_acceptance() -> None:
    """Half of what a chain of two brings between first ranks of 0.6 and 0.8; none where none is known."""
    texts = independent_texts(4, 2)
    report = check_yields(texts, pair(BY_RANK, error=0.1), max_nodes=8, max_levels=4)
    assert report["chains"][0]["by_depth_error"] == pytest.approx(0.1)
    assert [tree["by_depth_error"] for tree in report["trees"][:2]] == pytest.approx([0.0, 0.1])
    assert (report["num_predicted_positions"], report["num_predicted_texts"]) == (MANY, 9)
    unknown = check_yields(texts, pair(BY_RANK), max_nodes=8, max_levels=4)
    assert unknown["chains"][0]["by_depth_error"] is None
    assert [tree["by_depth_error"] for tree in unknown["trees"]] == [None] * 4


def test_a_single_text_has_no_error() -> None:
    report = check_yields(independent_texts(5, 1), pair(BY_RANK), max_nodes=8, max_levels=4)
    assert [tree["standard_error"] for tree in report["trees"]] == [None] * 4
    assert report["chains"][0]["standard_error"] is None
    json.dumps(report, allow_nan=False)


def test_the_record_is_json_with_the_powers_of_two() -> None:
    report = check_yields(independent_texts(3, 2), pair(BY_RANK), max_nodes=64)
    record = json.loads(json.dumps(report, allow_nan=False))
    assert [tree["num_nodes"] for tree in record["trees"]] == [1, 2, 4, 8, 16, 32, 64]
    assert len(record["chains"]) == 6


def test_a_tree_is_followed_as_far_as_the_ranks_allow() -> None:
    """Root with two children, the first of which has one: three positions, counted by hand."""
    tree = tree_of_counts([2, 1, 0, 0])
    ranks = np.array([1, 1, 2, 1, 0])
    # starts 0: 1,1 -> 3 tokens; 1: 1 then 2 -> 2 tokens; 2: 2 is a leaf -> 2 tokens
    assert count_yields(tree, [ranks])[0][-1] == pytest.approx(7 / 3)


def test_a_token_without_a_rank_ends_the_round() -> None:
    assert count_yields(TreeTopology.chain(3), [np.array([0, 1, 1])])[0][-1] == 1.0


def test_the_root_alone_emits_one_token_at_every_position() -> None:
    assert count_yields(TreeTopology.single(), [np.array([1, 3, 0]), np.array([2])])[0][-1] == 1.0


def test_texts_too_short_for_the_tree_count_for_nothing() -> None:
    assert np.isnan(count_yields(TreeTopology.chain(9), [np.array([1, 1])])[0][-1])
    assert count_yields(TreeTopology.chain(3), [np.array([1, 1]), np.array([0, 0, 0])])[0][-1] == 1.0


def test_independent_ranks_bring_what_the_positional_model_expects() -> None:
    acceptance = np.array([0.7, 0.15, 0.05])
    rng = np.random.default_rng(3)
    texts = [rng.choice([1, 2, 3, 0], size=2000, p=[*acceptance, 0.1]) for _ in range(4)]
    search = best_first(acceptance, 60, 8)
    means, errors = count_yields(search, texts)
    for size in (1, 2, 10, 60):
        tree = search.topology(size)
        mean, error = (found[-1] for found in count_yields(tree, texts))
        assert mean == pytest.approx(expected_tokens(tree, acceptance), abs=4 * error + 1e-9)
        assert means[size - 1] == pytest.approx(mean, rel=0.01)
        assert errors[size - 1] == pytest.approx(error, rel=0.2, abs=1e-9)


def test_growing_trees_never_lose_tokens() -> None:
    rng = np.random.default_rng(5)
    by_size, _ = count_yields(best_first([0.6, 0.2], 40, 12), [rng.integers(0, 4, 300)])
    assert by_size[0] == 1.0
    assert (np.diff(by_size) >= 0).all()


def test_the_error_is_that_between_texts() -> None:
    """An easy text of 20 starts that bring 2 tokens, a hard one of 10 that bring 1: mean 5/3, surpluses 20/3 each."""
    texts = [np.ones(21, dtype=np.int64), np.zeros(11, dtype=np.int64)]
    mean, error = (found[-1] for found in count_yields(TreeTopology.chain(2), texts))
    assert mean == pytest.approx(5 / 3)
    assert error == pytest.approx(np.sqrt(2 * 2 * (20 / 3) ** 2) / 30)


def test_one_text_says_nothing_about_others() -> None:
    assert np.isinf(count_yields(TreeTopology.chain(2), [np.ones(40, dtype=np.int64)])[1][-1])


def test_no_text_long_enough_leaves_no_number() -> None:
    means, errors = count_yields(best_first([0.5], 3, 3), [np.ones(2, dtype=np.int64)])
    assert np.isnan(means).all() and np.isinf(errors).all()
