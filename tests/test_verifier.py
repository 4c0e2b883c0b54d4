"""The verifier's steps on hand-made distributions, and its walk; exactness as a whole is in test_lossless.py."""

import numpy as np
import pytest

from runtime.sampling_params import SamplingParams
from runtime.speculation.sampling import draw_without_replacement, logits_to_probs
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.verifier import Verdict, accept_probability, residual_step, verify

GREEDY = SamplingParams(temperature=0)
SAMPLED = SamplingParams(temperature=1)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def logits_of(probs: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.float32(probs))


def test_acceptance_is_the_ratio_up_to_one() -> None:
    target_probs, draft_probs = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    assert [accept_probability(target_probs, draft_probs, token) for token in range(3)] == [1, 1, 0.4]


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
    assert (target_probs.tolist(), draft_probs.tolist()) == ([0.4, 0.6], [0.6, 0.4])


def greedy_tree() -> TokenTree:
    """Root 9 with children 4, 5; below 5 the chain 6, 7."""
    tree = TokenTree.rooted(TreeTopology.from_child_counts([2, 0, 1, 1, 0]), root_token_id=9)
    tree.set_children(0, token_ids=[4, 5])
    tree.set_children(2, token_ids=[6])
    tree.set_children(3, token_ids=[7])
    return tree


def verify_greedily(target_tokens: dict[int, int]) -> tuple[Verdict, list[int]]:
    visited = []

    def target_row(node: int) -> np.ndarray:
        visited.append(node)
        row = np.zeros(10, dtype=np.float32)
        row[target_tokens[node]] = 1
        return row

    return verify(greedy_tree(), target_row, GREEDY, rng()), visited


def test_greedy_follows_the_argmax_and_asks_only_for_rows_it_visits() -> None:
    verdict, visited = verify_greedily({0: 5, 2: 6, 3: 1})
    assert verdict == Verdict(path=(0, 2, 3), next_token=1, accepted_ranks=(2, 1, 0), num_children=(2, 1, 1))
    assert visited == [0, 2, 3]
    assert verdict.emitted_token_ids(greedy_tree()) == [5, 6, 1]
    assert verdict.num_emitted == 3


def test_greedy_emits_a_bonus_token_at_a_leaf() -> None:
    verdict, _ = verify_greedily({0: 5, 2: 6, 3: 7, 4: 8})
    assert verdict == Verdict(path=(0, 2, 3, 4), next_token=8, accepted_ranks=(2, 1, 1, 0), num_children=(2, 1, 1, 0))


def test_greedy_emits_the_targets_token_when_no_child_has_it() -> None:
    verdict, visited = verify_greedily({0: 3})
    assert verdict == Verdict(path=(0,), next_token=3, accepted_ranks=(0,), num_children=(2,))
    assert visited == [0]


def test_a_root_alone_is_plain_decoding() -> None:
    tree = TokenTree.rooted(TreeTopology.single(), root_token_id=0)
    verdict = verify(tree, lambda node: logits_of([0, 0, 1]), SAMPLED, rng())
    assert verdict == Verdict(path=(0,), next_token=2, accepted_ranks=(0,), num_children=(0,))


def sampled_tree(token_ids: list[int], draft_probs: list[float]) -> TokenTree:
    tree = TokenTree.rooted(TreeTopology.from_child_counts([len(token_ids)] + [0] * len(token_ids)), root_token_id=0)
    tree.set_children(0, token_ids=token_ids, draft_probs=np.float32(draft_probs))
    return tree


def test_equal_draft_and_target_always_accept_the_first_child() -> None:
    tree = sampled_tree([1], [0.25, 0.5, 0.25])
    for seed in range(50):
        verdict = verify(tree, lambda node: logits_of([0.25, 0.5, 0.25]), SAMPLED, np.random.default_rng(seed))
        assert verdict.path == (0, 1)


def test_disjoint_draft_and_target_reject_until_the_uniform_children() -> None:
    """Token 2 is all the draft has; token 0, drawn uniformly after it, is all the target has."""
    verdict = verify(sampled_tree([2, 0], [0, 0, 1, 0]), lambda node: logits_of([1, 0, 0, 0]), SAMPLED, rng())
    assert verdict.path == (0, 2)
    assert verdict.accepted_ranks == (2, 0)
    verdict = verify(sampled_tree([2, 1], [0, 0, 1, 0]), lambda node: logits_of([1, 0, 0, 0]), SAMPLED, rng())
    assert (verdict.path, verdict.next_token) == ((0,), 0)


def test_sampling_needs_the_drafts_distributions() -> None:
    tree = TokenTree.rooted(TreeTopology.chain(2), root_token_id=0)
    tree.set_children(0, token_ids=[1])
    with pytest.raises(ValueError, match="node 0 has children but no draft_probs"):
        verify(tree, lambda node: logits_of([0.5, 0.5]), SAMPLED, rng())


def test_same_seed_same_verdict_and_other_seeds_differ() -> None:
    tree = sampled_tree([1, 0], [0.3, 0.4, 0.3])

    def tokens(seed: int) -> list[tuple[int, ...]]:
        generator = np.random.default_rng(seed)
        verdicts = [verify(tree, lambda node: logits_of([0.3, 0.1, 0.6]), SAMPLED, generator) for _ in range(20)]
        return [tuple(verdict.emitted_token_ids(tree)) for verdict in verdicts]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


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
