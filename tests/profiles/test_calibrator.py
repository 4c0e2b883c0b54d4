"""Calibrations of a machine that obeys laws, on a clock of its own: budgets, grids, flags, and what is recovered."""

from dataclasses import replace
from datetime import date

import pytest

from profiles.calibration_probes import FULL, QUICK, THOROUGH, CalibrationScope
from profiles.calibrator import CalibrationProgress, CalibrationResult, Calibrator
from profiles.errors import BadInputError
from profiles.pair_profile import FEW_POSITIONS
from tests.support.calibration_fakes import (
    COMPUTE_SLOWDOWN,
    COPY_SLOWDOWN,
    DISK_BYTES_PER_SECOND,
    LATENCY_SECONDS,
    LINK_BYTES_PER_SECOND,
    PASS_LAW,
    STEP_LAW,
    LawfulProbes,
)
from tests.support.fakes import VirtualClock

START_SECONDS = 8.0
"""What opening the session took before."""
TODAY = date(2026, 3, 4)


def calibrate(
    probes: LawfulProbes, scope: CalibrationScope = FULL
) -> tuple[CalibrationResult, list[CalibrationProgress]]:
    probes.clock.now = 100.0 + START_SECONDS
    *progress, result = Calibrator(probes, scope, clock=probes.clock, began=100.0, today=TODAY).run()
    assert isinstance(result, CalibrationResult)
    return result, [step for step in progress if isinstance(step, CalibrationProgress)]


@pytest.mark.parametrize("scope", [FULL, QUICK, THOROUGH])
@pytest.mark.parametrize("slower", [0.01, 1.0, 1.5])
def test_the_budget_of_time_is_kept_and_used(scope: CalibrationScope, slower: float) -> None:
    result, _ = calibrate(LawfulProbes(VirtualClock(), slower=slower), scope)
    assert not result.doubts or slower > 1
    assert 0.9 * scope.budget_seconds <= result.seconds <= scope.budget_seconds


def test_a_machine_that_is_ten_times_slower_still_ends_with_profiles() -> None:
    """The least that gives a profile is measured whatever it takes, and nothing beyond it."""
    probes = LawfulProbes(VirtualClock(), slower=10.0)
    result, _ = calibrate(probes, QUICK)
    assert {size for size, _ in probes.cells} == {1, 16}
    (table,) = result.pair.acceptance
    assert (table.temperature, table.num_positions[0]) == (0.0, 1)
    assert probes.num_texts == {0.0: 1}
    rough, unseen = result.doubts
    assert rough.startswith("only 1 positions were seen at temperature 0,")
    assert unseen.startswith("no time was left for texts at temperature 0.6 and 1:")


@pytest.mark.parametrize(("slower", "temperatures"), [(1.0, (0.0, 0.6, 1.0)), (1.4, (0.0,))])
def test_a_quick_one_spends_short_time_on_the_coolest_temperature(
    slower: float, temperatures: tuple[float, ...]
) -> None:
    """On two busy cores it once saw one position of each temperature, and believed none."""
    probes = LawfulProbes(VirtualClock(), slower=slower)
    result, _ = calibrate(probes, QUICK)
    assert tuple(table.temperature for table in result.pair.acceptance) == temperatures == tuple(probes.num_texts)
    assert all(table.num_positions[0] >= FEW_POSITIONS for table in result.pair.acceptance)
    assert result.unseen_temperatures == tuple(value for value in (0.0, 0.6, 1.0) if value not in temperatures)
    assert len(result.doubts) == (len(temperatures) == 1)


def test_a_full_one_shares_its_time_among_the_temperatures_however_short_it_is() -> None:
    probes = LawfulProbes(VirtualClock(), slower=4.0)
    calibrate(probes, FULL)
    assert tuple(probes.num_texts) == FULL.temperatures


def test_the_laws_are_recovered_and_flags_say_what_was_measured() -> None:
    probes = LawfulProbes(VirtualClock())
    result, _ = calibrate(probes)
    assert result.overlap is not None
    passes = {(cost.num_tokens, cost.context_tokens): cost for cost in result.pair.pass_costs}
    assert set(passes) >= {(size, context) for size in FULL.tree_sizes for context in FULL.contexts}
    measured = {key for key, cost in passes.items() if not cost.is_fitted}
    assert measured <= set(probes.cells)
    assert set(probes.cells) - measured == {
        (size, 128) for size in (result.overlap.link_bound_tokens, result.overlap.compute_bound_tokens)
    }
    assert {(size, 128) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)} | {(64, 2048)} <= measured
    for (size, context), cost in passes.items():
        assert cost.seconds == pytest.approx(PASS_LAW(size, context), rel=1e-3)
    for step in result.pair.draft_steps:
        assert step.seconds == pytest.approx(STEP_LAW(step.width), rel=1e-3)
    assert [step.width for step in result.pair.draft_steps] == list(FULL.widths)
    assert result.pair.copy_slowdown == pytest.approx(COPY_SLOWDOWN)
    assert result.pair.compute_slowdown == pytest.approx(COMPUTE_SLOWDOWN)


