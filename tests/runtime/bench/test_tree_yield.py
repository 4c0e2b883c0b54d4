"""Yields that are counted: by hand, against the model they must agree with, and against a real session's rounds."""

import numpy as np
import pytest

from runtime.bench.tree_yield import count_yield, count_yield_by_size, error_between
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import best_first, expected_tokens


def test_a_tree_is_followed_as_far_as_the_ranks_allow() -> None:
    """Root with two children, the first of which has one: three positions, counted by hand."""
    tree = TreeTopology.from_child_counts([2, 1, 0, 0])
    ranks = np.array([1, 1, 2, 1, 0])
    found = count_yield(tree, [ranks])
    # starts 0: 1,1 -> 3 tokens; 1: 1 then 2 -> 2 tokens; 2: 2 is a leaf -> 2 tokens
    assert found.num_positions == 3
    assert found.mean == pytest.approx(7 / 3)


def test_a_token_without_a_rank_ends_the_round() -> None:
    assert count_yield(TreeTopology.chain(3), [np.array([0, 1, 1])]).mean == 1.0


def test_the_root_alone_emits_one_token_at_every_position() -> None:
    found = count_yield(TreeTopology.single(), [np.array([1, 3, 0]), np.array([2])])
    assert (found.mean, found.num_positions) == (1.0, 4)


def test_texts_too_short_for_the_tree_count_for_nothing() -> None:
    found = count_yield(TreeTopology.chain(9), [np.array([1, 1])])
    assert np.isnan(found.mean)
    assert found.num_positions == 0


def test_independent_ranks_bring_what_the_positional_model_expects() -> None:
    acceptance = np.array([0.7, 0.15, 0.05])
    rng = np.random.default_rng(3)
    texts = [rng.choice([1, 2, 3, 0], size=2000, p=[*acceptance, 0.1]) for _ in range(4)]
    search = best_first(acceptance, 60, 8)
    by_size = count_yield_by_size(search, texts, horizon=7)
    for size in (1, 2, 10, 60):
        tree = search.topology(size)
        found = count_yield(tree, texts)
        assert found.mean == pytest.approx(expected_tokens(tree, acceptance), abs=4 * found.standard_error + 1e-9)
        assert by_size.means[size - 1] == pytest.approx(found.mean, rel=0.01)
        assert by_size.standard_errors[size - 1] == pytest.approx(found.standard_error, rel=0.2, abs=1e-9)


def test_growing_trees_never_lose_tokens() -> None:
    rng = np.random.default_rng(5)
    by_size = count_yield_by_size(best_first([0.6, 0.2], 40, 12), [rng.integers(0, 4, 300)], horizon=11).means
    assert by_size[0] == 1.0
    assert (np.diff(by_size) >= 0).all()


def test_the_error_is_that_between_texts() -> None:
    """An easy text of 20 starts that bring 2 tokens, a hard one of 10 that bring 1: mean 5/3, surpluses 20/3 each."""
    found = count_yield(TreeTopology.chain(2), [np.ones(21, dtype=np.int64), np.zeros(11, dtype=np.int64)])
    assert found.mean == pytest.approx(5 / 3)
    assert found.standard_error == pytest.approx(np.sqrt(2 * 2 * (20 / 3) ** 2) / 30)


def test_one_text_says_nothing_about_others() -> None:
    assert np.isinf(error_between(np.array([[3.0, 4.0]]), np.array([2]))).all()
    assert np.isinf(count_yield(TreeTopology.chain(2), [np.ones(40, dtype=np.int64)]).standard_error)


def test_no_text_long_enough_leaves_no_number() -> None:
    found = count_yield_by_size(best_first([0.5], 3, 3), [np.ones(2, dtype=np.int64)], horizon=2)
    assert np.isnan(found.means).all() and np.isinf(found.standard_errors).all()
