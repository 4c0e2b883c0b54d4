"""The searches against the reference trees, brute force over all small trees, a plain heap, and each other."""

import heapq
import itertools
from functools import cache

import numpy as np
import pytest

from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import (
    best_first,
    best_first_by_levels,
    dynamic_program,
    expected_tokens,
    make_non_increasing,
)
from tests.support.paths import REFERENCE_TREES
from tests.support.trees import tree_of_counts

LLAMA = REFERENCE_TREES["llama3_70b_8b_cnn"]
LLAMA_SORTED = make_non_increasing(LLAMA["acceptance"])


@cache
def all_child_counts(num_nodes: int) -> tuple[tuple[int, ...], ...]:
    """Child counts, breadth first, of every ordered tree of this size."""
    trees = []
    for counts in itertools.product(range(num_nodes), repeat=num_nodes):
        if sum(counts) == num_nodes - 1 and all(sum(counts[: i + 1]) >= i + 1 for i in range(num_nodes - 1)):
            trees.append(counts)
    return tuple(trees)


def brute_force(acceptance: np.ndarray, num_nodes: int, num_levels: int) -> float:
    trees = map(tree_of_counts, all_child_counts(num_nodes))
    return max((expected_tokens(tree, acceptance) for tree in trees if tree.num_levels <= num_levels), default=-np.inf)


def heap_search(acceptance: np.ndarray, num_nodes: int, num_levels: int) -> list[float]:
    """G(1 .. num_nodes, num_levels) by popping the worthiest node and pushing its first child and next sibling."""
    heap, total, totals = [(-1.0, 0, 0, 1.0)], 0.0, []  # -worth, depth, rank, worth of the parent
    while heap and len(totals) < num_nodes:
        negated, depth, rank, parent_worth = heapq.heappop(heap)
        total -= negated
        totals.append(total)
        if depth + 1 < num_levels:
            heapq.heappush(heap, (negated * acceptance[min(depth, len(acceptance) - 1)][0], depth + 1, 1, -negated))
        if depth and rank < acceptance.shape[1]:
            by_rank = acceptance[min(depth - 1, len(acceptance) - 1)]
            heapq.heappush(heap, (-parent_worth * by_rank[rank], depth, rank + 1, parent_worth))
    return totals


@pytest.mark.parametrize("record", REFERENCE_TREES["trees"], ids=lambda record: f"{record['size']}x{record['levels']}")
def test_dynamic_program_reproduces_every_reference_tree(record: dict) -> None:
    solved = dynamic_program(record["acceptance"], record["size"], record["levels"])
    topology = solved.topology(record["size"], record["levels"])
    assert topology.num_children.tolist() == list(itertools.chain(*record["children_breadth_first"]))
    assert [stop - start for start, stop in topology.level_slices] == record["nodes_per_level"]
    assert solved.expected_tokens[-1, -1] == pytest.approx(record["expected_tokens"], abs=1e-5)
    assert expected_tokens(topology, record["acceptance"]) == pytest.approx(record["expected_tokens"], abs=1e-5)


def test_dynamic_program_reproduces_the_reference_values_and_profiles() -> None:
    solved = dynamic_program(LLAMA["acceptance"], 1024, 32)
    for size in ("768", "1024"):
        for levels, value in LLAMA["expected_tokens_by_size_and_levels"][size].items():
            assert solved.expected_tokens[int(levels) - 1, int(size) - 1] == pytest.approx(value, abs=1e-5)
    for key, profile in LLAMA["nodes_per_level"].items():
        size, levels = map(int, key.split(","))
        assert [stop - start for start, stop in solved.topology(size, levels).level_slices] == profile


def test_dynamic_program_reproduces_the_largest_reference_values() -> None:
    solved = dynamic_program(LLAMA["acceptance"], 2048, 32)
    for levels, value in LLAMA["expected_tokens_by_size_and_levels"]["2048"].items():
        assert solved.expected_tokens[int(levels) - 1, -1] == pytest.approx(value, abs=1e-4)


