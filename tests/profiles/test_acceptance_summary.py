"""The estimator by depth against constructed texts whose conditional acceptance is known.

A text's positions are (acceptance by rank, how likely its token came as the accepted child of each rank); a single
number for the second stands for the first rank.
"""

import numpy as np
import pytest

from profiles.acceptance_summary import MAX_DEPTHS, MIN_DEPTH_POSITIONS, NUM_GROUPS, AcceptanceSummary, ForcedPosition

Position = tuple[list[float], float | list[float]]


def summary_of(texts: list[list[Position]], *, temperature: float = 0.6) -> AcceptanceSummary:
    summary = AcceptanceSummary()
    for number, text in enumerate(texts):
        for acceptance, followed in text:
            by_rank = np.zeros(len(acceptance))
            by_rank[: np.size(followed)] = followed
            summary.add(ForcedPosition(temperature, number, np.array(acceptance), by_rank))
    return summary


def test_by_rank_is_the_mean_with_the_standard_error_between_texts() -> None:
    """Sums 1.4 of two positions and 0.4 of one, mean 0.6: surpluses 0.2 and -0.2."""
    table = summary_of([[([0.8, 0.1], 1.0), ([0.6, 0.3], 0.0)], [([0.4, 0.2], 1.0)]]).table(0.6)
    assert table.by_rank == pytest.approx((0.6, 0.2))
    assert table.by_rank_errors == pytest.approx((np.sqrt(2 * (0.04 + 0.04)) / 3, 0.0), abs=1e-7)
    assert (table.num_positions, table.num_texts) == ((3, 3), 2)
    assert table.by_depth[0] == pytest.approx(table.by_rank)


def test_the_positions_of_a_single_text_count_as_independent() -> None:
    table = summary_of([[([0.8], 1.0), ([0.6], 0.0), ([0.4], 1.0)]]).table(0.6)
    assert table.by_rank_errors == pytest.approx((np.std([0.8, 0.6, 0.4]) / np.sqrt(2),))


def test_the_error_between_texts_is_how_far_such_means_lie_apart() -> None:
    """200 summaries of 12 texts of 20 positions, each text with a level of its own; seed 8. The error's mean is within
    8 % of the spread of the means, four times as wide as that of independent positions would be."""
    rng = np.random.default_rng(8)
    means, errors = [], []
    for _ in range(200):
        levels = rng.uniform(0.5, 1.0, size=12)
        table = summary_of([[([float(level)], 1.0)] * 20 for level in levels]).table(0.6)
        means.append(table.by_rank[0])
        errors.append(table.by_rank_errors[0])
    assert np.mean(np.array(errors, dtype=np.float64)) == pytest.approx(np.std(means), rel=0.08)


def test_one_position_has_no_error() -> None:
    table = summary_of([[([0.8, 0.1], 1.0)]]).table(0.6)
    assert table.by_rank_errors == (None, None)
    assert (table.by_depth, table.by_depth_positions) == (((0.8, 0.1),), (1,))


def test_only_positions_behind_a_likely_accepted_path_count_at_a_depth() -> None:
    """A greedy text of ranks 1 2 0 1: depth 1 is reached at positions 1 and 2 (not 3), depth 2 at 2 only."""
    hits = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    table = summary_of([[(hit, hit) for hit in hits]] * 20, temperature=0.0).table(0.0)
    assert table.by_depth_positions == (80, 40, 20)
    assert table.by_depth == ((0.5, 0.25), (0.0, 0.5), (0.0, 0.0))


def test_a_late_child_is_no_likely_path() -> None:
    """Rank 1 in nine of ten positions, else rank 8: none of the 32 likeliest paths has two eighth children, so that a
    text of nothing else counts at depths 0 and 1 only."""
    first, late = np.eye(8)[0].tolist(), np.eye(8)[7].tolist()
    easy, hard = [(first, first)] * 90, [(late, late)] * 10
    table = summary_of([[*easy], [*hard]], temperature=0.0).table(0.0)
    assert table.by_rank == pytest.approx((0.9, *[0.0] * 6, 0.1))
    assert table.by_depth[1][0] == pytest.approx(89 / (89 + 9))
    assert table.by_depth[2][0] == 1.0


