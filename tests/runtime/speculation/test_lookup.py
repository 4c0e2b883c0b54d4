"""Lookups against brute force over the whole text; grafted trees against sets of paths and the target distribution."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from runtime.speculation import lookup
from runtime.speculation.lookup import Branch, continuation, forced_branches, graft, lookup_branches
from runtime.speculation.rejection import accept_probability, residual_step
from runtime.speculation.sampling import draw_without_replacement, sample
from runtime.speculation.token_tree import TokenTree, TreeTopology
from tests.runtime.speculation.test_token_tree import random_topology
from tests.support.chi_square import chi_square_p_value
from tests.support.trees import tree_of_counts

Paths = list[tuple[int, ...]]
TEXT = [*range(20), 50, 0, 1, 2, 3]


def set_limits(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    for name, limit in limits.items():
        monkeypatch.setattr(lookup, name.upper(), limit)


def found_in(text: Sequence[int], path: Sequence[int] = (), *, max_tokens: int) -> tuple[int, tuple[int, ...]] | None:
    return continuation(np.array(text, dtype=np.int64), path, max_tokens=max_tokens)


def by_brute_force(
    text: list[int], path: list[int], *, max_tokens: int, min_match: int, max_match: int, max_candidates: int
) -> tuple[int, tuple[int, ...]] | None:
    """Compare the tail with every place of the text, then copy token by token."""
    whole = text + path
    found = []
    for end in range(len(text) if path else len(text) - 1, 0, -1):
        num_matched = 0
        while num_matched < min(end, max_match) and text[end - 1 - num_matched] == whole[-1 - num_matched]:
            num_matched += 1
        if num_matched < min_match:
            continue
        grown = list(whole)
        for offset in range(max_tokens):
            grown.append(grown[end + offset])
        found.append((num_matched, tuple(grown[len(whole) :])))
    return min(found[:max_candidates], key=lambda one: -one[0], default=None)


@pytest.mark.parametrize("num_tokens", [2, 3, 6])
@pytest.mark.parametrize(("min_match", "max_match", "max_candidates"), [(1, 1, 9), (2, 4, 64), (3, 8, 2), (2, 16, 5)])
def test_lookups_are_those_of_brute_force(
    num_tokens: int, min_match: int, max_match: int, max_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few different tokens give many matches, many of them give few."""
    rng = np.random.default_rng([num_tokens, min_match, max_candidates])
    limits = {"min_match": min_match, "max_match": max_match, "max_candidates": max_candidates}
    set_limits(monkeypatch, **limits)
    num_found = 0
    for _ in range(60):
        text = rng.integers(num_tokens, size=rng.integers(1, 50)).tolist()
        path = rng.integers(num_tokens, size=rng.integers(4)).tolist()
        max_tokens = int(rng.integers(1, 20))
        found = found_in(text, path, max_tokens=max_tokens)
        assert found == by_brute_force(text, path, max_tokens=max_tokens, **limits)
        num_found += found is not None
    assert num_found > 0


def test_the_longest_match_comes_first_and_then_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, min_match=2)
    #       longest        older       newest      end
    text = [5, 1, 2, 30, 6, 1, 2, 40, 7, 1, 2, 50, 5, 1, 2]
    assert found_in(text, max_tokens=1) == (3, (30,))
    assert found_in([*text, 0, 1, 2], max_tokens=1) == (2, (0,))


def test_a_text_that_repeats_itself_is_continued_in_its_period() -> None:
    assert found_in([9, 9, 1, 2, 3, 1, 2, 3, 1, 2], max_tokens=8) == (5, (3, 1, 2, 3, 1, 2, 3, 1))


def test_a_path_is_looked_up_as_if_it_were_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = [1, 2, 3, 4, 5, 8, 2]
    assert found_in(text, max_tokens=2) is None
    assert found_in(text, [3, 4], max_tokens=3) == (3, (5, 8, 2))
    assert found_in(text, [3, 7], max_tokens=2) is None
    assert found_in([], [1, 1, 1], max_tokens=3) is None
    set_limits(monkeypatch, min_match=2)
    assert found_in(text, [3], max_tokens=2) == (2, (4, 5))


def tree_of(*likeliest: int) -> TokenTree:
    """Two children per node of the likeliest path, the second ones never in the text."""
    num_levels = len(likeliest)
    tree = TokenTree.rooted(tree_of_counts([2, *[2, 0] * (num_levels - 1), 0, 0]), root_token_id=3)
    for node, token in zip(np.flatnonzero(tree.topology.num_children).tolist(), likeliest, strict=True):
        tree.set_children(node, token_ids=[token, 99])
    return tree


def test_a_tree_that_reads_like_the_text_goes_on_at_its_tip() -> None:
    branches = lookup_branches(TEXT, tree_of(4, 5, 6))
    assert branches == [
        Branch(5, (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 50)),  # 7 matched
        Branch(0, (4, 5, 6, 7, 8, 9, 10, 11)),  # 4 matched
    ]
    grafted = graft(tree_of(4, 5, 6), branches, max_nodes=99, max_levels=99)
    assert grafted.num_grafted == 14, "the root's branch has nothing to add"


