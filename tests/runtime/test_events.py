"""What rounds and answers derive from their measurements."""

from dataclasses import replace

from runtime.events import GenerationStatistics
from tests.support.answer_fakes import ROUND, statistics


def test_a_round_counts_its_nodes_and_tokens():
    assert (ROUND.num_nodes, ROUND.num_emitted) == (8, 2)


def test_overhead_is_what_neither_the_pass_nor_the_draft_steps_took():
    assert ROUND.overhead_seconds == 0.25 + 0.125
    assert replace(ROUND, verify_seconds=1.0).overhead_seconds == 0.0  # clocks overlap by a hair


def test_usage_has_the_names_of_the_api():
    costs = statistics(prompt_tokens=5, new_tokens=8, cached_tokens=4, reasoning_tokens=3)
    assert costs.usage == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }


def test_ratios_are_those_of_the_decoding_part():
    costs = statistics(new_tokens=10, rounds=4, decode_seconds=3.0, decode_tokens=6, link_busy_seconds=2.25)
    assert costs.tokens_per_round == 2.5
    assert costs.seconds_per_token == 0.5
    assert costs.link_utilization == 0.75


def test_ratios_without_a_denominator_are_unknown_not_errors():
    costs = statistics(rounds=0, decode_seconds=0.0, decode_tokens=0)
    assert (costs.tokens_per_round, costs.seconds_per_token, costs.link_utilization) == (None, None, None)


def test_link_utilization_is_unknown_when_nothing_streams():
    assert statistics(decode_bytes_streamed=0).link_utilization is None


def test_total_has_the_ratios_of_the_whole_run():
    """The mean of two ratios would weigh a short answer like a long one."""
    total = GenerationStatistics.total(
        [statistics(decode_seconds=1.0, decode_tokens=1), statistics(decode_seconds=1.0, decode_tokens=9)]
    )
    assert total.seconds_per_token == 0.2
    assert total.bytes_streamed == 8_000_000


def test_total_of_nothing_is_zero():
    assert GenerationStatistics.total([]).new_tokens == 0