def test_no_pass_is_larger_than_the_session_has_room_for() -> None:
    probes = LawfulProbes(VirtualClock())
    probes.max_pass_tokens, probes.cache_tokens = 64, 600
    result, _ = calibrate(probes)
    assert max(size for size, _ in probes.cells) == 64
    assert max(size + context for size, context in probes.cells) <= 600
    fitted = [cost for cost in result.pair.pass_costs if cost.num_tokens > 64]
    assert fitted and all(cost.is_fitted for cost in fitted)


def test_a_cache_shorter_than_every_context_is_measured_without_one() -> None:
    probes = LawfulProbes(VirtualClock())
    probes.max_pass_tokens, probes.cache_tokens = 6, 66
    calibrate(probes)
    assert {context for _, context in probes.cells} == {0}


def test_the_machine_is_described_by_its_samples() -> None:
    result, _ = calibrate(LawfulProbes(VirtualClock()))
    machine = result.machine
    assert machine.link_bytes_per_second == pytest.approx(LINK_BYTES_PER_SECOND, rel=1e-6)
    assert machine.disk_bytes_per_second == pytest.approx(DISK_BYTES_PER_SECOND, rel=1e-6)
    assert machine.disk_latency_seconds == pytest.approx(LATENCY_SECONDS, rel=1e-3)
    assert [sample.num_bytes for sample in machine.disk_samples] == list(FULL.transfer_bytes)
    assert (machine.measured_at, machine.pin_budget_bytes) == (TODAY, 3_000_000_000)


def test_a_link_that_cannot_be_measured_is_left_open() -> None:
    probes = LawfulProbes(VirtualClock())
    probes.has_pinned_memory = False
    machine = calibrate(probes)[0].machine
    assert (machine.link_bytes_per_second, machine.link_latency_seconds, machine.link_samples) == (None, None, ())


def test_where_nothing_streams_nothing_is_slowed() -> None:
    result, _ = calibrate(LawfulProbes(VirtualClock(), is_streamed=False))
    assert result.overlap is None
    assert (result.pair.copy_slowdown, result.pair.compute_slowdown) == (0.0, 0.0)


def test_the_time_left_only_shrinks_and_ends_near_nothing() -> None:
    _, progress = calibrate(LawfulProbes(VirtualClock()))
    left = [step.left_seconds for step in progress]
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(FULL.budget_seconds - START_SECONDS, abs=2)
    assert left[-1] < 5


def test_texts_that_end_before_the_time_does_end_the_calibration() -> None:
    """Every prompt may be answered by one word at temperature 0, and nothing else may be asked for."""
    result, _ = calibrate(LawfulProbes(VirtualClock(), num_steps=3))
    assert result.seconds < 0.9 * FULL.budget_seconds
    assert all(table.num_positions[0] > 0 for table in result.pair.acceptance)


def test_texts_that_cannot_begin_are_a_sentence() -> None:
    with pytest.raises(BadInputError, match="--context"):
        calibrate(LawfulProbes(VirtualClock(), num_steps=0))


def test_prompts_are_few_where_they_would_take_the_texts_time() -> None:
    many, few = LawfulProbes(VirtualClock()), LawfulProbes(VirtualClock(), slower=2.0)
    calibrate(many)
    calibrate(few, replace(QUICK, max_texts=16))
    assert many.num_texts[0.0] > few.num_texts[0.0] >= 1


def test_half_of_the_texts_are_greedy() -> None:
    probes = LawfulProbes(VirtualClock())
    result, _ = calibrate(probes)
    greedy, *sampled = probes.num_texts.values()
    assert sampled[0] == sampled[1] > 1
    assert greedy == FULL.greedy_per_sampled * sampled[0] <= FULL.max_texts
    assert [table.num_texts for table in result.pair.acceptance] == [greedy, *sampled]


def test_more_time_goes_into_more_texts_first() -> None:
    """All of them get their tokens, and several times the positions are seen."""
    full, thorough = LawfulProbes(VirtualClock()), LawfulProbes(VirtualClock())
    before, after = calibrate(full)[0], calibrate(thorough, THOROUGH)[0]
    assert THOROUGH.max_texts == thorough.num_texts[0.0] > full.num_texts[0.0]
    for few, many in zip(before.pair.acceptance, after.pair.acceptance, strict=True):
        assert many.num_positions[0] > 4 * few.num_positions[0]
        assert many.num_positions[0] / many.num_texts > 0.8 * THOROUGH.min_text_steps
