"""Cost tables, rounds that agree with the recurrence, and costs learned from measurements and from a profile."""

from dataclasses import replace

import numpy as np
import pytest

from offload.pass_statistics import PassStatistics
from runtime.events import Round
from runtime.planner.costs import CostLearner, CostTable, RoundCosts, StreamShape, _line, cost_factor, fit_cost
from tests.support.pipeline_simulation import PipelineParts, round_seconds

SHAPE = StreamShape((1000, None, 1000, 1000), num_slots=2)
INITIAL = RoundCosts(
    copy_seconds=(0.1, None, 0.1, 0.1),
    pass_seconds=CostTable((1, 101), (0.2, 1.2)),
    draft_step_seconds=CostTable((1, 11), (0.01, 0.02)),
    walk_seconds=CostTable((1,), (0.05,)),
    num_slots=2,
)


def test_a_table_is_straight_between_its_points_and_goes_on_beyond_them() -> None:
    table = CostTable((1, 3, 4), (1.0, 2.0, 4.0))
    assert table([0.5, 1, 2, 3, 4, 6]).tolist() == [1.0, 1.0, 1.5, 2.0, 4.0, 8.0]
    assert CostTable((8,), (0.5,))([1, 8, 80]).tolist() == [0.5] * 3


def test_a_table_that_falls_at_its_end_stays_level_beyond() -> None:
    assert CostTable((1, 2), (2.0, 1.0))([2, 100]).tolist() == [1.0, 1.0]


def test_sizes_cost_what_the_next_whole_multiple_costs() -> None:
    table = CostTable((1, 2, 8, 16), (1.0, 2.0, 8.0, 10.0), multiple=8).times(2.0)
    assert table([1, 2, 5, 8, 9, 16, 17, 24]).tolist() == [2.0, 4.0, 10.0, 16.0, 20.0, 20.0, 24.0, 24.0]
    assert CostTable((1, 3), (1.0, 2.0))([1.5, 2.5]).tolist() == [1.25, 1.75]


def test_rounds_are_those_of_the_recurrence() -> None:
    costs = RoundCosts(
        copy_seconds=(0.1, None, 0.1),
        pass_seconds=CostTable((1, 101), (0.03, 0.63)),
        draft_step_seconds=CostTable((1,), (0.01,)),
        walk_seconds=CostTable((1,), (0.02,)),
        num_slots=2,
    )
    for nodes, draft_seconds in ((1, 0.0), (51, 0.1), (201, 0.3)):
        expected = round_seconds(
            PipelineParts(
                copy_seconds=costs.copy_seconds,
                compute_seconds=((0.03 + 0.006 * (nodes - 1)) / 3,) * 3,
                num_slots=2,
                between_passes_seconds=draft_seconds + 0.02,
            )
        )
        assert costs.round_seconds([nodes], [draft_seconds]) == pytest.approx([expected])


def test_shared_cores_slow_the_copies_and_the_computation() -> None:
    """Four layers, copies 0.1 s, computation long or short: the longer of both, each with its share of the other."""
    costs = RoundCosts(
        copy_seconds=(0.1,) * 4,
        pass_seconds=CostTable((1, 101), (0.04, 0.84)),
        draft_step_seconds=None,
        walk_seconds=CostTable((1,), (0.0,)),
        num_slots=3,
        compute_slowdown=0.5,
        copy_slowdown=0.25,
    )
    assert costs.round_seconds([1, 101], [0.0, 0.0]) == pytest.approx([0.4 + 0.25 * 0.04, 0.84 + 0.5 * 0.4])