def test_a_draft_that_leaves_the_text_gets_the_roots_branch_alone() -> None:
    assert lookup_branches(TEXT, tree_of(4, 70)) == [Branch(0, (4, 5, 6, 7, 8, 9, 10, 11))]


def test_the_tip_finds_its_way_back_into_the_text() -> None:
    """Behind a changed name the draft goes on as the text did."""
    branches = lookup_branches([*TEXT[:-2], 77], tree_of(4, 5, 6))
    assert branches == [Branch(5, (7, 8, 9, 10, 11, 12))]


class _Forces:
    """Rules that know what follows some paths."""

    def __init__(self, follows: Mapping[tuple[int, ...], tuple[int, ...]]) -> None:
        self._follows = follows

    def forced(self, path_token_ids: Sequence[int] = (), *, max_tokens: int) -> tuple[int, ...]:
        return self._follows.get(tuple(path_token_ids), ())[:max_tokens]


def test_what_rules_force_stands_below_the_tip_and_below_the_root() -> None:
    processor = _Forces({(): (4, 5), (4, 5, 6): (7, 8, 9)})
    assert forced_branches(tree_of(4, 5, 6), processor) == [Branch(5, (7, 8, 9)), Branch(0, (4, 5))]
    assert forced_branches(tree_of(4, 70), processor, max_tokens=1) == [Branch(0, (4,))]
    assert forced_branches(tree_of(4, 70), _Forces({})) == []


def test_a_root_alone_and_a_limit() -> None:
    root = TokenTree.rooted(TreeTopology.single(), root_token_id=3)
    assert lookup_branches(TEXT, root, max_tokens=3) == [Branch(0, (4, 5, 6))]


def test_a_text_without_repetition_has_no_branch() -> None:
    assert lookup_branches(range(20), tree_of(7, 9, 11)) == []


def drawn_tree() -> TokenTree:
    """Root 9 at position 20 with children 4, 5; below 5 the chain 6, 7."""
    tree = TokenTree.rooted(tree_of_counts([2, 0, 1, 1, 0]), root_token_id=9, root_position=20)
    tree.set_children(0, token_ids=[4, 5], draft_probs=np.float32([0, 0]))
    tree.set_children(2, token_ids=[6], draft_probs=np.float32([2, 2]))
    tree.set_children(3, token_ids=[7], draft_probs=np.float32([3, 3]))
    return tree


def random_tree(rng: np.random.Generator, num_nodes: int) -> TokenTree:
    tree = TokenTree.rooted(random_topology(rng, num_nodes), root_token_id=0)
    for node in np.flatnonzero(tree.topology.num_children).tolist():
        num_children = int(tree.topology.num_children[node])
        row = np.full(1, node, dtype=np.float32)  # not probabilities: only its place matters here
        tree.set_children(node, token_ids=rng.permutation(max(num_children, 4))[:num_children], draft_probs=row)
    return tree


def paths_of(tree: TokenTree) -> Paths:
    return [tuple(tree.path_token_ids(node).tolist()) for node in range(tree.topology.num_nodes)]


def grafted_paths(tree: TokenTree, branches: list[Branch], *, max_nodes: int, max_levels: int) -> Paths:
    """The paths that the limits let in, one after another."""
    paths = paths_of(tree)
    for branch in branches:
        path = tuple(tree.path_token_ids(branch.node).tolist())
        for token_id in branch.token_ids:
            path = (*path, token_id)
            if path in paths:
                continue
            if len(paths) >= max_nodes or len(path) > max_levels:
                break
            paths.append(path)
    return paths


def test_the_paths_are_the_drawn_ones_and_those_of_the_branches() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tree = random_tree(rng, int(rng.integers(1, 25)))
        before = tree.token_ids.copy()
        branches = [
            Branch(int(rng.integers(tree.topology.num_nodes)), tuple(rng.integers(4, size=rng.integers(1, 8)).tolist()))
            for _ in range(4)
        ]
        limits = {"max_nodes": int(rng.integers(1, 45)), "max_levels": int(rng.integers(1, 12))}
        grafted = graft(tree, branches, **limits)

        expected = grafted_paths(tree, branches, **limits)
        assert sorted(paths_of(grafted.tree)) == sorted(expected)
        assert grafted.num_grafted == len(expected) - tree.topology.num_nodes
        np.testing.assert_array_equal(tree.token_ids, before)

        drawn_paths, topology = paths_of(tree), grafted.tree.topology
        for node, (path, drawn) in enumerate(zip(paths_of(grafted.tree), grafted.drawn_nodes.tolist(), strict=True)):
            children = topology.children(node)
            origins = grafted.drawn_nodes[list(children)]
            num_drawn = grafted.num_drawn_children(node)
            assert (origins[:num_drawn] >= 0).all(), "drawn siblings come first"
            assert (origins[num_drawn:] < 0).all()
            if drawn < 0:
                assert path not in drawn_paths
                assert num_drawn == 0
                assert node not in grafted.tree.draft_probs
                continue
            assert path == drawn_paths[drawn]
            assert topology.ranks[node] == tree.topology.ranks[drawn]
            assert num_drawn == tree.topology.num_children[drawn]
            assert grafted.tree.draft_probs.get(node) is tree.draft_probs.get(drawn)


