"""Counts of what a server has done."""

from dataclasses import replace

from runtime.events import Finished
from runtime.serving.tally import Tally
from tests.support.answer_fakes import ROUND, STATISTICS


def test_texts_that_share_a_pass_count_it_once():
    tally = Tally()
    for _ in range(3):
        tally.add(replace(ROUND, num_texts=3))
    tally.add(Finished("stop", "x", replace(STATISTICS, cached_tokens=4, reasoning_tokens=3)))
    assert (tally.num_rounds, round(tally.num_passes, 9), tally.num_accepted_tokens) == (3, 1.0, 6)
    assert (tally.num_prompt_tokens, tally.num_new_tokens) == (STATISTICS.prompt_tokens, STATISTICS.new_tokens)
    assert (tally.num_cached_tokens, tally.num_reasoning_tokens) == (4, 3)


def test_what_an_answer_takes_is_told_by_those_that_were_given():
    tally = Tally()
    assert tally.seconds_per_answer is None
    tally.end("refused")
    tally.end("stop", 2.0)
    tally.end("length", 4.0)
    assert tally.num_ended == {"refused": 1, "stop": 1, "length": 1}
    assert tally.seconds_per_answer == 3.0
