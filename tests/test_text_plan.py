"""Numbers of texts against laws whose best is known: exhaustive search, and the two ends of the rules."""

from dataclasses import replace

import pytest
from profile_factory import PAIR

from profiles.calibration_probes import PairFacts
from profiles.cost_fit import CostLaw
from profiles.text_plan import TextPlan

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
    target=CostLaw(base_seconds=0.4, token_seconds=0.05, attention_seconds=0.0),
    draft=CostLaw(base_seconds=0.1, token_seconds=0.01, attention_seconds=0.0),
    copy_seconds=1.2,
    max_texts=8,
)


def test_a_step_takes_the_longer_of_copies_and_computation_and_the_draft() -> None:
    assert PLAN.step_seconds(1, num_temperatures=1) == pytest.approx(1.2 + 0.1 + 0.01 + 0.01)
    assert PLAN.step_seconds(8, num_temperatures=3) == pytest.approx(0.4 + 24 * 0.05 + 0.1 + 24 * 0.01 + 24 * 0.01)


def test_prompts_beyond_those_that_there_are_cost_nothing_more() -> None:
    assert PLAN.prompt_seconds(2) == pytest.approx(0.4 + 45 * 0.05 + 0.1 + 45 * 0.01)
    assert PLAN.prompt_seconds(9) == PLAN.prompt_seconds(4)


@pytest.mark.parametrize("num_temperatures", [1, 3])
@pytest.mark.parametrize("room", [3.0, 7.0, 12.0, 20.0, 60.0])
def test_the_most_positions_are_seen_that_any_number_of_texts_sees(room: float, num_temperatures: int) -> None:
    seen = {}
    for count in range(1, 5):  # as many as prompts
        left, steps = room - PLAN.prompt_seconds(count), 0
        while left >= PLAN.step_seconds(count, num_temperatures=num_temperatures):
            left -= PLAN.step_seconds(count, num_temperatures=num_temperatures)
            steps += 1
        seen[count] = steps * count
    best, num_positions = PLAN.most_positions(room, num_temperatures=num_temperatures)
    assert num_positions == seen[best] == max(seen.values())


def test_without_time_there_is_one_text_and_no_position() -> None:
    assert PLAN.most_positions(-1.0, num_temperatures=3) == (1, 0)


def test_texts_at_once_are_limited_by_the_step_the_prompts_and_the_scope() -> None:
    assert PLAN.most_at_once(1000.0, num_temperatures=1) == 8
    assert PLAN.most_at_once(3 * PLAN.prompt_seconds(2), num_temperatures=1) == 2
    slow = replace(PLAN, copy_seconds=0.0, max_texts=100)
    count = slow.most_at_once(1000.0, num_temperatures=3)
    assert slow.step_seconds(count, num_temperatures=3) <= 2 * slow.step_seconds(1, num_temperatures=3)
    assert slow.step_seconds(count + 1, num_temperatures=3) > 2 * slow.step_seconds(1, num_temperatures=3)
    assert PLAN.most_at_once(0.0, num_temperatures=3) == 1
