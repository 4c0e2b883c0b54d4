"""Calibrations of a machine that obeys laws, on a clock of its own: budgets, grids, flags, and what is recovered."""

from dataclasses import replace
from datetime import date

import pytest

from profiles.calibration_probes import FULL, QUICK, THOROUGH, CalibrationScope, PairFacts
from profiles.calibrator import CalibrationResult, Calibrator, TextPlan
from profiles.costs import COMPUTE_BOUND, LINK_BOUND, CostLaw, Overlap
from profiles.errors import BadInputError
from profiles.pair_profile import FEW_POSITIONS
from tests.support.calibration_fakes import (
    COMPUTE_SLOWDOWN,
    COPY_SECONDS,
    COPY_SLOWDOWN,
    DISK_BYTES_PER_SECOND,
    LATENCY_SECONDS,
    LINK_BYTES_PER_SECOND,
    PASS_LAW,
    STEP_LAW,
    LawfulProbes,
)
from tests.support.fakes import VirtualClock
from tests.support.generator_ends import drained
from tests.support.profile_factory import PAIR

START_SECONDS = 8.0
"""What opening the session took before."""


def calibrate(probes: LawfulProbes, scope: CalibrationScope = FULL) -> tuple[CalibrationResult, list[str]]:
    probes.clock.now = 100.0 + START_SECONDS
    progress, result = drained(Calibrator(probes, scope, clock=probes.clock, began=100.0).run())
    return result, progress


@pytest.mark.parametrize(
    ("scope", "slower"),
    [(QUICK, 0.01), *((scope, slower) for scope in (FULL, QUICK, THOROUGH) for slower in (0.1, 1.0, 1.5))],
)
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
    passes = {(cost.num_tokens, cost.context_tokens): cost for cost in result.pair.pass_costs}
    assert set(passes) >= {(size, context) for size in FULL.tree_sizes for context in FULL.contexts}
    measured = {key for key, cost in passes.items() if not cost.is_fitted}
    assert measured <= set(probes.cells)
    # The largest pass that waits for 1.6 s of copies, the smallest that waits for products.
    (small, _), (large, _) = sorted(set(probes.cells) - measured)
    assert PASS_LAW(small, 128) <= LINK_BOUND * COPY_SECONDS < PASS_LAW(small + 1, 128)
    assert PASS_LAW(large - 1, 128) < COMPUTE_BOUND * COPY_SECONDS <= PASS_LAW(large, 128)
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
    assert (machine.measured_at, machine.pin_budget_bytes) == (date(2026, 1, 31), 3_000_000_000)


def test_a_link_that_cannot_be_measured_is_left_open() -> None:
    probes = LawfulProbes(VirtualClock())
    probes.has_pinned_memory = False
    machine = calibrate(probes)[0].machine
    assert (machine.link_bytes_per_second, machine.link_latency_seconds, machine.link_samples) == (None, None, ())


def test_where_nothing_streams_nothing_is_slowed() -> None:
    result, _ = calibrate(LawfulProbes(VirtualClock(), is_streamed=False))
    assert result.overlap == Overlap()
    assert (result.pair.copy_slowdown, result.pair.compute_slowdown) == (0.0, 0.0)


def test_the_time_left_only_shrinks_and_ends_near_nothing() -> None:
    _, progress = calibrate(LawfulProbes(VirtualClock()))
    left = [int(step.removesuffix(" s left").rpartition("about ")[2]) for step in progress]
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


FACTS = PairFacts(
    target=PAIR.target,
    draft=PAIR.draft,
    compute_dtype="float32",
    max_pass_tokens=256,
    cache_tokens=1280,
    context_tokens=1024,
    prompt_tokens=(30, 45, 60, 75),
    is_streamed=True,
)
PLAN = TextPlan(
    FACTS,
    CalibrationScope(budget_seconds=0.0, max_texts=8, greedy_per_sampled=1, min_text_steps=1000),
    target=CostLaw(base_seconds=0.4, token_seconds=0.05, attention_seconds=0.0),
    draft=CostLaw(base_seconds=0.1, token_seconds=0.01, attention_seconds=0.0),
    copy_seconds=1.2,
)
ALL = (0.0, 0.6, 1.0)


