"""The acceptance estimator on hand-made positions, and against what the verifier really accepts."""

import numpy as np
import pytest

from runtime.sampling_params import SamplingParams
from runtime.speculation.acceptance import (
    BUILTIN_ACCEPTANCE,
    AcceptanceEstimator,
    analytic_acceptance,
    builtin_acceptance,
)
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.tree_search import make_non_increasing
from runtime.speculation.verifier import Verdict, verify
from tests.support.chi_square import chi_square_p_value
from tests.support.paths import REFERENCE_TREES


def test_analytic_acceptance_of_a_hand_made_case() -> None:
    """First 2 is accepted at .2/.6; the residual (.75 .25 0) then meets (.25 .75 0): 1 is accepted at 1/3."""
    acceptance = analytic_acceptance(np.array([0.4, 0.4, 0.2]), np.array([0.1, 0.3, 0.6]), [2, 1])
    np.testing.assert_allclose(acceptance, [1 / 3, 2 / 3 * 1 / 3])


def test_some_child_is_accepted_when_the_children_are_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        target_probs, draft_probs = rng.dirichlet(np.ones(4), size=2)
        acceptance = analytic_acceptance(target_probs, draft_probs, rng.permutation(4).tolist())
        assert acceptance.sum() == pytest.approx(1)


def test_analytic_acceptance_is_what_the_verifier_does() -> None:
    """Accepted ranks of one fixed draw. Seed 1, 5,000 rounds, p > 0.001."""
    rng, num_rounds, tokens = np.random.default_rng(1), 5000, [3, 0, 2]
    target_probs, draft_probs = np.array([0.35, 0.3, 0.25, 0.1]), np.array([0.2, 0.1, 0.2, 0.5])
    tree = TokenTree.rooted(TreeTopology.from_child_counts([3, 0, 0, 0]), root_token_id=0)
    tree.set_children(0, token_ids=tokens, draft_probs=draft_probs.astype(np.float32))
    counts = np.zeros(4)
    for _ in range(num_rounds):
        verdict = verify(
            tree, lambda node: np.log(target_probs), SamplingParams(temperature=1, verification="sequoia"), rng
        )
        counts[verdict.accepted_ranks[0]] += 1
    by_rank = analytic_acceptance(target_probs, draft_probs, tokens)
    assert chi_square_p_value(counts, num_rounds * np.concatenate(([1 - by_rank.sum()], by_rank))) > 1e-3


def test_means_and_standard_errors_by_rank_and_by_depth() -> None:
    estimator = AcceptanceEstimator(num_ranks=3, num_depths=2)
    positions = [([0.5, 0.2], 0), ([0.9, 0.1, 0.3], 0), ([0.7], 1), ([0.1, 0.4], 1)]
    for acceptance, depth in positions:
        estimator.add(acceptance, depth=depth)
    by_rank = estimator.by_rank()
    first = [0.5, 0.9, 0.7, 0.1]
    np.testing.assert_allclose(by_rank.means, [np.mean(first), np.mean([0.2, 0.1, 0.4]), 0.3])
    assert by_rank.standard_errors[0] == pytest.approx(np.std(first, ddof=1) / 2)
    assert by_rank.standard_errors[2] == np.inf
    assert by_rank.num_positions.tolist() == [4, 3, 1]
    by_depth = estimator.by_depth()
    np.testing.assert_allclose(by_depth.means, [[0.7, 0.15, 0.3], [0.4, 0.4, 0]])
    assert by_depth.num_positions.tolist() == [[2, 2, 1], [2, 1, 0]]


def test_nothing_observed_is_no_acceptance_with_infinite_error() -> None:
    estimate = AcceptanceEstimator(num_ranks=2).by_rank()
    assert estimate.means.tolist() == [0, 0]
    assert np.isinf(estimate.standard_errors).all()


def test_verdicts_count_ranks_that_had_a_child_and_skip_leaves() -> None:
    estimator = AcceptanceEstimator(num_ranks=4, num_depths=3)
    estimator.add_verdict(Verdict(path=(0, 2, 5), next_token=1, accepted_ranks=(2, 1, 0), num_children=(3, 1, 0)))
    estimator.add_verdict(Verdict(path=(0,), next_token=1, accepted_ranks=(0,), num_children=(3,)))
    assert estimator.by_depth().num_positions.tolist() == [[2, 2, 2, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(estimator.by_depth().means, [[0, 0.5, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(estimator.by_rank().means, [1 / 3, 0.5, 0, 0])


def test_deeper_positions_and_further_ranks_than_the_table_are_pooled_or_left_out() -> None:
    estimator = AcceptanceEstimator(num_ranks=2, num_depths=2)
    estimator.add([1, 0, 0, 0], depth=7)
    assert estimator.by_depth().num_positions.tolist() == [[0, 0], [1, 1]]


def test_estimates_do_not_change_with_later_positions() -> None:
    estimator = AcceptanceEstimator(num_ranks=1)
    estimator.add([1], depth=0)
    estimate = estimator.by_depth()
    estimator.add([0], depth=0)
    assert estimate.num_positions[0, 0] == 1


def test_builtin_acceptance_follows_its_recipe() -> None:
    tail = np.array(REFERENCE_TREES["llama3_70b_8b_cnn"]["acceptance"])[4:] * 0.007 / 0.012833
    recipe = make_non_increasing([0.818, 0.095, 0.029, 0.017, *tail, tail[-1]])
    np.testing.assert_allclose(BUILTIN_ACCEPTANCE, recipe, atol=5.1e-7)
    assert len(BUILTIN_ACCEPTANCE) == 32
    assert sum(BUILTIN_ACCEPTANCE) < 1
    assert (np.diff(BUILTIN_ACCEPTANCE) <= 0).all()


def test_the_builtin_vector_depends_on_what_drafts() -> None:
    """An int8 copy of the target agrees nearly always, an NF4 one often, another model less."""
    vectors = [builtin_acceptance(substitute_held=held) for held in ("int8", "nf4", None)]
    assert vectors[0][0] > vectors[1][0] > vectors[2][0]
    for vector in vectors:
        assert (np.diff(vector) <= 0).all()
        assert 0.95 < vector.sum() <= 1
    assert (builtin_acceptance(substitute_held="stored") == vectors[0]).all()
