"""The walk; exactness as a whole is in test_lossless.py."""

import math

import numpy as np
import pytest

from runtime.config import SamplingParams
from runtime.speculation.schemes import Children, Greedy, Judgement, Place, Row, TopKMatch
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.verifier import Verdict, verify
from tests.support.trees import tree_of_counts

GREEDY = SamplingParams(temperature=0)
SAMPLED = SamplingParams(temperature=1, verification="sequoia")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def logits_of(probs: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.float32(probs))


def greedy_tree() -> TokenTree:
    """Root 9 with children 4, 5; below 5 the chain 6, 7."""
    tree = TokenTree.rooted(tree_of_counts([2, 0, 1, 1, 0]), root_token_id=9)
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


def test_greedy_emits_a_bonus_token_at_a_leaf() -> None:
    verdict, _ = verify_greedily({0: 5, 2: 6, 3: 7, 4: 8})
    assert verdict == Verdict(path=(0, 2, 3, 4), next_token=8, accepted_ranks=(2, 1, 1, 0), num_children=(2, 1, 1, 0))


def test_greedy_emits_the_targets_token_when_no_child_has_it() -> None:
    verdict, visited = verify_greedily({0: 3})
    assert verdict == Verdict(path=(0,), next_token=3, accepted_ranks=(0,), num_children=(2,))
    assert visited == [0]


def test_what_is_listed_of_a_token_is_of_the_row_that_emitted_it() -> None:
    """The target's own row, whatever the temperature."""
    probs = {0: [0.1, 0.2, 0, 0, 0, 0.7], 2: [0.2, 0.2, 0.1, 0, 0, 0, 0.5], 3: [0, 0.25, 0.75, 0]}
    for params, scheme in ((GREEDY, Greedy()), (SamplingParams(temperature=0.01), TopKMatch())):
        verdict = verify(
            greedy_tree(),
            lambda node: np.pad(logits_of(probs[node]), (0, 10 - len(probs[node])), constant_values=-np.inf),
            params,
            rng(),
            scheme=scheme,
            top_logprobs=2,
        )
        listed = [[(token.token_id, math.exp(token.logprob)) for token in each.likeliest] for each in verdict.logprobs]
        assert verdict.emitted_token_ids(greedy_tree()) == [each.chosen.token_id for each in verdict.logprobs]
        assert [math.exp(each.chosen.logprob) for each in verdict.logprobs] == pytest.approx([0.7, 0.5, 0.75])
        assert listed == [
            [(5, pytest.approx(0.7)), (1, pytest.approx(0.2))],
            [(6, pytest.approx(0.5)), (0, pytest.approx(0.2))],
            [(2, pytest.approx(0.75)), (1, pytest.approx(0.25))],
        ]


def test_a_root_alone_is_plain_decoding() -> None:
    tree = TokenTree.rooted(TreeTopology.single(), root_token_id=0)
    verdict = verify(tree, lambda node: logits_of([0, 0, 1]), SAMPLED, rng())
    assert verdict == Verdict(path=(0,), next_token=2, accepted_ranks=(0,), num_children=(0,))


def sampled_tree(token_ids: list[int], draft_probs: list[float]) -> TokenTree:
    tree = TokenTree.rooted(tree_of_counts([len(token_ids)] + [0] * len(token_ids)), root_token_id=0)
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


def test_children_that_are_said_not_to_be_drawn_are_met_by_the_targets_sample() -> None:
    tree = TokenTree.rooted(tree_of_counts([2, 0, 0]), root_token_id=0)
    tree.set_children(0, token_ids=[1, 2])
    for seed in range(20):
        verdict = verify(tree, lambda node: logits_of([0.3, 0.3, 0.4]), SAMPLED, np.random.default_rng(seed))
        first = verdict.emitted_token_ids(tree)[0]
        assert verdict.accepted_ranks[0] == first  # ranks 1 and 2 are tokens 1 and 2; token 0 has no child


def test_the_scheme_is_that_of_the_params_unless_another_is_given() -> None:
    """A draw of the draft's only token is rejected; without draws the target's token 0 finds its child."""
    tree = sampled_tree([1, 0], [0, 1, 0])
    verdict = verify(tree, lambda node: logits_of([1, 0, 0]), SAMPLED, rng(), scheme=TopKMatch())
    assert verdict.accepted_ranks == (2, 0)


def test_every_place_has_its_position_and_its_own_path() -> None:
    class Watching(Greedy):
        def judge(self, children: Children, target_row: Row, place: Place, rng: np.random.Generator) -> Judgement:
            seen.append((place.position, place.path))
            return super().judge(children, target_row, place, rng)

    seen: list[tuple[int, tuple[int, ...]]] = []
    tree = TokenTree.rooted(TreeTopology.chain(3), root_token_id=9, root_position=40)
    tree.set_children(0, token_ids=[5])
    tree.set_children(1, token_ids=[6])
    rows = [logits_of([0] * 5 + [1, 0]), logits_of([0] * 6 + [1]), logits_of([1] + [0] * 6)]
    verify(tree, rows.__getitem__, GREEDY, rng(), scheme=Watching())
    assert seen == [(41, ()), (42, (5,)), (43, (5, 6))]


def test_same_seed_same_verdict_and_other_seeds_differ() -> None:
    tree = sampled_tree([1, 0], [0.3, 0.4, 0.3])

    def tokens(seed: int) -> list[tuple[int, ...]]:
        generator = np.random.default_rng(seed)
        verdicts = [verify(tree, lambda node: logits_of([0.3, 0.1, 0.6]), SAMPLED, generator) for _ in range(20)]
        return [tuple(verdict.emitted_token_ids(tree)) for verdict in verdicts]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