def test_a_branch_shares_what_it_can() -> None:
    grafted = graft(drawn_tree(), [Branch(0, (5, 6, 8, 1))], max_nodes=99, max_levels=99)
    assert grafted.tree.topology.parents.tolist() == [-1, 0, 0, 2, 3, 3, 5]
    assert grafted.tree.token_ids.tolist() == [9, 4, 5, 6, 7, 8, 1]
    assert grafted.drawn_nodes.tolist() == [0, 1, 2, 3, 4, -1, -1]
    assert grafted.num_drawn_children(3) == 1


def test_a_branch_above_a_drawn_level_moves_its_nodes() -> None:
    grafted = graft(drawn_tree(), [Branch(1, (3,)), Branch(0, (2, 2))], max_nodes=99, max_levels=99)
    assert grafted.tree.token_ids.tolist() == [9, 4, 5, 2, 3, 6, 2, 7]
    assert grafted.drawn_nodes.tolist() == [0, 1, 2, -1, -1, 3, -1, 4]
    assert sorted(grafted.tree.draft_probs) == [0, 2, 5]


def test_what_belongs_to_the_drawn_tree_is_carried_over() -> None:
    """Without the root's position the noise of a coupled scheme would be another one."""
    tree = drawn_tree()
    tree.drawn[0] = range(1, 2)
    grafted = graft(tree, [Branch(1, (3,)), Branch(0, (2, 2))], max_nodes=99, max_levels=99)
    assert grafted.tree.root_position == 20
    assert grafted.tree.drawn == {0: range(1, 2), 2: range(1), 5: range(1)}


def test_an_accepted_path_says_of_the_draft_only_what_it_drew() -> None:
    grafted = graft(drawn_tree(), [Branch(1, (3,)), Branch(0, (2, 2))], max_nodes=99, max_levels=99)
    assert grafted.drawn_ranks([0, 2, 5, 7], [2, 1, 1, 0]) == ((2, 1, 1, 0), (2, 1, 1, 0))
    assert grafted.drawn_nodes.tolist() == [0, 1, 2, -1, -1, 3, -1, 4]
    assert grafted.drawn_ranks([0, 3, 6], [3, 1, 0]) == ((0,), (2,)), "the third child was nobody's draw"
    assert grafted.drawn_ranks([0, 1, 4], [1, 1, 0]) == ((1, 0), (2, 0))


def test_branches_share_each_others_nodes() -> None:
    branches = [Branch(0, (1, 2, 3)), Branch(0, (1, 2, 4)), Branch(2, (6, 7))]
    grafted = graft(drawn_tree(), branches, max_nodes=99, max_levels=99)
    assert grafted.num_grafted == 4


def test_a_tree_at_its_limits_stays_as_it_is() -> None:
    tree = drawn_tree()
    for limits in ({"max_nodes": 5, "max_levels": 99}, {"max_nodes": 99, "max_levels": 1}):
        grafted = graft(tree, [Branch(0, (1, 2))], **limits)
        assert grafted.tree is tree
        assert grafted.drawn_nodes.tolist() == [0, 1, 2, 3, 4]
    assert graft(tree, [], max_nodes=99, max_levels=99).num_grafted == 0


def test_a_full_tree_still_follows_a_branch_along_its_own_nodes() -> None:
    grafted = graft(drawn_tree(), [Branch(0, (5, 6, 7, 1, 1))], max_nodes=6, max_levels=99)
    assert grafted.tree.token_ids.tolist() == [9, 4, 5, 6, 7, 1]


def test_fixed_candidates_behind_drawn_ones_leave_the_targets_distribution() -> None:
    """The rule of the module's docstring, played out: seed 1, 5,000 plays, p-value above 0.001."""
    rng = np.random.default_rng(1)
    target, draft = np.array([0.1, 0.35, 0.05, 0.3, 0.2]), np.array([0.5, 0.05, 0.3, 0.05, 0.1])
    looked_up = [(1,), (3,), (1, 0)]
    emitted = np.zeros(5)
    for _ in range(5_000):
        tree = TokenTree.rooted(tree_of_counts([2, 0, 0]), root_token_id=0)
        tree.set_children(0, token_ids=draw_without_replacement(draft, 2, rng))
        grafted = graft(tree, [Branch(0, chain) for chain in looked_up], max_nodes=5, max_levels=2)
        children = grafted.tree.token_ids[1:].tolist()
        num_drawn = grafted.num_drawn_children(0)
        target_left, draft_left, token = target, draft, None
        for i, child in enumerate(children):
            chance = accept_probability(target_left, draft_left, child) if i < num_drawn else target_left[child]
            if rng.random() < chance:
                token = child
                break
            if i < num_drawn:
                target_left, draft_left = residual_step(target_left, draft_left, children[: i + 1])
            else:
                target_left = target_left.copy()
                target_left[child] = 0
                target_left /= target_left.sum()
        emitted[sample(target_left, rng) if token is None else token] += 1
    assert chi_square_p_value(emitted, target * 5_000) > 1e-3
