"""Widths, levels and draft seconds of both searches against the trees themselves, one by one."""

import itertools

import numpy as np
import pytest

from runtime.planner.costs import CostTable
from runtime.planner.tree_candidates import SearchMethod, TreeCandidates
from runtime.speculation.token_tree import TreeTopology
from runtime.speculation.tree_search import expected_tokens, make_non_increasing

STEP = CostTable((1, 2, 4, 9), (1.0, 1.25, 3.0, 3.5))


def drafted_seconds(topology: TreeTopology) -> float:
    """A step for every level with children, as the drafter takes them."""
    widths = np.bincount(topology.depths[topology.expanded_nodes])
    return float(STEP(widths[widths > 0]).sum())


@pytest.mark.parametrize("method", SearchMethod)
@pytest.mark.parametrize("seed", range(6))
def test_every_candidate_costs_and_brings_what_its_tree_does(method: SearchMethod, seed: int) -> None:
    rng = np.random.default_rng(seed)
    acceptance = make_non_increasing(rng.dirichlet(np.full(5, 0.5))[: rng.integers(1, 5)])
    trees = TreeCandidates.find(acceptance, 25, 6, method)
    seconds = trees.draft_seconds(STEP)
    for limit, size in itertools.product(range(1, 7), range(1, 26)):
        place = limit - 1, size - 1
        if not np.isfinite(trees.expected_tokens[place]):
            with pytest.raises(ValueError):
                trees.topology(size, limit)
            continue
        topology = trees.topology(size, limit)
        assert topology.num_nodes == size
        assert trees.num_levels[place] == topology.num_levels <= limit
        assert trees.expected_tokens[place] == pytest.approx(expected_tokens(topology, acceptance), abs=1e-6)
        assert seconds[place] == pytest.approx(drafted_seconds(topology), abs=1e-12)


def test_acceptance_by_depth_has_other_trees() -> None:
    acceptance = np.array([[0.5, 0.3, 0.1], [0.9, 0.05, 0.0]])
    trees = TreeCandidates.find(acceptance, 12, 5, SearchMethod.BEST_FIRST)
    for size in range(1, 13):
        topology = trees.topology(size, 5)
        assert trees.expected_tokens[4, size - 1] == pytest.approx(expected_tokens(topology, acceptance))
        assert trees.draft_seconds(STEP)[4, size - 1] == pytest.approx(drafted_seconds(topology))


def test_both_methods_find_the_same_values() -> None:
    acceptance = [0.6, 0.2, 0.1, 0.04]
    tables = [TreeCandidates.find(acceptance, 60, 8, method).expected_tokens for method in SearchMethod]
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-6)


def test_the_dynamic_program_takes_a_vector_that_is_not_sorted_and_best_first_does_not() -> None:
    trees = TreeCandidates.find([0.2, 0.6], 7, 4, SearchMethod.DP)
    topology = trees.topology(7, 4)
    assert trees.expected_tokens[3, 6] == pytest.approx(expected_tokens(topology, [0.2, 0.6]))
    assert trees.draft_seconds(STEP)[3, 6] == pytest.approx(drafted_seconds(topology))
    with pytest.raises(ValueError, match="make_non_increasing"):
        TreeCandidates.find([0.2, 0.6], 7, 4, SearchMethod.BEST_FIRST)
    with pytest.raises(ValueError, match="vector by rank"):
        TreeCandidates.find([[0.6]], 7, 4, SearchMethod.DP)
