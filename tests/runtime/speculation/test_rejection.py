"""Single steps on hand-made distributions; exactness as a whole is in test_lossless.py."""

import numpy as np
import pytest

from runtime.sampling_params import SamplingParams
from runtime.speculation.rejection import (
    accept_probability,
    drawn_from,
    end_of_node,
    residual_step,
    target_distribution,
    target_residual,
)
from runtime.speculation.sampling import draw_without_replacement, logits_to_probs
from runtime.speculation.scheme import Children, Place

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


def test_a_node_ends_with_a_token_of_the_target_and_the_first_child_that_has_it() -> None:
    rng = np.random.default_rng(0)
    judged = end_of_node(Children(np.array([3, 2, 2])), np.array([0, 0, 1.0, 0]), rng)
    assert (judged.token_id, judged.child) == (2, 1)
    judged = end_of_node(Children(np.array([3, 1])), np.array([0, 0, 1.0, 0]), rng)
    assert (judged.token_id, judged.child) == (2, None)


def test_what_was_drawn_from_is_normalised_in_double_precision() -> None:
    probs = drawn_from(Children(np.array([0]), range(1), np.float32([0.2, 0.2, 0])))
    assert (probs.dtype, probs.tolist()) == (np.float64, [0.5, 0.5, 0])


def test_the_target_has_the_distribution_that_plain_decoding_draws_from() -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9)
    row = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    np.testing.assert_array_equal(target_distribution(row, Place(params, 3)), logits_to_probs(row, params))


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
