"""What the page of a run says, as far as it got, from its record and what was known of it."""

from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

from runtime.events import Finished
from runtime.prompts.headless import PromptEvent, PromptResult
from runtime.prompts.prompt_file import Message, PromptRequest
from runtime.prompts.run_record import RunRecord
from tests.support.answer_fakes import ROUND, statistics
from tui.report.content import WITHOUT_ROUNDS, AboutRun, duration_text, page_of
from tui.report.html_page import to_html
from tui.report.markdown_page import to_markdown
from tui.report.page import Chart, Facts, Table

REQUEST = PromptRequest(id="a", messages=(Message("user", "one"),))


def about(**fields):
    return AboutRun(
        **{"prompts": "p.jsonl", "num_prompts": 3, "num_done": 0, "begun": datetime(2026, 1, 2, 3, 4)} | fields
    )


def record_of(*events, every_seconds=10.0):
    times = iter(range(10_000))
    record = RunRecord(clock=lambda: every_seconds * next(times))
    for event in events:
        record.observe(event)
    return record


def a_round(**fields):
    statistics_ = replace(ROUND.pass_statistics, bytes_streamed=2_000_000, link_busy_seconds=4.0)
    return PromptEvent(REQUEST, replace(ROUND, **{"pass_statistics": statistics_} | fields))


ANSWERED = PromptResult(id="slow|one", line_number=4, finished=Finished("length", "text", statistics()))
FAILED = PromptResult(id="<b>", line_number=2, error="the link is gone")


def whole():
    rounds = [a_round(accepted_ranks=(1, 0), num_children=(2, 1), num_grafted=1) for _ in range(3)]
    return record_of(*rounds, ANSWERED, FAILED)


def section(page, title):
    (found,) = [one for one in page.sections if one.title == title]
    return found.parts


def test_a_whole_run_is_told_in_figures():
    page = page_of(about(num_done=1), whole())
    assert page.title == "Run over p.jsonl"
    assert page.summary == (
        "2026-01-02 03:04, 0:00:40 (hours:minutes:seconds), complete. 1 of 3 prompts answered, 1 failed; "
        "1 answered before."
    )
    (facts,) = section(page, "What came of it")
    told = dict(facts.rows)
    assert told["answers"] == "1 ended by length"
    assert told["passes"] == "3, 1 prompts in each; 2 tokens and 2.5 s a pass"
    assert told["trees"] == "8 nodes a prompt, 1 of them looked up or forced"
    assert told["drafting"] == "20 % of the time of rounds"
    (speed,) = section(page, "Speed over time")
    assert isinstance(speed, Chart) and abs(sum(speed.values) * 0.25 - 6) < 1e-6
    chart, table = section(page, "Guesses kept")
    assert chart.values == [1.0, 0.0] and table.rows == [("1", "3", "3", "100 %"), ("2", "3", "0", "0 %")]
    facts, _ = section(page, "The link")
    assert dict(facts.rows)["bytes"] == "6.00 MB, 1.00 MB a token"
    assert dict(facts.rows)["busy"] == "30 % of the time, at 500 KB/s"
    (slow,) = section(page, "Slowest prompts")
    assert slow.rows == [("slow|one", "4", "5", "8", "3.5 s")]
    (failed,) = section(page, "Prompts without an answer")
    assert failed.rows == [("<b>", "2", "the link is gone")]


def test_both_kinds_of_page_can_be_drawn():
    page = page_of(about(models=[("target", "m")], layers=("all in memory",)), whole())
    assert "&lt;b&gt;" in to_html(page) and "<b>" not in to_html(page)
    assert "slow&#124;one" in to_markdown(page)


def test_a_run_that_ended_before_anything_came_of_it_has_a_page_too():
    page = page_of(about(ended="interrupted"), RunRecord())
    assert page.summary.startswith("2026-01-02 03:04, 0:00:00 (hours:minutes:seconds), ended early: interrupted.")
    to_html(page), to_markdown(page)
    assert section(page, "Speed over time") == ("No token was written.",)


def test_plain_passes_in_memory_are_said_to_be_such():
    in_memory = replace(ROUND.pass_statistics, bytes_streamed=0, link_busy_seconds=0.0)
    free = statistics(bytes_streamed=0)
    answer = PromptResult(id="a", line_number=1, finished=Finished("stop", "t", free))
    page = page_of(about(), record_of(a_round(pass_statistics=in_memory), answer))
    assert section(page, "Guesses kept") == ("Nothing was drafted: each pass brings one token.",)
    assert section(page, "The link") == ("Nothing crossed a link: all layers stayed in memory.",)


def test_answers_of_a_cluster_count_where_they_end():
    nodes = {"10.0.0.1": "answering; it fits"}
    page = page_of(about(is_on_nodes=True, nodes=nodes, no_forecast="elsewhere"), record_of(ANSWERED, ANSWERED))
    sentence, chart = section(page, "Speed over time")
    assert sentence == WITHOUT_ROUNDS
    assert abs(sum(chart.values[:-1]) * 0.25 - 8) < 1e-6 and chart.values[-1] > 0
    assert Facts([("node 10.0.0.1", "answering; it fits")]) in section(page, "What came of it")
    assert section(page, "Prediction beside measurement") == ("Nothing was predicted: elsewhere.",)


def test_what_was_predicted_stands_beside_what_was_measured():
    tree = SimpleNamespace(round_seconds=2.0, expected_tokens=3.0)
    report = SimpleNamespace(
        main=SimpleNamespace(tree=tree), all_tokens_per_second=3.0, basis_lines=(("link", "given", "1 GB/s"),)
    )
    schedule = SimpleNamespace(num_passes=7, seconds=61.0)
    forecast = SimpleNamespace(report=report, schedule=schedule, num_together=2, most_new_tokens=40, problem=None)
    table, _, basis = section(page_of(about(forecast=forecast), whole()), "Prediction beside measurement")
    assert isinstance(table, Table)
    assert table.rows == [
        ("seconds a pass", "2", "2.5"),
        ("tokens a pass", "6", "2"),
        ("tokens/s", "3", "0.15"),
        ("passes", "at most 7", "3"),
        ("answer tokens", "at most 40", "8"),
        ("time", "at most 0:01:01", "0:00:40"),
    ]
    assert basis == "Link, given: 1 GB/s."


def test_times_are_told_for_people():
    assert (duration_text(1.234), duration_text(61.4), duration_text(90_000)) == ("1.23 s", "0:01:01", "1 day, 1:00:00")
