"""Topologies against brute force, and token trees that fill up level by level."""

import numpy as np
import pytest

from runtime.speculation.token_tree import TokenTree, TreeTopology, number_breadth_first
from tests.support.trees import tree_of_counts

#        0
#     1  2  3
#   4 5     6
#   7
CHILD_COUNTS = [3, 2, 0, 1, 1, 0, 0, 0]


def random_topology(rng: np.random.Generator, num_nodes: int) -> TreeTopology:
    parents = np.sort([int(rng.integers(node)) for node in range(1, num_nodes)])
    return TreeTopology(np.concatenate(([-1], np.minimum(parents, np.arange(num_nodes - 1)))))


def test_child_counts_give_a_breadth_first_tree() -> None:
    topology = tree_of_counts(CHILD_COUNTS)
    assert topology.parents.tolist() == [-1, 0, 0, 0, 1, 1, 3, 4]
    assert topology.ranks.tolist() == [0, 1, 2, 3, 1, 2, 1, 1]
    assert topology.depths.tolist() == [0, 1, 1, 1, 2, 2, 2, 3]
    assert topology.num_children.tolist() == CHILD_COUNTS
    assert topology.level_slices == ((0, 1), (1, 4), (4, 7), (7, 8))
    assert (topology.num_nodes, topology.num_levels) == (8, 4)
    assert np.flatnonzero(topology.num_children).tolist() == [0, 1, 3, 4]
    assert [list(topology.children(node)) for node in range(8)] == [[1, 2, 3], [4, 5], [], [6], [7], [], [], []]
    assert np.flatnonzero(topology.ancestor_mask[7]).tolist() == [0, 1, 4, 7]


def test_ancestor_mask_equals_walking_up() -> None:
    rng = np.random.default_rng(0)
    for num_nodes in (1, 2, 5, 40):
        topology = random_topology(rng, num_nodes)
        expected = np.zeros((num_nodes, num_nodes), dtype=bool)
        for node in range(num_nodes):
            ancestor = node
            while ancestor >= 0:
                expected[node, ancestor] = True
                ancestor = int(topology.parents[ancestor])
        np.testing.assert_array_equal(topology.ancestor_mask, expected)
        np.testing.assert_array_equal(topology.depths, expected.sum(axis=1) - 1)


def test_children_and_ranks_agree_with_parents() -> None:
    topology = random_topology(np.random.default_rng(1), 60)
    for node in range(60):
        children = topology.children(node)
        assert list(children) == np.flatnonzero(topology.parents == node).tolist()
        assert topology.ranks[list(children)].tolist() == list(range(1, len(children) + 1))


def test_a_chain_has_one_node_per_level() -> None:
    topology = TreeTopology.chain(4)
    assert topology.parents.tolist() == [-1, 0, 1, 2]
    assert topology.num_levels == 4
    assert TreeTopology.single().num_nodes == 1
    assert TreeTopology.single() == TreeTopology.chain(1)


def test_equal_parents_are_equal_topologies() -> None:
    first, second = tree_of_counts(CHILD_COUNTS), TreeTopology([-1, 0, 0, 0, 1, 1, 3, 4])
    assert first == second
    assert hash(first) == hash(second)
    assert first != TreeTopology.chain(8)


def test_a_topology_cannot_be_changed() -> None:
    given = np.array([-1, 0, 0])
    topology = TreeTopology(given)
    given[2] = 1
    assert topology.parents.tolist() == [-1, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        topology.ancestor_mask[0, 0] = False


@pytest.mark.parametrize(
    "parents", [[], [0], [-1, -1], [-1, 1], [-1, 0, 2], [-1, 0, 1, 0], [[-1, 0]]], ids=lambda value: str(value)
)
def test_parents_that_are_no_breadth_first_tree_are_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match=r"parent|breadth"):
        TreeTopology(np.array(parents))


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="1 node or more"):
        TreeTopology.chain(0)


def test_a_token_tree_fills_in_drawing_order() -> None:
    tree = TokenTree.rooted(tree_of_counts(CHILD_COUNTS), root_token_id=9)
    row = np.full(16, 1 / 16, dtype=np.float32)
    tree.set_children(0, token_ids=[5, 6, 7], draft_probs=row)
    tree.set_children(1, token_ids=[3, 2])
    assert tree.token_ids.tolist() == [9, 5, 6, 7, 3, 2, -1, -1]
    assert tree.path_token_ids(5).tolist() == [9, 5, 2]
    assert list(tree.draft_probs) == [0]
    assert tree.draft_probs[0] is row
    assert tree.drawn == {0: range(3)}  # without a row nothing is drawn


def test_a_token_tree_refuses_the_wrong_number_of_tokens() -> None:
    tree = TokenTree.rooted(TreeTopology.chain(3), root_token_id=0)
    with pytest.raises(ValueError, match="node 0 has 1 children, found 2"):
        tree.set_children(0, token_ids=[1, 2])


def test_a_tree_that_grew_in_any_order_is_numbered_breadth_first() -> None:
    """Grown as 0, its second child 1, that one's child 2, its first child 3, and 4, which is not in the tree."""
    order, topology = number_breadth_first(
        np.array([0, 2, 1, 3]),
        parents=np.array([-1, 0, 1, 0, 3]),
        depths=np.array([0, 1, 2, 1, 2]),
        ranks=np.array([0, 5, 1, 2, 1]),
    )
    assert order.tolist() == [0, 3, 1, 2]
    assert topology.parents.tolist() == [-1, 0, 0, 2]