def test_a_step_takes_the_longer_of_copies_and_computation_and_the_draft() -> None:
    assert PLAN.step_seconds({0.0: 1}) == pytest.approx(1.2 + 0.1 + 0.01 + 0.01)
    assert PLAN.step_seconds({0.0: 8, 0.6: 8, 1.0: 8}) == pytest.approx(0.4 + 24 * 0.05 + 0.1 + 24 * 0.01 + 24 * 0.01)


def test_prompts_beyond_those_that_there_are_cost_nothing_more() -> None:
    assert PLAN.prompt_seconds({0.0: 2, 1.0: 1}) == pytest.approx(0.4 + 45 * 0.05 + 0.1 + 45 * 0.01)
    assert PLAN.prompt_seconds({0.0: 9}) == PLAN.prompt_seconds({0.0: 4})


@pytest.mark.parametrize("temperatures", [(0.0,), ALL])
@pytest.mark.parametrize("room", [3.0, 7.0, 12.0, 20.0, 60.0])
def test_the_most_positions_are_seen_that_any_number_of_texts_sees(
    room: float, temperatures: tuple[float, ...]
) -> None:
    seen = {}
    for count in range(1, 5):  # as many as prompts
        texts = dict.fromkeys(temperatures, count)
        left, steps = room - PLAN.prompt_seconds(texts), 0
        while left >= PLAN.step_seconds(texts):
            left -= PLAN.step_seconds(texts)
            steps += 1
        seen[count] = steps * count
    best, num_positions = PLAN.most_positions(room, temperatures)
    assert tuple(best) == temperatures
    assert num_positions == seen[best[0.0]] == max(seen.values())


def test_without_time_there_is_one_text_and_no_position() -> None:
    assert PLAN.most_positions(-1.0, ALL) == (dict.fromkeys(ALL, 1), 0)


def test_texts_at_once_are_limited_by_the_step_the_prompts_and_the_scope() -> None:
    assert PLAN.most_at_once(1000.0, (0.0,)) == {0.0: 8}
    assert PLAN.most_at_once(3 * PLAN.prompt_seconds({0.0: 2}), (0.0,)) == {0.0: 2}
    slow = replace(PLAN, copy_seconds=0.0, scope=replace(PLAN.scope, max_texts=100))
    texts = slow.most_at_once(1000.0, ALL)
    more = {temperature: count + 1 for temperature, count in texts.items()}
    assert slow.step_seconds(texts) <= 2 * slow.step_seconds(dict.fromkeys(ALL, 1)) < slow.step_seconds(more)
    assert PLAN.most_at_once(0.0, ALL) == dict.fromkeys(ALL, 1)


def test_there_are_more_texts_as_long_as_all_of_them_get_their_tokens() -> None:
    plan = replace(PLAN, copy_seconds=0.0, scope=replace(PLAN.scope, max_texts=100, min_text_steps=50))
    texts = plan.most_at_once(400.0, ALL)
    more = {temperature: count + 1 for temperature, count in texts.items()}
    assert plan.prompt_seconds(texts) + 50 * plan.step_seconds(texts) <= 400.0
    assert plan.prompt_seconds(more) + 50 * plan.step_seconds(more) > 400.0


def test_greedy_texts_are_some_times_as_many_as_those_of_other_temperatures() -> None:
    plan = replace(PLAN, scope=replace(PLAN.scope, greedy_per_sampled=2))
    assert plan.most_at_once(1000.0, ALL) == {0.0: 8, 0.6: 4, 1.0: 4}
    assert plan.split(1, ALL) == {0.0: 1, 0.6: 1, 1.0: 1}
    assert plan.most_positions(60.0, ALL)[0][0.0] <= len(FACTS.prompt_tokens)
