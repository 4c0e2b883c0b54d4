import numpy as np
import pytest

from runtime.sampling_params import SamplingParams
from runtime.speculation.scheme import AdjustedRows, Children, Place, Row, fill_up
from runtime.speculation.scheme_choice import scheme_for
from runtime.speculation.token_tree import TokenTree, TreeTopology

PARAMS = SamplingParams(temperature=1)


def tree() -> TokenTree:
    """Root 9 at position 20 with children 4 and 5; 6 below 5."""
    grown = TokenTree.rooted(TreeTopology.from_child_counts([2, 0, 1, 0]), root_token_id=9, root_position=20)
    grown.set_children(0, token_ids=[4, 5], draft_probs=np.float32([0.5, 0.5]), drawn=range(1))
    grown.set_children(2, token_ids=[6])
    return grown


def test_a_place_below_a_node_has_the_next_position_and_the_path_behind_the_text() -> None:
    assert Place.below(tree(), 0, PARAMS) == Place(PARAMS, 21)
    assert Place.below(tree(), 3, PARAMS) == Place(PARAMS, 23, (5, 6))


def test_a_trees_children_know_which_of_them_are_drawn() -> None:
    below = Children.below(tree(), 0)
    assert (below.token_ids.tolist(), below.drawn, below.drawn_token_ids) == ([4, 5], range(1), [4])
    assert below.draft_probs is not None
    below = Children.below(tree(), 2)
    assert (below.token_ids.tolist(), below.drawn_token_ids, below.draft_probs) == ([6], [], None)
    assert len(Children.below(tree(), 1).token_ids) == 0


def test_a_token_is_found_at_its_first_child() -> None:
    children = Children(np.array([3, 5, 5]))
    assert [children.index_of(token) for token in (3, 5, 4)] == [0, 1, None]


def test_missing_children_are_the_most_likely_other_tokens() -> None:
    row = np.float32([1, 5, 4, 3, -np.inf])
    assert fill_up([2], row, 1).tolist() == [2]
    assert fill_up([2], row, 3).tolist() == [2, 1, 3]
    assert fill_up([], row, 5).tolist() == [1, 2, 3, 0, 4]
    with pytest.raises(ValueError, match="vocabulary of 5"):
        fill_up([2], row, 6)


@pytest.mark.parametrize("verification", ["sequoia", "coupled", "hybrid", "specinfer", "top-k"])
def test_adjusted_rows_reach_placing_and_judging_with_the_nodes_own_path(verification: str) -> None:
    """A ban of the path's last token: neither model's row may get past it."""

    def ban_last(row: Row, path: tuple[int, ...]) -> Row:
        changed = row.copy()
        changed[path[-1]] = -np.inf
        return changed

    params = SamplingParams(temperature=1, verification=verification)
    scheme = AdjustedRows(scheme_for(params), ban_last)
    assert scheme.name == verification
    row, rng, place = np.float32([0, 9, 0, 0]), np.random.default_rng(0), Place(params, 5, (0, 1))
    for _ in range(20):
        assert 1 not in scheme.place(row, 3, place, rng).token_ids
        assert scheme.judge(Children(np.array([1])), row, place, rng).token_id != 1
    assert row.tolist() == [0, 9, 0, 0]
