"""Where branches start and how long they are, on a text that repeats itself."""

from runtime.speculation.lookup_branches import lookup_branches
from runtime.speculation.ngram_lookup import NgramIndex
from runtime.speculation.token_tree import TokenTree, TreeTopology
from runtime.speculation.tree_grafting import Branch, graft

TEXT = [*range(20), 50, 0, 1, 2, 3]


def tree_of(*likeliest: int) -> TokenTree:
    """Two children per node of the likeliest path, the second ones never in the text."""
    num_levels = len(likeliest)
    tree = TokenTree.rooted(TreeTopology.from_child_counts([2, *[2, 0] * (num_levels - 1), 0, 0]), root_token_id=3)
    for node, token in zip(tree.topology.expanded_nodes.tolist(), likeliest, strict=True):
        tree.set_children(node, token_ids=[token, 99])
    return tree


def index_of(text: list[int]) -> NgramIndex:
    index = NgramIndex(min_match=3)
    index.extend(text)
    return index


def test_a_tree_that_reads_like_the_text_goes_on_at_its_tip() -> None:
    branches = lookup_branches(index_of(TEXT), tree_of(4, 5, 6))
    assert branches == [
        Branch(5, (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 50)),  # 7 matched
        Branch(0, (4, 5, 6, 7, 8, 9, 10, 11)),  # 4 matched
    ]
    grafted = graft(tree_of(4, 5, 6), branches, max_nodes=99, max_levels=99)
    assert grafted.num_grafted == 14, "the root's branch has nothing to add"


def test_a_draft_that_leaves_the_text_gets_the_roots_branch_alone() -> None:
    assert lookup_branches(index_of(TEXT), tree_of(4, 70)) == [Branch(0, (4, 5, 6, 7, 8, 9, 10, 11))]


def test_the_tip_finds_its_way_back_into_the_text() -> None:
    """Behind a changed name the draft goes on as the text did."""
    branches = lookup_branches(index_of([*TEXT[:-2], 77]), tree_of(4, 5, 6))
    assert branches == [Branch(5, (7, 8, 9, 10, 11, 12))]


def test_a_root_alone_and_a_limit() -> None:
    root = TokenTree.rooted(TreeTopology.single(), root_token_id=3)
    assert lookup_branches(index_of(TEXT), root, max_tokens=3) == [Branch(0, (4, 5, 6))]


def test_a_text_without_repetition_has_no_branch() -> None:
    assert lookup_branches(index_of([*range(20)]), tree_of(7, 9, 11)) == []