def test_best_first_reproduces_the_values_of_the_large_reference_trees() -> None:
    """The reference vector is sorted but for its tail, so sorting moves the values in the fourth decimal at most."""
    searches = best_first_by_levels(LLAMA_SORTED, 2048, 32)
    for size, levels, value in ((768, 18, 8.3377), (1024, 17, 8.5842), (2048, 32, 9.3269)):
        assert searches[levels - 1].expected_tokens[size - 1] == pytest.approx(value, abs=5e-5)
    for size, by_levels in LLAMA["expected_tokens_by_size_and_levels"].items():
        for levels, value in by_levels.items():
            assert searches[int(levels) - 1].expected_tokens[int(size) - 1] == pytest.approx(value, abs=4e-4)
    for key, profile in LLAMA["nodes_per_level"].items():
        size, levels = map(int, key.split(","))
        slices = searches[levels - 1].topology(size).level_slices
        assert [stop - start for start, stop in slices] == profile


def test_dynamic_program_equals_brute_force_for_any_vector() -> None:
    rng = np.random.default_rng(0)
    for num_ranks in (1, 2, 4):
        acceptance = rng.random(num_ranks) * rng.integers(2, size=num_ranks)  # unsorted, with zeros
        solved = dynamic_program(acceptance, 6, 6)
        for num_nodes in range(1, 7):
            for num_levels in range(1, 7):
                # A tree with more children than ranks is worth no more than without them, but it has the nodes.
                trees = (tree_of_counts(counts) for counts in all_child_counts(num_nodes))
                worths = [
                    expected_tokens(tree, acceptance)
                    for tree in trees
                    if tree.num_levels <= num_levels and tree.num_children.max() <= num_ranks
                ]
                expected = max(worths, default=-np.inf)
                assert solved.expected_tokens[num_levels - 1, num_nodes - 1] == pytest.approx(expected, abs=1e-6)
                if worths:
                    topology = solved.topology(num_nodes, num_levels)
                    assert topology.num_nodes == num_nodes
                    assert expected_tokens(topology, acceptance) == pytest.approx(expected, abs=1e-6)


def test_best_first_equals_brute_force_with_acceptance_by_depth() -> None:
    rng = np.random.default_rng(1)
    acceptance = np.sort(rng.random((3, 6)) / 2, axis=1)[:, ::-1]
    searches = best_first_by_levels(acceptance, 6, 6)
    for num_nodes, num_levels in itertools.product(range(1, 7), range(1, 7)):
        found = searches[num_levels - 1].expected_tokens[num_nodes - 1]
        assert found == pytest.approx(brute_force(acceptance, num_nodes, num_levels), abs=1e-12)


@pytest.mark.parametrize("num_ranks", [1, 2, 5, 30])
def test_best_first_equals_the_dynamic_program_on_sorted_vectors(num_ranks: int) -> None:
    rng = np.random.default_rng(num_ranks)
    acceptance = np.sort(rng.dirichlet(np.ones(num_ranks + 1))[:-1])[::-1]
    solved = dynamic_program(acceptance, 80, 9)
    found = np.array([search.expected_tokens for search in best_first_by_levels(acceptance, 80, 9)])
    np.testing.assert_allclose(found, solved.expected_tokens, rtol=2e-6)


@pytest.mark.parametrize("num_depths", [1, 4])
def test_best_first_equals_a_plain_heap(num_depths: int) -> None:
    rng = np.random.default_rng(2)
    acceptance = np.sort(rng.dirichlet(np.full(13, 0.3), size=num_depths)[:, :-1], axis=1)[:, ::-1]
    for num_levels in (2, 5, 12):
        totals = heap_search(acceptance, 300, num_levels)
        found = best_first(acceptance, 300, num_levels).expected_tokens
        np.testing.assert_allclose(found[: len(totals)], totals, atol=1e-12)
        assert np.isneginf(found[len(totals) :]).all()