def test_disk_residents_and_slowdowns_enter_a_round_as_its_parts() -> None:
    costs = RoundCosts(
        copy_seconds=(0.1, None, 0.2, 0.1),
        pass_seconds=CostTable((1, 101), (0.04, 0.84)),
        draft_step_seconds=None,
        walk_seconds=CostTable((1, 100), (0.01, 0.1)),
        num_slots=2,
        read_seconds=(None, None, 0.3, 0.3),
        num_stages=2,
        compute_slowdown=0.5,
        copy_slowdown=0.25,
    )
    nodes, draft_seconds = np.array([1, 30, 200]), np.array([0.0, 0.5, 0.1])
    expected = []
    for num_nodes, seconds in zip(nodes, draft_seconds, strict=True):
        per_layer = float(costs.pass_seconds(num_nodes)) / 4
        parts = PipelineParts(
            copy_seconds=tuple(None if copy is None else copy + 0.25 * per_layer for copy in costs.copy_seconds),
            compute_seconds=tuple(per_layer + 0.5 * (copy or 0.0) for copy in costs.copy_seconds),
            num_slots=2,
            between_passes_seconds=float(seconds + costs.walk_seconds(num_nodes)),
            read_seconds=costs.read_seconds,
            num_stages=2,
        )
        expected.append(round_seconds(parts))
    assert costs.round_seconds(nodes, draft_seconds) == pytest.approx(expected, rel=1e-12)


def observation(
    *,
    num_tokens: int = 51,
    compute: float = 0.7,
    link: float = 0.3,
    step: float = 0.015,
    overhead: float = 0.05,
    disk: float = 0.0,
    bytes_read: int = 0,
    rows_sent: int = 0,
) -> Round:
    """A round with one draft step of width 6; by default just as INITIAL expects."""
    statistics = PassStatistics(
        seconds=compute + 0.1,
        wait_seconds=0.1,
        link_busy_seconds=link,
        bytes_streamed=3000,
        num_layers=4,
        num_streamed_layers=3,
        compute_seconds=compute,
        disk_busy_seconds=disk,
        bytes_read=bytes_read,
        cache_bytes_sent=rows_sent,
    )
    return Round(
        parents=(-1,) + (0,) * (num_tokens - 1),
        path=(0,),
        draft_seconds=step,
        verify_seconds=compute + 0.1 + overhead,
        pass_statistics=statistics,
        num_pass_tokens=num_tokens,
        draft_steps=((6, step),),
    )


def warm(initial: RoundCosts | None = None, shape: StreamShape = SHAPE) -> CostLearner:
    """After a first round a hundred times slower than the others."""
    learner = CostLearner(shape, initial)
    learner.observe(observation(compute=70.0, link=30.0, step=1.5, overhead=5.0))
    return learner


def test_a_linear_cost_recovers_its_line_and_never_turns_negative() -> None:
    samples = [(size, 0.5 + 0.25 * size) for size in (1, 4, 9)]
    assert fit_cost(samples) == pytest.approx((0.5, 0.25))
    assert _line(samples)([0, 2, 100]) == pytest.approx([0.5, 1.0, 25.5])
    assert fit_cost([(1, 2.0), (3, 1.0)]) == pytest.approx((1.5, 0.0), abs=0.01)
    base, slope = fit_cost([(10, 1.0), (20, 4.0)])
    assert base == 0
    assert slope > 0


def test_one_outlier_does_not_bend_the_line() -> None:
    """A draft step that met a busy processor must not decide the tree."""
    samples = [(size, 0.5 + 0.25 * size) for size in range(1, 13)]
    assert fit_cost([*samples, (6, 40.0)]) == pytest.approx((0.5, 0.25), rel=0.05)


def test_old_measurements_fade() -> None:
    assert fit_cost([(4, 1.0)] * 60 + [(4, 3.0)] * 60) == (3.0, 0.0)


def test_a_factor_is_one_until_there_are_more_than_a_few_measurements() -> None:
    assert cost_factor([]) == 1.0
    assert cost_factor([9.0]) == 1.0
    assert cost_factor([9.0, *[1.3] * 8]) == 1.3


def test_nothing_is_learned_of_a_part_that_was_expected_to_cost_nothing() -> None:
    free = CostTable((1,), (0.0,))
    learner = warm(replace(INITIAL, walk_seconds=free))
    for _ in range(8):
        learner.observe(observation())
    assert learner.costs().walk_seconds == free


