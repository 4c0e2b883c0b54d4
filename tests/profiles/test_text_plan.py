"""Numbers of texts against laws whose best is known: exhaustive search, and the two ends of the rules."""

from dataclasses import replace

import pytest

from profiles.calibration_probes import PairFacts
from profiles.cost_fit import CostLaw
from profiles.text_plan import TextPlan
from tests.support.profile_factory import PAIR

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
    greedy_per_sampled=1,
    min_text_steps=1000,
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
    slow = replace(PLAN, copy_seconds=0.0, max_texts=100)
    texts = slow.most_at_once(1000.0, ALL)
    more = {temperature: count + 1 for temperature, count in texts.items()}
    assert slow.step_seconds(texts) <= 2 * slow.step_seconds(dict.fromkeys(ALL, 1)) < slow.step_seconds(more)
    assert PLAN.most_at_once(0.0, ALL) == dict.fromkeys(ALL, 1)


def test_there_are_more_texts_as_long_as_all_of_them_get_their_tokens() -> None:
    plan = replace(PLAN, copy_seconds=0.0, max_texts=100, min_text_steps=50)
    texts = plan.most_at_once(400.0, ALL)
    more = {temperature: count + 1 for temperature, count in texts.items()}
    assert plan.prompt_seconds(texts) + 50 * plan.step_seconds(texts) <= 400.0
    assert plan.prompt_seconds(more) + 50 * plan.step_seconds(more) > 400.0


def test_greedy_texts_are_some_times_as_many_as_those_of_other_temperatures() -> None:
    plan = replace(PLAN, greedy_per_sampled=2)
    assert plan.most_at_once(1000.0, ALL) == {0.0: 8, 0.6: 4, 1.0: 4}
    assert plan.split(1, ALL) == {0.0: 1, 0.6: 1, 1.0: 1}
    assert plan.most_positions(60.0, ALL)[0][0.0] <= len(FACTS.prompt_tokens)
