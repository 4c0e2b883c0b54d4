"""The likeliest paths are those of a best-first tree, and weights follow texts as far as they reach."""

import numpy as np
import pytest

from profiles.likely_paths import PathLevel, likely_paths, path_weights
from runtime.speculation.tree_search import best_first


def worths_of(levels: tuple[PathLevel, ...], by_rank: list[float]) -> list[float]:
    worths, above = [1.0], np.ones(1)
    for level in levels:
        above = above[level.parents] * np.array(by_rank)[level.ranks]
        worths += above.tolist()
    return sorted(worths, reverse=True)


@pytest.mark.parametrize("num_paths", [1, 2, 9, 32, 200])
def test_they_are_the_nodes_of_a_best_first_tree(num_paths: int) -> None:
    by_rank = [0.61, 0.17, 0.07, 0.031]
    levels = likely_paths(by_rank, num_paths)
    search = best_first(by_rank, num_paths, num_paths)
    assert 1 + sum(len(level.ranks) for level in levels) == num_paths
    assert sum(worths_of(levels, by_rank)) == pytest.approx(search.expected_tokens[-1])
    assert len(levels) == search.depths.max()


def test_ranks_need_not_be_in_order() -> None:
    """Few positions may accept a later rank more often, or one before it never: 0.4, its square, then 0.1."""
    first, second = likely_paths([0.1, 0.0, 0.4], 4)
    assert (first.ranks.tolist(), second.ranks.tolist(), second.parents.tolist()) == ([2, 0], [2], [0])


def test_nothing_accepted_leaves_the_empty_path() -> None:
    assert likely_paths([0.0, 0.0], 32) == ()
    assert path_weights(np.zeros((3, 2)), ()).tolist() == [[1.0]] * 3


def test_weights_follow_the_text_from_every_position() -> None:
    """Paths 1, 2 and 1-1; the text follows rank 1, then rank 2 for two thirds, then rank 1 for a half."""
    levels = (PathLevel(np.array([0, 0]), np.array([0, 1])), PathLevel(np.array([0]), np.array([0])))
    followed = np.array([[1.0, 0.0], [0.25, 2 / 3], [0.5, 0.1], [0.0, 0.0]])
    assert path_weights(followed, levels) == pytest.approx(
        np.array([[1, 0, 0], [1, 1.0, 0], [1, 0.25 + 2 / 3, 0.25], [1, 0.6, 0.125]])
    )


def test_a_text_shorter_than_the_paths_has_no_weight_behind_its_end() -> None:
    levels = likely_paths([0.9], 8)
    assert path_weights(np.ones((2, 1)), levels).tolist() == [[1.0] + [0.0] * 7, [1.0, 1.0] + [0.0] * 6]