def test_measurements_alone_become_costs() -> None:
    learner = warm()
    assert not learner.is_known
    learner.observe(replace(observation(), draft_steps=()))
    assert not learner.is_known  # a round without a draft says nothing about drafting
    learner.observe(observation(num_tokens=101, compute=1.2))
    assert learner.is_known
    costs = learner.costs()
    assert costs.copy_seconds == pytest.approx((0.1, None, 0.1, 0.1))
    assert costs.pass_seconds([1, 51, 101]) == pytest.approx([0.2, 0.7, 1.2])
    assert costs.draft_step_seconds is not None
    assert costs.draft_step_seconds([1, 6]) == pytest.approx([0.015, 0.015])
    assert costs.walk_seconds([1]) == pytest.approx([0.05], abs=0.02)
    assert costs.read_seconds == ()


@pytest.mark.parametrize("initial", [None, INITIAL.with_token_multiple(8)])
def test_a_processors_passes_are_learned_and_priced_by_whole_multiples(initial: RoundCosts | None) -> None:
    learner = CostLearner(replace(SHAPE, token_multiple=8), initial)
    for num_tokens, seconds in ((17, 0.4), (24, 0.4), (33, 0.56), (40, 0.56)) * 8:
        learner.observe(observation(num_tokens=num_tokens, compute=seconds))
    passes = learner.costs().pass_seconds
    assert passes(33) == passes(40) > passes(32) == passes(25) > passes(24)
    if initial is None:
        assert passes([24, 40]) == pytest.approx([0.4, 0.56])


def test_nothing_is_learned_of_a_round_that_waited_for_layers_to_be_loaded() -> None:
    learner, slow = warm(), observation(compute=50.0, link=40.0)
    loading = replace(slow, pass_statistics=replace(slow.pass_statistics, is_loading=True))
    learner.observe(loading)
    assert not learner.is_known
    learner.observe(observation())
    before = learner.costs()
    learner.observe(loading)
    assert learner.costs() == before


def test_a_disk_behind_the_link_is_measured_too() -> None:
    shape = StreamShape((1000,) * 2, num_slots=2, read_bytes=(None, 1000), num_stages=2)
    learner = warm(shape=shape)
    learner.observe(observation(disk=0.5, bytes_read=1000))
    costs = learner.costs()
    assert costs.read_seconds == (None, 0.5)
    assert costs.num_stages == 2
    assert costs.round_seconds([1], [0.0])[0] >= 0.5


def test_a_profile_is_believed_until_measurements_say_otherwise() -> None:
    learner = warm(INITIAL)
    assert learner.is_known
    assert learner.costs() == INITIAL
    for _ in range(12):
        learner.observe(observation(compute=1.4, link=0.6, step=0.03, overhead=0.025))
    costs = learner.costs()
    assert costs.copy_seconds == pytest.approx((0.2, None, 0.2, 0.2))
    assert costs.pass_seconds([1, 101]) == pytest.approx([0.4, 2.4])
    assert costs.draft_step_seconds is not None
    assert costs.draft_step_seconds([1, 11]) == pytest.approx([0.02, 0.04])
    assert costs.walk_seconds([1]) == pytest.approx([0.025])


def test_rounds_that_go_as_expected_change_nothing_slowdowns_and_disk_included() -> None:
    """Copies slowed by 0.7 s of computation at 0.5, computation by those copies at 0.1."""
    initial = replace(
        INITIAL,
        compute_slowdown=0.1,
        copy_slowdown=0.5,
        read_seconds=(None, None, 0.2, 0.2),
        num_stages=2,
    )
    learner = warm(initial, replace(SHAPE, read_bytes=(None, None, 1000, 1000), num_stages=2))
    link = (0.3 + 0.5 * 0.7) / (1 - 0.5 * 0.1)
    for _ in range(12):
        learner.observe(observation(compute=0.7 + 0.1 * link, link=link, disk=0.4, bytes_read=2000))
    costs = learner.costs()
    assert costs.copy_seconds == pytest.approx(initial.copy_seconds)
    assert costs.read_seconds == pytest.approx(initial.read_seconds)
    assert costs.pass_seconds([1, 51]) == pytest.approx(initial.pass_seconds([1, 51]))
    nodes, draft = np.array([1, 50]), np.array([0.0, 0.1])
    assert costs.round_seconds(nodes, draft) == pytest.approx(initial.round_seconds(nodes, draft))