def test_acceptance_that_is_correlated_along_a_path_raises_deeper_rows() -> None:
    """Half the texts are easy (0.9), half hard (0.3): after j accepted drafts a text is easy with weight .9^j."""
    easy, hard = [([0.9], 0.9)] * 12, [([0.3], 0.3)] * 12
    table = summary_of([*[easy] * 200, *[hard] * 200]).table(0.6)
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
    table = summary_of(texts).table(0.6)
    for row in table.by_depth[:4]:
        assert row[0] == pytest.approx(0.65, abs=0.025)


def test_rows_end_where_the_evidence_does_and_the_last_pools_the_rest() -> None:
    """One text of 60 positions, and 31 first children in a row: rows 0..30 stand alone, the deepest is the last."""
    table = summary_of([[([0.97, 0.01], 1.0)] * 60]).table(0.6)
    assert len(table.by_depth) == MAX_DEPTHS
    assert table.by_depth_positions[:31] == tuple(range(60, 29, -1))
    short = summary_of([[([0.97, 0.01], 1.0)] * 25]).table(0.6)
    assert len(short.by_depth) == 1 + 25 - int(MIN_DEPTH_POSITIONS) + 1
    assert short.by_depth_positions[-1] < MIN_DEPTH_POSITIONS


def test_the_pooled_row_is_the_mean_over_all_deeper_ones() -> None:
    text = [([0.1 * index], 1.0) for index in range(4)]
    table = summary_of([text]).table(0.6)  # 4 positions: no depth but the root's has evidence of its own
    # Position t is at depths 1..t, so it counts t times.
    assert table.by_depth == ((0.15,), (pytest.approx((1 * 0.1 + 2 * 0.2 + 3 * 0.3) / 6),))


def test_temperatures_are_kept_apart() -> None:
    summary = summary_of([[([0.5], 1.0)]])
    summary.add(ForcedPosition(0.0, 9, np.array([1.0]), np.array([1.0])))
    assert summary.temperatures == (0.0, 0.6)
    assert (summary.num_positions(0.0), summary.num_positions(0.6)) == (1, 1)
    assert summary.table(0.0).by_rank == (1.0,)


def ranked(scores: list[float], emitted: int) -> ForcedPosition:
    hits = np.arange(len(scores)) == emitted
    return ForcedPosition(0.0, 0, hits.astype(float), hits.astype(float), np.float32(scores), emitted)


def test_positions_are_grouped_by_how_sure_the_draft_is() -> None:
    """Half the positions have a clear favourite, which is right 95 times of 100, half have two that are level."""
    rng, summary = np.random.default_rng(4), AcceptanceSummary()
    for index in range(1600):
        if index % 2:
            summary.add(ranked([5.0, 1.0, 0.0], int(rng.choice(3, p=[0.95, 0.04, 0.01]))))
        else:
            summary.add(ranked([5.0, 5.0, 0.0], int(rng.choice(3, p=[0.5, 0.49, 0.01]))))
    table = summary.table(0.0)
    assert table.spread is not None
    rows = np.array(table.by_confidence)
    assert rows.shape == (NUM_GROUPS, 3)
    assert rows[: NUM_GROUPS // 2].mean(axis=0) == pytest.approx([0.5, 0.49, 0.01], abs=0.03)
    assert rows[NUM_GROUPS // 2 :].mean(axis=0) == pytest.approx([0.95, 0.04, 0.01], abs=0.03)


def test_far_ranks_that_a_group_never_saw_have_what_their_scores_say() -> None:
    summary = AcceptanceSummary()
    for index in range(80):
        summary.add(ranked([3.0, 2.0, 1.0 - index / 100], 0 if index % 2 else 1))
    rows = np.array(summary.table(0.0).by_confidence)
    assert (rows[:, 2] > 0).all()


def test_without_scores_or_with_too_few_positions_nothing_is_said_of_context() -> None:
    summary = summary_of([[([0.8, 0.1], 1.0)] * 20])
    assert (summary.table(0.6).spread, summary.table(0.6).by_confidence) == (None, ())
    few = AcceptanceSummary()
    for _ in range(NUM_GROUPS - 1):
        few.add(ranked([3.0, 2.0], 0))
    assert few.table(0.0).by_confidence == ()
