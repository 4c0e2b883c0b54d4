"""Acceptance against constructed texts whose conditional acceptance is known; paths against a best-first tree; chances
of candidates against their formula and against simulated targets whose spread is known.

A text's positions are (acceptance by rank, how likely its token came as the accepted child of each rank); a single
number for the second stands for the first rank.
"""

import numpy as np
import pytest

from profiles.acceptance import (
    LEAST_SPREAD,
    MAX_DEPTHS,
    MIN_DEPTH_POSITIONS,
    NONE_WEIGHT,
    NUM_GROUPS,
    ForcedPosition,
    PathLevel,
    acceptance_tables,
    fit_spread,
    likely_paths,
    log_chances,
    path_weights,
)
from profiles.pair_profile import LARGEST_SPREAD, AcceptanceTable
from runtime.speculation.tree_search import best_first

Position = tuple[list[float], float | list[float]]


def positions_of(texts: list[list[Position]], *, temperature: float = 0.6) -> list[ForcedPosition]:
    positions = []
    for number, text in enumerate(texts):
        for acceptance, followed in text:
            by_rank = np.zeros(len(acceptance))
            by_rank[: np.size(followed)] = followed
            positions.append(ForcedPosition(temperature, number, np.array(acceptance), by_rank))
    return positions


def table_of(positions: list[ForcedPosition]) -> AcceptanceTable:
    (table,) = acceptance_tables(positions)
    return table


def test_by_rank_is_the_mean_with_the_standard_error_between_texts() -> None:
    """Sums 1.4 of two positions and 0.4 of one, mean 0.6: surpluses 0.2 and -0.2."""
    table = table_of(positions_of([[([0.8, 0.1], 1.0), ([0.6, 0.3], 0.0)], [([0.4, 0.2], 1.0)]]))
    assert table.by_rank == pytest.approx((0.6, 0.2))
    assert table.by_rank_errors == pytest.approx((np.sqrt(2 * (0.04 + 0.04)) / 3, 0.0), abs=1e-7)
    assert (table.num_positions, table.num_texts) == ((3, 3), 2)
    assert table.by_depth[0] == pytest.approx(table.by_rank)


def test_the_positions_of_a_single_text_count_as_independent() -> None:
    table = table_of(positions_of([[([0.8], 1.0), ([0.6], 0.0), ([0.4], 1.0)]]))
    assert table.by_rank_errors == pytest.approx((np.std([0.8, 0.6, 0.4]) / np.sqrt(2),))


def test_the_error_between_texts_is_how_far_such_means_lie_apart() -> None:
    """200 summaries of 12 texts of 20 positions, each text with a level of its own; seed 8. The error's mean is within
    8 % of the spread of the means, four times as wide as that of independent positions would be."""
    rng = np.random.default_rng(8)
    means, errors = [], []
    for _ in range(200):
        levels = rng.uniform(0.5, 1.0, size=12)
        table = table_of(positions_of([[([float(level)], 1.0)] * 20 for level in levels]))
        means.append(table.by_rank[0])
        errors.append(table.by_rank_errors[0])
    assert np.mean(np.array(errors, dtype=np.float64)) == pytest.approx(np.std(means), rel=0.08)


def test_one_position_has_no_error() -> None:
    table = table_of(positions_of([[([0.8, 0.1], 1.0)]]))
    assert table.by_rank_errors == (None, None)
    assert (table.by_depth, table.by_depth_positions) == (((0.8, 0.1),), (1,))


def test_only_positions_behind_a_likely_accepted_path_count_at_a_depth() -> None:
    """A greedy text of ranks 1 2 0 1: depth 1 is reached at positions 1 and 2 (not 3), depth 2 at 2 only."""
    hits = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    table = table_of(positions_of([[(hit, hit) for hit in hits]] * 20, temperature=0.0))
    assert table.by_depth_positions == (80, 40, 20)
    assert table.by_depth == ((0.5, 0.25), (0.0, 0.5), (0.0, 0.0))


def test_a_late_child_is_no_likely_path() -> None:
    """Rank 1 in nine of ten positions, else rank 8: none of the 32 likeliest paths has two eighth children, so that a
    text of nothing else counts at depths 0 and 1 only."""
    first, late = np.eye(8)[0].tolist(), np.eye(8)[7].tolist()
    easy, hard = [(first, first)] * 90, [(late, late)] * 10
    table = table_of(positions_of([[*easy], [*hard]], temperature=0.0))
    assert table.by_rank == pytest.approx((0.9, *[0.0] * 6, 0.1))
    assert table.by_depth[1][0] == pytest.approx(89 / (89 + 9))
    assert table.by_depth[2][0] == 1.0


def test_acceptance_that_is_correlated_along_a_path_raises_deeper_rows() -> None:
    """Half the texts are easy (0.9), half hard (0.3): after j accepted drafts a text is easy with weight .9^j."""
    easy, hard = [([0.9], 0.9)] * 12, [([0.3], 0.3)] * 12
    table = table_of(positions_of([*[easy] * 200, *[hard] * 200]))
    for depth in range(6):
        expected = (0.9 ** (depth + 1) + 0.3 ** (depth + 1)) / (0.9**depth + 0.3**depth)
        assert table.by_depth[depth][0] == pytest.approx(expected, abs=1e-6)
    assert table.by_rank == pytest.approx((0.6,))
    weights = np.array([0.9] * 200 + [0.3] * 200).repeat(11)
    assert table.by_depth_positions[1] == round(weights.sum() ** 2 / (weights**2).sum())


