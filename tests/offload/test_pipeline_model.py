"""The recurrence against schedules worked out by hand, and the closed-form period against long simulations."""

import math
import random
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from offload.pipeline_model import round_periods
from tests.support.pipeline_simulation import LayerTiming, PipelineParts, round_seconds, simulate


def random_parts(rng: random.Random, *, max_layers: int = 9) -> PipelineParts:
    num_layers = rng.randint(1, max_layers)
    resident_share = rng.choice([0.0, 0.3, 0.7])
    disk_share = rng.choice([0.0, 0.4, 1.0])
    copy_seconds = tuple(
        None if rng.random() < resident_share else rng.choice([0.0, rng.random(), float(rng.randint(1, 9))])
        for _ in range(num_layers)
    )
    return PipelineParts(
        copy_seconds=copy_seconds,
        read_seconds=tuple(
            None if copy is None or rng.random() >= disk_share else float(rng.randint(0, 12)) for copy in copy_seconds
        ),
        num_stages=rng.randint(1, 3),
        compute_seconds=tuple(rng.choice([0.0, rng.random(), float(rng.randint(1, 9))]) for _ in range(num_layers)),
        num_slots=rng.randint(1, 5),
        between_passes_seconds=rng.choice([0.0, rng.random(), 20.0]),
        num_pieces=tuple(rng.choice([1, 1, 2, 3, 5]) for _ in range(num_layers)),
    )


def late_period(parts: PipelineParts, *, num_passes: int) -> float:
    """Mean round over the last 60 passes of a simulation."""
    ends = [layers[-1].computed for layers in simulate(parts, num_passes).passes]
    return (ends[-1] - ends[-61]) / 60


def test_two_slots_three_layers_as_worked_out_by_hand() -> None:
    """Copies of 2 s, computations of 3 s: from the third copy on, a copy waits for the slot two before it."""
    parts = PipelineParts((2.0, 2.0, 2.0), (3.0, 3.0, 3.0), num_slots=2, between_passes_seconds=1.0)
    first, second = simulate(parts, 2).passes
    assert first == (LayerTiming(0, 2, 2, 5), LayerTiming(2, 4, 5, 8), LayerTiming(5, 7, 8, 11))
    assert second == (LayerTiming(8, 10, 12, 15), LayerTiming(11, 13, 15, 18), LayerTiming(15, 17, 18, 21))


def test_a_resident_layer_needs_neither_copy_nor_slot() -> None:
    parts = PipelineParts((4.0, None, 4.0), (1.0, 1.0, 1.0), num_slots=2)
    (layers,) = simulate(parts, 1).passes
    assert layers == (LayerTiming(0, 4, 4, 5), LayerTiming(0, 0, 5, 6), LayerTiming(4, 8, 8, 9))


def test_copies_go_on_while_the_draft_works() -> None:
    """With both slots filled during the time between passes, only two of the four copies remain to be waited for."""
    parts = PipelineParts((5.0,) * 4, (0.0,) * 4, num_slots=2, between_passes_seconds=10.0)
    assert round_seconds(parts) == 20.0  # the link never idles
    assert round_seconds(PipelineParts((5.0,) * 4, (0.0,) * 4, num_slots=2, between_passes_seconds=30.0)) == 40.0


def test_all_resident_takes_the_computation_alone() -> None:
    parts = PipelineParts((None, None), (1.0, 2.0), num_slots=0, between_passes_seconds=0.5)
    assert round_seconds(parts) == 3.5
    assert simulate(parts, 2).passes[1][0] == LayerTiming(0, 0, 3.5, 4.5)


def test_a_plan_without_layers_is_the_time_between_passes() -> None:
    assert round_seconds(PipelineParts((), (), num_slots=2, between_passes_seconds=0.25)) == 0.25


def test_a_ring_of_one_never_overlaps_a_copy_with_its_own_layer() -> None:
    parts = PipelineParts((2.0, 3.0), (1.0, 1.0), num_slots=1)
    assert round_seconds(parts) == parts.no_overlap_seconds == 7.0


def test_the_period_is_what_long_simulations_settle_on() -> None:
    for seed in range(150):
        parts = random_parts(random.Random(seed))
        expected = late_period(parts, num_passes=1000)
        assert math.isclose(round_seconds(parts), expected, rel_tol=1e-9, abs_tol=1e-12), seed


def test_a_round_lies_between_its_bounds() -> None:
    for seed in range(50):
        parts = random_parts(random.Random(1000 + seed))
        assert parts.bound_seconds - 1e-9 <= round_seconds(parts) <= parts.no_overlap_seconds + 1e-9, seed


def test_more_slots_never_make_a_round_longer() -> None:
    rng = random.Random(7)
    for _ in range(30):
        parts = random_parts(rng)
        periods = [
            round_seconds(
                PipelineParts(parts.copy_seconds, parts.compute_seconds, num_slots, parts.between_passes_seconds)
            )
            for num_slots in range(1, 8)
        ]
        assert all(late <= early + 1e-9 for early, late in pairwise(periods))


def test_candidates_at_once_equal_candidates_one_by_one() -> None:
    rng = np.random.default_rng(3)
    copy_seconds = (0.5, None, 0.25, 0.75, None, 1.0)
    kappas, between = rng.random((40, 6)), rng.random(40)
    together = round_periods(kappas, copy_seconds, num_slots=3)(between)
    one_by_one = [
        round_seconds(PipelineParts(copy_seconds, tuple(map(float, row)), 3, float(pause)))
        for row, pause in zip(kappas, between, strict=True)
    ]
    assert together.tolist() == one_by_one