def test_one_token_alone_costs_what_it_took_alone() -> None:
    """Wider passes go another way through a processor: their line would say 2.0 s where it takes 0.5 s."""
    learner = warm()
    for num_tokens, compute in ((12, 3.0), (1, 0.5), (24, 4.2), (12, 3.0), (1, 0.5)):
        learner.observe(observation(compute=compute, num_tokens=num_tokens))
    assert learner.costs().pass_seconds([1, 2, 12, 24]) == pytest.approx([0.5, 2.0, 3.0, 4.2])


def test_one_token_alone_is_scaled_by_what_it_took_alone() -> None:
    learner = warm(INITIAL)
    for _ in range(200):
        learner.observe(observation(compute=0.1, num_tokens=1))
    learnt = learner.costs().pass_seconds
    unchanged = INITIAL.pass_seconds
    assert learnt([1]) == pytest.approx([0.1])
    assert learnt([2, 50, 200]) == pytest.approx(unchanged([2, 50, 200]))


def test_a_walk_without_a_tree_has_its_own_cost() -> None:
    """It visits the head once; a tree's walk made plain decoding look half as slow again as it was."""
    learner = warm()
    for num_tokens, overhead in ((12, 0.09), (1, 0.02), (24, 0.09)):
        learner.observe(observation(num_tokens=num_tokens, overhead=overhead))
    assert learner.costs().walk_seconds([1, 2, 24]) == pytest.approx([0.02, 0.09, 0.09])


ROWS = replace(SHAPE, row_bytes=(5, 0, 5, 0))
"""A token's keys and values take 5 bytes in each of two layers of 1,000 bytes."""


def test_keys_and_values_that_travel_cross_the_link_as_many_as_there_are() -> None:
    """Found: the first tree was planned as if only weights crossed the link."""
    learner = CostLearner(ROWS, INITIAL)
    assert learner.costs().copy_seconds == INITIAL.copy_seconds
    learner.num_rows = 400
    copies = learner.costs().copy_seconds
    assert copies[1] is None and copies[0::2] == pytest.approx((0.3, 0.3)) and copies[3] == pytest.approx(0.1)
    assert learner.costs().pass_seconds == INITIAL.pass_seconds


@pytest.mark.parametrize("initial", [INITIAL, None], ids=["profile", "none"])
def test_rows_that_were_measured_teach_the_rate_and_not_a_slower_link(initial: RoundCosts | None) -> None:
    """3,000 bytes of weights in 0.3 s: with 300 tokens 3,000 more take as long again."""
    learner = warm(initial, ROWS)
    for _ in range(20):
        learner.observe(observation(link=0.6, rows_sent=3000))
    assert learner.num_rows == 300
    assert learner.costs().copy_seconds[0::3] == pytest.approx((0.25, 0.1), rel=0.02)
    learner.num_rows = 0
    assert learner.costs().copy_seconds[0::3] == pytest.approx((0.1, 0.1), rel=0.02)


def test_what_texts_share_costs_by_the_size_of_each_ones_tree() -> None:
    costs = INITIAL
    shared = costs.for_texts(4)
    for size in (1, 3, 8, 40):
        assert float(shared.pass_seconds(size)) == pytest.approx(float(costs.pass_seconds(4 * size)))
        assert float(shared.draft_step_seconds(size)) == pytest.approx(float(costs.draft_step_seconds(4 * size)))
        assert float(shared.walk_seconds(size)) == pytest.approx(4 * float(costs.walk_seconds(size)))
    multiple = costs.with_token_multiple(16)
    for size in (1, 3, 5, 17):
        expected = float(multiple.pass_seconds(4 * size))
        assert float(multiple.for_texts(4).pass_seconds(size)) == pytest.approx(expected)