def test_independent_acceptance_gives_equal_rows() -> None:
    """Followed and acceptance drawn afresh at each position: no row may differ from the mean by more than chance.

    20,000 positions, seed 5; the standard error of row 3 is 0.006, and 4 of them are allowed.
    """
    rng = np.random.default_rng(5)
    texts = []
    for _ in range(1000):
        rates = rng.uniform(0.3, 1.0, size=20)
        texts.append([([float(rate)], float(rng.random() < rate)) for rate in rates])
    table = table_of(positions_of(texts))
    for row in table.by_depth[:4]:
        assert row[0] == pytest.approx(0.65, abs=0.025)


def test_rows_end_where_the_evidence_does_and_the_last_pools_the_rest() -> None:
    """One text of 60 positions, and 31 first children in a row: rows 0..30 stand alone, the deepest is the last."""
    table = table_of(positions_of([[([0.97, 0.01], 1.0)] * 60]))
    assert len(table.by_depth) == MAX_DEPTHS
    assert table.by_depth_positions[:31] == tuple(range(60, 29, -1))
    short = table_of(positions_of([[([0.97, 0.01], 1.0)] * 25]))
    assert len(short.by_depth) == 1 + 25 - int(MIN_DEPTH_POSITIONS) + 1
    assert short.by_depth_positions[-1] < MIN_DEPTH_POSITIONS


def test_the_pooled_row_is_the_mean_over_all_deeper_ones() -> None:
    text = [([0.1 * index], 1.0) for index in range(4)]
    table = table_of(positions_of([text]))  # 4 positions: no depth but the root's has evidence of its own
    # Position t is at depths 1..t, so it counts t times.
    assert table.by_depth == ((0.15,), (pytest.approx((1 * 0.1 + 2 * 0.2 + 3 * 0.3) / 6),))


def test_temperatures_are_kept_apart() -> None:
    positions = [*positions_of([[([0.5], 1.0)]]), ForcedPosition(0.0, 9, np.array([1.0]), np.array([1.0]))]
    greedy, sampled = acceptance_tables(positions)
    assert (greedy.temperature, sampled.temperature) == (0.0, 0.6)
    assert (greedy.num_positions, sampled.num_positions) == ((1,), (1,))
    assert greedy.by_rank == (1.0,)


def ranked(scores: list[float], emitted: int) -> ForcedPosition:
    hits = np.arange(len(scores)) == emitted
    return ForcedPosition(0.0, 0, hits.astype(float), hits.astype(float), np.float32(scores), emitted)