def test_hundreds_of_candidates_of_a_large_model_are_fast_enough_for_a_search() -> None:
    kappas = np.random.default_rng(0).random((300, 80))
    began = time.process_time()
    round_periods(kappas, [1.0] * 80, num_slots=4)
    assert time.process_time() - began < 0.5  # some 10 ms when idle


@pytest.mark.parametrize(
    ("copies", "reads", "num_slots", "num_stages", "complaint"),
    [
        ((1.0,), (), 2, 0, "1 copy times but 2 compute times"),
        ((1.0, 1.0), (1.0,), 2, 1, "1 read times but 2 copy times"),
        ((1.0, None), (), 0, 0, "ring of 0 slots"),
        ((1.0, 1.0), (1.0, None), 2, 0, "cannot pass through 0 stages"),
    ],
)
def test_lengths_and_buffers_that_do_not_fit_are_refused(
    copies: tuple[float | None, ...],
    reads: tuple[float | None, ...],
    num_slots: int,
    num_stages: int,
    complaint: str,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        round_periods([[1.0, 1.0]], copies, num_slots=num_slots, read_seconds=reads, num_stages=num_stages)


def test_a_disk_layer_waits_for_its_stage_as_worked_out_by_hand() -> None:
    """One stage: its second read waits until the link has emptied it."""
    parts = PipelineParts((2.0,) * 3, (1.0,) * 3, num_slots=3, read_seconds=(5.0, None, 5.0), num_stages=1)
    (layers,) = simulate(parts, 1).passes
    assert layers == (LayerTiming(5, 7, 7, 8), LayerTiming(7, 9, 9, 10), LayerTiming(12, 14, 14, 15))


def test_a_layer_in_two_pieces_is_read_and_sent_at_once_as_worked_out_by_hand() -> None:
    """Reads of 3 s and copies of 2 s, each, for halves: the second half is read while the first is sent."""
    parts = PipelineParts((4.0, 4.0), (1.0, 1.0), num_slots=2, read_seconds=(6.0, 6.0), num_stages=2, num_pieces=(2, 2))
    (layers,) = simulate(parts, 1).passes
    assert layers == (LayerTiming(3, 8, 8, 9), LayerTiming(9, 14, 14, 15))
    whole = replace(parts, num_stages=1, num_pieces=(1, 1))
    assert simulate(whole, 1).passes[0][1].computed == 21.0


def test_four_quarters_of_a_layer_do_what_two_whole_stages_did() -> None:
    """With half the host memory: the other half holds a layer more, so that one layer less comes from disk.

    80 layers of 18 ms on the link and 6 times that on the disk, a gap of 0.3 s, and 8 to 40 of them on disk.
    """
    for num_disk in (8, 16, 40):

        def period(num_read: int, num_stages: int, pieces: int) -> float:
            places = {round((index + 0.5) * 80 / num_read) for index in range(num_read)}
            reads = tuple(0.110 if index in places else None for index in range(80))
            parts = PipelineParts((0.018,) * 80, (0.006,) * 80, 2, 0.3, reads, num_stages, (pieces,) * 80)
            return round_seconds(parts)

        whole = period(num_disk, 2, 1)
        assert period(num_disk - 1, 4, 4) <= 1.005 * whole
        assert period(num_disk, 4, 4) <= 1.08 * whole


def test_with_two_stages_a_round_costs_the_slower_link_not_the_sum() -> None:
    """Every second of 40 layers comes from disk: reads and copies hide behind each other almost wholly."""
    reads = tuple(4.0 if index % 2 else None for index in range(40))
    for copy_seconds in (1.0, 2.0, 3.0):
        parts = PipelineParts((copy_seconds,) * 40, (0.1,) * 40, num_slots=2, read_seconds=reads, num_stages=2)
        assert round_seconds(parts) <= 1.05 * parts.bound_seconds
        assert parts.no_overlap_seconds > 1.4 * round_seconds(parts)


def test_a_period_with_its_gap_left_open_is_what_simulations_with_each_gap_settle_on() -> None:
    """Also where a round through the gap takes just as long as link or disk, so that both kinds of circuit count."""
    for seed in range(80):
        parts = random_parts(random.Random(seed))
        periods = round_periods(
            np.array([parts.compute_seconds]),
            parts.copy_seconds,
            num_slots=parts.num_slots,
            read_seconds=parts.read_seconds,
            num_stages=parts.num_stages,
            num_pieces=parts.num_pieces,
        )
        even = max(0.0, float((periods.fixed_seconds - periods.through_seconds)[0]))
        for gap in (0.0, 0.8 * even, even, 1.1 * even, 2 * even + 1):
            expected = late_period(replace(parts, between_passes_seconds=gap), num_passes=300)
            assert math.isclose(periods(gap)[0], expected, rel_tol=1e-9, abs_tol=1e-12), (seed, gap)


def test_gaps_of_several_drafts_are_priced_at_once() -> None:
    periods = round_periods([[1.0, 1.0], [4.0, 4.0]], (2.0, 2.0), num_slots=2)
    gaps = np.array([[0.0, 0.5], [3.0, 60.0]])
    assert periods(gaps).tolist() == [[4.0, 8.5], [5.0, 68.0]]
