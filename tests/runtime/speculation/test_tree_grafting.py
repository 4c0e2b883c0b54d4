"""Grafted trees against a set of paths, and sampling from them against the target's distribution."""

import numpy as np
import pytest

from runtime.speculation.rejection import accept_probability, residual_step
from runtime.speculation.sampling import draw_without_replacement, sample
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.tree_grafting import Branch, GraftedTree, graft
from tests.runtime.speculation.test_token_tree import random_topology
from tests.support.chi_square import chi_square_p_value

Paths = list[tuple[int, ...]]


def drawn_tree() -> TokenTree:
    """Root 9 at position 20 with children 4, 5; below 5 the chain 6, 7."""
    tree = TokenTree.rooted(TreeTopology.from_child_counts([2, 0, 1, 1, 0]), root_token_id=9, root_position=20)
    tree.set_children(0, token_ids=[4, 5], draft_probs=np.float32([0, 0]))
    tree.set_children(2, token_ids=[6], draft_probs=np.float32([2, 2]))
    tree.set_children(3, token_ids=[7], draft_probs=np.float32([3, 3]))
    return tree


def random_tree(rng: np.random.Generator, num_nodes: int) -> TokenTree:
    tree = TokenTree.rooted(random_topology(rng, num_nodes), root_token_id=0)
    for node in tree.topology.expanded_nodes.tolist():
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


@pytest.mark.parametrize("seed", range(60))
def test_the_paths_are_the_drawn_ones_and_those_of_the_branches(seed: int) -> None:
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
    assert grafted.drawn_path([0, 2, 5, 7]) == [0, 2, 3, 4]
    assert grafted.drawn_ranks([0, 2, 5, 7], [2, 1, 1, 0]) == ((2, 1, 1, 0), (2, 1, 1, 0))
    assert grafted.drawn_path([0, 3, 6]) == [0, -1, -1]
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
    assert GraftedTree.without_grafts(tree).num_grafted == 0


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
        tree = TokenTree.rooted(TreeTopology.from_child_counts([2, 0, 0]), root_token_id=0)
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
