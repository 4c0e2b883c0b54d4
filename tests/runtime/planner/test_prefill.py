"""How prompts are cut into passes; with round numbers, and with those of data sheets."""

from dataclasses import replace

import pytest

from offload.pass_statistics import PassStatistics
from runtime.planner.costs import CostTable, RoundCosts
from runtime.planner.prefill import PrefillPlanner


def planner(*, slice_tokens: int = 256, most: int = 4096, first: int = 4096, streamed: bool = True) -> PrefillPlanner:
    return PrefillPlanner(slice_tokens=slice_tokens, most_tokens=most, first_tokens=first, is_streamed=streamed)


def costs(*, token_seconds: float, copy_seconds: float = 0.0, read_seconds: float = 0.0) -> RoundCosts:
    """Passes that cost nothing but their tokens, over ten layers."""
    return RoundCosts(
        copy_seconds=(copy_seconds / 10,) * 10,
        pass_seconds=CostTable((0.0, 1000.0), (0.0, 1000 * token_seconds)),
        draft_step_seconds=None,
        walk_seconds=CostTable((1.0,), (0.0,)),
        num_slots=2,
        read_seconds=(read_seconds / 10,) * 10 if read_seconds else (),
        num_stages=3 if read_seconds else 0,
    )


def passes(chosen: PrefillPlanner, num_tokens: int, known: RoundCosts | None = None) -> list[int]:
    """The tokens of each pass over a prompt, the last of which shares a tree's."""
    done = []
    while num_tokens:
        done.append(chosen.next_tokens(num_tokens, known))
        num_tokens -= done[-1]
    return done


def statistics(*, compute: float, link: float, disk: float = 0.0) -> PassStatistics:
    return PassStatistics(max(compute, link), 0.0, link, 10**9, 10, 10, compute, disk, 0)


def test_a_pass_computes_four_times_as_long_as_its_stream_takes() -> None:
    assert planner().chunk_tokens(costs(token_seconds=0.001, copy_seconds=0.25)) == 1024
    assert planner().chunk_tokens(costs(token_seconds=0.001, copy_seconds=0.26)) == 1280
    assert planner().chunk_tokens(costs(token_seconds=0.001, copy_seconds=0.1, read_seconds=0.25)) == 1024


def test_where_computation_dominates_a_pass_is_one_slice() -> None:
    assert passes(planner(), 2000, costs(token_seconds=0.02, copy_seconds=1.0)) == [256] * 6 + [464]


def test_where_nothing_streams_a_pass_is_one_slice_whatever_is_known() -> None:
    resident = planner(streamed=False, most=256)
    assert passes(resident, 600) == [256, 256, 88]
    assert passes(resident, 256) == [256]
    resident.observe(256, statistics(compute=0.001, link=5.0))
    assert passes(resident, 600) == [256, 256, 88]


def test_a_short_prompt_is_one_pass_that_shares_the_trees() -> None:
    assert planner().next_tokens(300, costs(token_seconds=0.001, copy_seconds=5.0)) == 300
    assert planner().next_tokens(1, None) == 1


def test_no_pass_is_longer_than_there_is_memory_for() -> None:
    assert passes(planner(most=1024), 4096, costs(token_seconds=1e-6, copy_seconds=5.0)) == [1024] * 4
    assert max(passes(planner(most=1000), 4096, costs(token_seconds=1e-6, copy_seconds=5.0))) <= 1000


def test_passes_are_about_equally_long_so_that_none_waits_for_its_weights() -> None:
    """1,100 tokens of which 1,024 hide the stream would leave a pass that computes nothing."""
    known = costs(token_seconds=0.001, copy_seconds=0.25)
    assert passes(planner(), 1100, known) == [1100]
    assert passes(planner(), 2100, known) == [1024, 1076]
    for num_tokens in range(1, 9000, 37):
        found = passes(planner(), num_tokens, known)
        assert sum(found) == num_tokens and max(found) < 2048 + 256
        assert min(found[:-1], default=1024) >= 1024


def test_before_anything_is_known_the_first_pass_is_a_modest_one_and_the_next_follow_what_it_took() -> None:
    learning = planner(first=512)
    assert learning.next_tokens(4096, None) == 512
    learning.observe(512, statistics(compute=0.512, link=1.0))
    assert learning.chunk_tokens() == 4096
    assert learning.next_tokens(3584, None) == 3584
    learning.observe(3584, statistics(compute=3.584, link=0.2))  # another machine's worth of bandwidth
    learning.observe(4096, statistics(compute=4.096, link=0.2))
    assert learning.chunk_tokens() == 1024  # of the median


def test_what_was_measured_counts_more_than_what_rounds_were_said_to_cost() -> None:
    learning, known = planner(), costs(token_seconds=0.02, copy_seconds=1.0)
    assert learning.chunk_tokens(known) == 256
    learning.observe(256, statistics(compute=0.256, link=0.5))
    assert learning.chunk_tokens(known) == 2048


def test_nothing_is_learned_of_a_pass_that_waited_for_layers_to_be_loaded() -> None:
    learning, known = planner(), costs(token_seconds=0.02, copy_seconds=1.0)
    learning.observe(256, replace(statistics(compute=0.256, link=1.0), is_loading=True))
    assert learning.chunk_tokens(known) == 256


def test_the_disk_behind_the_link_counts_where_it_is_slower() -> None:
    learning = planner()
    learning.observe(512, statistics(compute=0.512, link=0.2, disk=0.25))
    assert learning.chunk_tokens() == 1024


def test_a_short_pass_teaches_nothing() -> None:
    learning = planner(first=512)
    learning.observe(20, statistics(compute=0.4, link=2.0))
    assert learning.chunk_tokens() == 512


def test_what_a_prompt_will_take_is_known_once_anything_is() -> None:
    learning = planner()
    assert learning.expected_seconds(4096, None) is None
    assert learning.pass_seconds(4096, None) is learning.reading_seconds(4096) is None
    known = costs(token_seconds=0.001, copy_seconds=0.25)
    assert learning.expected_seconds(4096, known, draft_seconds=0.5) == pytest.approx(4.096 + 0.5)
    assert learning.expected_seconds(100, known) == pytest.approx(0.25)
    learning.observe(4096, statistics(compute=2.048, link=5.0))
    learning.observe_reading(4096, 0.4096)
    assert learning.expected_seconds(4096, known) == pytest.approx(5.0 + 0.4096)
    assert learning.pass_seconds(4096, known) == pytest.approx(5.0)
    assert learning.reading_seconds(4096) == pytest.approx(0.4096)


def test_where_nothing_streams_it_is_what_the_tokens_compute() -> None:
    resident = planner(streamed=False, most=256)
    resident.observe(256, statistics(compute=0.512, link=0.0))
    assert resident.expected_seconds(1000, None) == pytest.approx(2.0)
