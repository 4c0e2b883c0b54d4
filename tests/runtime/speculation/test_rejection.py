"""Single steps on hand-made distributions, and their averages; exactness as a whole is in test_lossless.py."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest

from runtime.config import SamplingParams
from runtime.speculation.rejection import accept_probability, node_outcome, residual_step, target_residual
from runtime.speculation.sampling import Probs, draw_without_replacement, logits_to_probs
from runtime.speculation.token_tree import TokenTree
from runtime.speculation.verifier import verify
from tests.support.chi_square import chi_square_p_value
from tests.support.trees import tree_of_counts

SAMPLED = SamplingParams(temperature=1)


def test_acceptance_is_the_ratio_up_to_one() -> None:
    target_probs, draft_probs = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    assert [accept_probability(target_probs, draft_probs, token) for token in range(3)] == [1, 1, 0.4]


def test_a_rejected_draw_leaves_what_the_target_has_more_of() -> None:
    np.testing.assert_allclose(target_residual(np.array([0.4, 0.4, 0.2]), np.array([0.1, 0.3, 0.6])), [0.75, 0.25, 0])


def test_rejection_leaves_the_residual_and_takes_the_token_from_the_draft() -> None:
    target_left, draft_left = residual_step(np.array([0.4, 0.4, 0.2]), np.array([0.1, 0.3, 0.6]), [2])
    np.testing.assert_allclose(target_left, [0.75, 0.25, 0])
    np.testing.assert_allclose(draft_left, [0.25, 0.75, 0])


def test_without_mass_the_draft_is_uniform_over_tokens_not_rejected() -> None:
    target_probs = np.array([0.1, 0.2, 0.3, 0.4])
    target_left, draft_left = residual_step(target_probs, np.array([0, 1.0, 0, 0]), [3, 1])
    np.testing.assert_allclose(draft_left, [0.5, 0, 0.5, 0])
    np.testing.assert_allclose(target_left, [0.125, 0, 0.375, 0.5])
    _, draft_left = residual_step(target_left, draft_left, [3, 1, 0])
    np.testing.assert_allclose(draft_left, [0, 0, 1, 0])
    _, draft_left = residual_step(target_left, draft_left, [3, 1, 0, 2])
    assert draft_left.tolist() == [0, 0, 0, 0]


def test_equal_distributions_have_no_residual_and_keep_the_target() -> None:
    """A residual without mass once became a row of NaN, which ended the answer."""
    probs = np.array([0.25, 0.75])
    target_left, _ = residual_step(probs, probs.copy(), [0])
    assert target_left.tolist() == probs.tolist()


def test_steps_leave_their_arguments_alone() -> None:
    target_probs, draft_probs = np.array([0.4, 0.6]), np.array([0.6, 0.4])
    residual_step(target_probs, draft_probs, [0])
    target_residual(target_probs, draft_probs)
    assert (target_probs.tolist(), draft_probs.tolist()) == ([0.4, 0.6], [0.6, 0.4])


def test_large_vocabularies_stay_finite_and_normalised() -> None:
    """Thirty rejections over 50,000 tokens, where draft and target differ by float32 rounding only or a lot."""
    generator = np.random.default_rng(3)
    logits = (generator.standard_normal(50_000) * 3).astype(np.float32)
    for other in (logits, logits[::-1].copy()):
        target_probs = logits_to_probs(other, SAMPLED)
        row = logits_to_probs(logits, SAMPLED, dtype=np.float32)
        draft_probs = row.astype(float) / row.astype(float).sum()
        rejected: list[int] = []
        for token in draw_without_replacement(row, 30, generator).tolist():
            assert 0 <= accept_probability(target_probs, draft_probs, token) <= 1
            rejected.append(token)
            target_probs, draft_probs = residual_step(target_probs, draft_probs, rejected)
            assert target_probs.sum() == pytest.approx(1, abs=1e-12)
            assert draft_probs.sum() == pytest.approx(1, abs=1e-12)
            assert not draft_probs[rejected].any()


def by_recursion(target_probs: Probs, draft_probs: Probs, token_ids: Sequence[int]) -> Probs:
    """How likely each child, in drawing order, is the accepted one: step by step down the residuals."""
    acceptance = np.zeros(len(token_ids))
    all_rejected = 1.0
    for index, token in enumerate(token_ids):
        accepted = accept_probability(target_probs, draft_probs, token)
        acceptance[index] = all_rejected * accepted
        all_rejected *= 1 - accepted
        target_probs, draft_probs = residual_step(target_probs, draft_probs, token_ids[: index + 1])
    return acceptance


def test_analytic_acceptance_of_a_hand_made_case() -> None:
    """First 2 is accepted at .2/.6; the residual (.75 .25 0) then meets (.25 .75 0): 1 is accepted at 1/3."""
    acceptance = by_recursion(np.array([0.4, 0.4, 0.2]), np.array([0.1, 0.3, 0.6]), [2, 1])
    np.testing.assert_allclose(acceptance, [1 / 3, 2 / 3 * 1 / 3])


def test_some_child_is_accepted_when_the_children_are_the_whole_vocabulary() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        target_probs, draft_probs = rng.dirichlet(np.ones(4), size=2)
        acceptance = by_recursion(target_probs, draft_probs, rng.permutation(4).tolist())
        assert acceptance.sum() == pytest.approx(1)


def test_analytic_acceptance_is_what_the_verifier_does() -> None:
    """Accepted ranks of one fixed draw. Seed 1, 5,000 rounds, p > 0.001."""
    rng, num_rounds, tokens = np.random.default_rng(1), 5000, [3, 0, 2]
    target_probs, draft_probs = np.array([0.35, 0.3, 0.25, 0.1]), np.array([0.2, 0.1, 0.2, 0.5])
    tree = TokenTree.rooted(tree_of_counts([3, 0, 0, 0]), root_token_id=0)
    tree.set_children(0, token_ids=tokens, draft_probs=draft_probs.astype(np.float32))
    counts = np.zeros(4)
    for _ in range(num_rounds):
        verdict = verify(
            tree, lambda node: np.log(target_probs), SamplingParams(temperature=1, verification="sequoia"), rng
        )
        counts[verdict.accepted_ranks[0]] += 1
    by_rank = by_recursion(target_probs, draft_probs, tokens)
    assert chi_square_p_value(counts, num_rounds * np.concatenate(([1 - by_rank.sum()], by_rank))) > 1e-3


def distributions(seed: int, size: int, spread: float = 2.0) -> tuple[Probs, Probs]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, size)
    rows = [np.exp(logits + rng.normal(0, 1.0, size)) for _ in range(2)]
    return rows[0] / rows[0].sum(), rows[1] / rows[1].sum()


def test_acceptance_equals_the_recursion_over_residuals() -> None:
    for seed in range(20):
        target, draft = distributions(seed, 300, spread=1 + seed / 4)
        rng = np.random.default_rng(seed)
        children = draw_without_replacement(draft, 32, rng).tolist()
        expected = by_recursion(target, draft, children)
        found = node_outcome(target, draft, children, emitted=children[0]).acceptance
        assert found == pytest.approx(expected, abs=1e-10)


def test_followed_is_the_share_of_the_token_that_comes_as_an_accepted_child() -> None:
    """Means over all ordered draws of 3 children from 5 tokens: P(child j is y, accepted) / P(y), both enumerated."""
    for emitted in range(5):
        target, draft = distributions(7, 5, spread=1.0)
        mean_followed, as_child = np.zeros(3), np.zeros(3)
        for children in permutations(range(5), 3):
            chance, left = 1.0, 1.0
            for token in children:
                chance *= draft[token] / left
                left -= draft[token]
            accepted = by_recursion(target, draft, children)
            as_child += chance * np.where(np.array(children) == emitted, accepted, 0.0)
            mean_followed += chance * node_outcome(target, draft, children, emitted=emitted).followed
        assert mean_followed == pytest.approx(as_child / target[emitted], abs=1e-12)


def test_a_draft_that_equals_the_target_is_always_accepted() -> None:
    target, _ = distributions(1, 50)
    children = draw_without_replacement(target, 4, np.random.default_rng(0)).tolist()
    outcome = node_outcome(target, target.copy(), children, emitted=children[1])
    assert outcome.acceptance == pytest.approx([1, 0, 0, 0])
    assert outcome.followed.sum() == pytest.approx(1.0)


def test_a_token_that_the_draft_never_proposes_is_never_followed() -> None:
    target, draft = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    assert node_outcome(target, draft, [1, 2], emitted=0).followed.sum() == 0.0


def test_children_drawn_after_the_mass_was_gone_are_never_accepted() -> None:
    target, draft = np.array([0.2, 0.3, 0.5]), np.array([1.0, 0.0, 0.0])
    outcome = node_outcome(target, draft, [0, 2, 1], emitted=2)
    assert outcome.acceptance == pytest.approx([0.2, 0.0, 0.0])
    assert outcome.followed.sum() == 0.0