def test_best_first_topologies_are_worth_what_the_search_says() -> None:
    """Ties and zeros included: a vector of equal entries is where a parent could fall behind its child."""
    for acceptance in (LLAMA_SORTED, [0.5, 0.5, 0.0], [0.25] * 4, [1.0, 1.0]):
        search = best_first(acceptance, 90, 8)
        worths = [1.0]
        for parent, rank in zip(search.parents[1:], search.ranks[1:], strict=True):
            worths.append(worths[parent] * acceptance[rank - 1])
        assert np.cumsum(worths) == pytest.approx(search.expected_tokens)
        for num_nodes in (1, 2, 17, 90):
            topology = search.topology(num_nodes)
            assert topology.num_nodes == num_nodes
            assert topology.num_levels <= 8
            assert expected_tokens(topology, acceptance) == pytest.approx(search.expected_tokens[num_nodes - 1])


def test_sizes_that_no_tree_within_the_limits_has_are_worth_minus_infinity() -> None:
    search = best_first([0.5, 0.2], 10, 3)  # at most 1 + 2 + 4 nodes
    assert np.isfinite(search.expected_tokens).tolist() == [True] * 7 + [False] * 3
    np.testing.assert_allclose(search.expected_tokens, dynamic_program([0.5, 0.2], 10, 3).expected_tokens[-1])
    with pytest.raises(ValueError, match="1 to 7 nodes, found 8"):
        search.topology(8)
    with pytest.raises(ValueError, match="no tree has 8 nodes on 3 levels"):
        dynamic_program([0.5, 0.2], 10, 3).topology(8, 3)


def test_expected_tokens_of_a_chain_is_a_geometric_sum() -> None:
    assert expected_tokens(TreeTopology.chain(5), [0.5]) == 1 + 0.5 + 0.25 + 0.125 + 0.0625
    assert expected_tokens(TreeTopology.chain(4), [[0.5], [0.25]]) == 1 + 0.5 + 0.125 + 0.03125
    assert expected_tokens(tree_of_counts([2, 0, 0]), [0.5]) == 1.5


def test_single_nodes_and_single_levels_are_plain_decoding() -> None:
    assert dynamic_program([0.5], 1, 3).topology(1, 3) == TreeTopology.single()
    assert best_first([0.5], 1, 1).topology(1) == TreeTopology.single()
    assert dynamic_program([0.5, 0.2], 3, 1).expected_tokens.tolist() == [[1.0, -np.inf, -np.inf]]


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ([3, 2, 1], None, [3, 2, 1]),
        ([1, 2, 3], None, [2, 2, 2]),
        ([5, 1, 3, 0], None, [5, 2, 2, 0]),
        ([5, 1, 3, 0], [1, 3, 1, 1], [5, 1.5, 1.5, 0]),
        ([1, 4, 2, 7], None, [3.5, 3.5, 3.5, 3.5]),
        ([0, 1], [0, 0], [0.5, 0.5]),
        ([[1, 2], [2, 1]], None, [[1.5, 1.5], [2, 1]]),
    ],
)
def test_make_non_increasing_pools_violators(values: list, weights: list | None, expected: list) -> None:
    np.testing.assert_allclose(make_non_increasing(values, weights=weights), expected)


@pytest.mark.parametrize("acceptance", [[], [1.5], [-0.1], [float("nan")]])
def test_acceptance_that_is_no_probability_is_refused(acceptance: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        best_first(acceptance, 4, 4)


def test_searches_refuse_what_they_cannot_answer() -> None:
    with pytest.raises(ValueError, match="make_non_increasing"):
        best_first([0.1, 0.2], 4, 4)
    with pytest.raises(ValueError, match="best_first"):
        dynamic_program([[0.1]], 4, 4)
    with pytest.raises(ValueError, match="0 nodes and 4 levels"):
        best_first([0.1], 0, 4)