def test_positions_are_grouped_by_how_sure_the_draft_is() -> None:
    """Half the positions have a clear favourite, which is right 95 times of 100, half have two that are level."""
    rng, positions = np.random.default_rng(4), []
    for index in range(1600):
        if index % 2:
            positions.append(ranked([5.0, 1.0, 0.0], int(rng.choice(3, p=[0.95, 0.04, 0.01]))))
        else:
            positions.append(ranked([5.0, 5.0, 0.0], int(rng.choice(3, p=[0.5, 0.49, 0.01]))))
    table = table_of(positions)
    assert table.spread is not None
    rows = np.array(table.by_confidence)
    assert rows.shape == (NUM_GROUPS, 3)
    assert rows[: NUM_GROUPS // 2].mean(axis=0) == pytest.approx([0.5, 0.49, 0.01], abs=0.03)
    assert rows[NUM_GROUPS // 2 :].mean(axis=0) == pytest.approx([0.95, 0.04, 0.01], abs=0.03)


def test_far_ranks_that_a_group_never_saw_have_what_their_scores_say() -> None:
    rows = np.array(
        table_of([ranked([3.0, 2.0, 1.0 - index / 100], 0 if index % 2 else 1) for index in range(80)]).by_confidence
    )
    assert (rows[:, 2] > 0).all()


def test_without_scores_or_with_too_few_positions_nothing_is_said_of_context() -> None:
    table = table_of(positions_of([[([0.8, 0.1], 1.0)] * 20]))
    assert (table.spread, table.by_confidence) == (None, ())
    assert table_of([ranked([3.0, 2.0], 0)] * (NUM_GROUPS - 1)).by_confidence == ()


def worths_of(levels: tuple[PathLevel, ...], by_rank: list[float]) -> list[float]:
    worths, above = [1.0], np.ones(1)
    for parents, ranks in levels:
        above = above[parents] * np.array(by_rank)[ranks]
        worths += above.tolist()
    return sorted(worths, reverse=True)


@pytest.mark.parametrize("num_paths", [1, 2, 9, 32, 200])
def test_they_are_the_nodes_of_a_best_first_tree(num_paths: int) -> None:
    by_rank = [0.61, 0.17, 0.07, 0.031]
    levels = likely_paths(by_rank, num_paths)
    search = best_first(by_rank, num_paths, num_paths)
    assert 1 + sum(len(ranks) for _, ranks in levels) == num_paths
    assert sum(worths_of(levels, by_rank)) == pytest.approx(search.expected_tokens[-1])
    assert len(levels) == search.depths.max()


def test_ranks_need_not_be_in_order() -> None:
    """Few positions may accept a later rank more often, or one before it never: 0.4, its square, then 0.1."""
    (_, first), (parents, second) = likely_paths([0.1, 0.0, 0.4], 4)
    assert (first.tolist(), second.tolist(), parents.tolist()) == ([2, 0], [2], [0])


def test_nothing_accepted_leaves_the_empty_path() -> None:
    assert likely_paths([0.0, 0.0], 32) == ()
    assert path_weights(np.zeros((3, 2)), ()).tolist() == [[1.0]] * 3


def test_weights_follow_the_text_from_every_position() -> None:
    """Paths 1, 2 and 1-1; the text follows rank 1, then rank 2 for two thirds, then rank 1 for a half."""
    levels = ((np.array([0, 0]), np.array([0, 1])), (np.array([0]), np.array([0])))
    followed = np.array([[1.0, 0.0], [0.25, 2 / 3], [0.5, 0.1], [0.0, 0.0]])
    assert path_weights(followed, levels) == pytest.approx(
        np.array([[1, 0, 0], [1, 1.0, 0], [1, 0.25 + 2 / 3, 0.25], [1, 0.6, 0.125]])
    )


def test_a_text_shorter_than_the_paths_has_no_weight_behind_its_end() -> None:
    levels = likely_paths([0.9], 8)
    assert path_weights(np.ones((2, 1)), levels).tolist() == [[1.0] + [0.0] * 7, [1.0, 1.0] + [0.0] * 6]


def emitted_by_a_target(spread: float, num_positions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 8 candidates, best first, and which is the largest once each has Gumbel noise of that scale."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.normal(0, 2, (num_positions, 8)), axis=1)
    chosen = (scores + rng.gumbel(0, spread, scores.shape)).argmax(axis=1)
    return scores, chosen


def test_chances_are_the_formula_and_leave_a_share_for_none() -> None:
    chances = np.exp(log_chances([3.0, 2.0, -np.inf], spread=0.5))
    total = 1 + np.exp(-2) + NONE_WEIGHT
    assert chances == pytest.approx([1 / total, np.exp(-2) / total, 0])


def test_only_gaps_count() -> None:
    scores = np.array([[2.0, 1.0, 0.5], [102.0, 101.0, 100.5]])
    first, second = log_chances(scores, spread=0.8)
    assert first == pytest.approx(second)


def test_chances_say_how_often_a_candidate_is_emitted() -> None:
    """Seed 0, 20,000 positions: standard errors are below 0.004."""
    scores, chosen = emitted_by_a_target(0.8, 20_000)
    chances = np.exp(log_chances(scores, spread=0.8)) * (1 + NONE_WEIGHT / 2)
    seen = (chosen[:, None] == np.arange(8)).mean(axis=0)
    assert np.abs(chances.mean(axis=0) - seen).max() < 0.012


@pytest.mark.parametrize("spread", [0.2, 0.8, 2.5])
def test_a_fit_finds_the_spread(spread: float) -> None:
    assert fit_spread(*emitted_by_a_target(spread, 20_000)) == pytest.approx(spread, rel=0.05)


def test_a_fit_is_the_likeliest_spread() -> None:
    scores, chosen = emitted_by_a_target(0.8, 300)
    fitted = fit_spread(scores, chosen)

    def likelihood(spread: float) -> float:
        return float(log_chances(scores, spread=spread)[np.arange(len(chosen)), chosen].mean())

    assert likelihood(fitted) > likelihood(fitted * 1.02)
    assert likelihood(fitted) > likelihood(fitted / 1.02)


def test_positions_where_none_was_emitted_and_missing_candidates_change_nothing() -> None:
    scores, chosen = emitted_by_a_target(0.8, 200)
    padded = np.pad(scores, ((0, 5), (0, 2)), constant_values=-np.inf)
    padded[200:, 0] = 0.0
    assert fit_spread(padded, np.append(chosen, [-1] * 5)) == pytest.approx(fit_spread(scores, chosen))


def test_a_draft_that_is_always_right_and_one_that_knows_nothing_end_at_the_limits() -> None:
    scores, _ = emitted_by_a_target(1.0, 100)
    assert fit_spread(scores, np.zeros(100)) == pytest.approx(LEAST_SPREAD, rel=0.01)
    assert fit_spread(scores, np.full(100, 7)) == pytest.approx(LARGEST_SPREAD, rel=0.01)


def test_no_positions_and_no_spread_are_refused() -> None:
    with pytest.raises(ValueError, match="without a position"):
        fit_spread(np.zeros((2, 3)), [-1, -1])
    with pytest.raises(ValueError, match="more than 0 logits"):
        log_chances([1.0], spread=0.0)
