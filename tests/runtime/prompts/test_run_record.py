"""A run's sums from its events: passes that texts share count once, and memory stays bounded over days."""

from dataclasses import replace

from runtime.events import Finished, GenerationStatistics
from runtime.prompts.headless import PromptEvent, PromptResult, one_by_one, run_prompts
from runtime.prompts.prompt_file import BadLine, Message, PromptRequest
from runtime.prompts.run_record import MOST_BINS, MOST_FAILED, MOST_SLOWEST, RunRecord
from tests.support.answer_fakes import ROUND, STATISTICS, echo, statistics

REQUEST = PromptRequest(id="a", messages=(Message("user", "one"),))


class Clock:
    """Says what it was told."""

    seconds = 100.0

    def __call__(self):
        return self.seconds


def answered(name="a", **costs):
    return PromptResult(id=name, line_number=1, finished=Finished("stop", "text", statistics(**costs)))


def test_the_events_of_a_run_add_up():
    record = RunRecord(clock=Clock())
    for event in run_prompts(one_by_one(echo), [REQUEST, BadLine(2, "bad", "line 2: bad"), replace(REQUEST, id="b")]):
        record.observe(event)
    assert (record.num_answered, record.num_failed, record.finish_reasons) == (2, 1, {"stop": 2})
    assert record.failed == [("bad", 2, "line 2: bad")]
    assert record.total == GenerationStatistics.total((STATISTICS, STATISTICS))
    assert (record.num_rounds, record.num_tokens, record.num_nodes) == (2, 4, 16)
    assert (record.link_bytes, record.seconds) == (1000, 0.0)  # both rounds have the statistics of one pass


def test_a_pass_that_texts_share_counts_once_and_each_text_has_its_tokens():
    record = RunRecord(clock=Clock())
    other = replace(ROUND.pass_statistics, bytes_streamed=500)
    for done in (ROUND, replace(ROUND, path=(0,)), replace(ROUND, pass_statistics=other)):
        record.observe(PromptEvent(REQUEST, done))
    assert (record.num_passes, record.num_rounds, record.num_tokens) == (2, 3, 5)
    assert (record.link_bytes, record.link_seconds) == (1500, 3.0)
    assert record.round_seconds == 2 * ROUND.seconds
    (found,) = record.bins
    assert (found.num_passes, found.num_tokens, found.link_bytes) == (2, 5, 1500)


def test_depths_count_what_the_draft_proposed_there():
    record = RunRecord(clock=Clock())
    for ranks, children in (((1, 2, 0), (2, 2, 1)), ((0,), (3,)), ((1, 0), (1, 0))):
        record.observe(PromptEvent(REQUEST, replace(ROUND, accepted_ranks=ranks, num_children=children)))
    assert [(depth.num_tried, depth.num_accepted) for depth in record.depths] == [(3, 2), (1, 1), (1, 0)]


def test_bins_double_where_a_run_outgrows_them_and_lose_nothing():
    clock = Clock()
    record = RunRecord(clock=clock)
    for second in range(0, 100_000, 7):
        clock.seconds = 100.0 + second
        record.observe(PromptEvent(REQUEST, replace(ROUND, pass_statistics=replace(ROUND.pass_statistics))))
    assert MOST_BINS / 2 <= len(record.bins) <= MOST_BINS
    assert sum(each.num_tokens for each in record.bins) == record.num_tokens
    assert sum(each.num_passes for each in record.bins) == record.num_passes
    assert len(record.bins) * record.bin_seconds >= record.seconds
    most = max(each.num_tokens for each in record.bins[:-1])
    assert most - min(each.num_tokens for each in record.bins[:-1]) <= 4  # steady, as the rounds came


def test_after_a_long_silence_the_bins_are_wide_at_once():
    clock = Clock()
    record = RunRecord(clock=clock)
    for seconds in (100.0, 1e6):
        clock.seconds = seconds
        record.observe(answered())
    assert len(record.bins) <= MOST_BINS
    assert [each.num_results for each in (record.bins[0], record.bins[-1])] == [1, 1]


def test_of_many_answers_the_slowest_stay_and_of_many_failures_the_first():
    record = RunRecord(clock=Clock())
    for number in range(1000):
        record.observe(answered(f"p{number}", prefill_seconds=float(number * 37 % 1000), decode_seconds=0.0))
        record.observe(PromptResult(id=f"f{number}" * 1000, line_number=number, error="no" * 1000))
    assert sorted((slow.seconds for slow in record.slowest), reverse=True) == [999.0 - n for n in range(MOST_SLOWEST)]
    assert (record.num_failed, len(record.failed)) == (1000, MOST_FAILED)
    assert all(len(name) <= 500 and len(why) <= 500 for name, _, why in record.failed)
