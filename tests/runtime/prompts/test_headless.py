from dataclasses import replace

import pytest

from offload.errors import LinkError
from runtime.events import AnswerParts, Finished, PrefillProgress, TextDelta, TokenLogprob, TokenLogprobs
from runtime.prompts.headless import (
    PromptEvent,
    PromptResult,
    PromptStarted,
    in_parts,
    one_by_one,
    pending_items,
    run_prompts,
)
from runtime.prompts.prompt_file import BadLine, Message, PromptRequest, ToolCall
from tests.support.answer_fakes import STATISTICS, echo


def request(text, line_number=1):
    return PromptRequest(id=text, messages=(Message("user", text),), line_number=line_number)


BAD = BadLine(2, "2", "prompts.txt line 2: is bad")


def results(events):
    return [event for event in events if isinstance(event, PromptResult)]


def test_answers_come_in_order_with_the_engines_events_between():
    events = list(run_prompts(one_by_one(echo), [request("one"), request("two", 2)]))
    assert isinstance(events[0], PromptStarted) and events[0].position == 1
    assert isinstance(events[1], PromptEvent) and isinstance(events[1].event, PrefillProgress)
    own = [event.event for event in events if isinstance(event, PromptEvent)]
    assert "".join(event.text for event in own if isinstance(event, TextDelta)) == "ONETWO"
    assert [(result.id, result.line_number, result.finished.text) for result in results(events)] == [
        ("one", 1, "ONE"),
        ("two", 2, "TWO"),
    ]


def test_a_bad_line_is_a_result_and_the_run_goes_on():
    first, bad, last = results(run_prompts(one_by_one(echo), [request("one"), BAD, request("three", 3)]))
    assert bad == PromptResult(id="2", line_number=2, error=BAD.error)
    assert (first.error, last.error) == (None, None)


def test_an_error_of_ours_costs_one_answer():
    def fail_on_two(prompt):
        if prompt.id == "two":
            yield TextDelta("half")
            raise LinkError("the link is gone")
        yield from echo(prompt)

    first, failed, last = results(
        run_prompts(one_by_one(fail_on_two), [request("one"), request("two", 2), request("three", 3)])
    )
    assert failed == PromptResult(id="two", line_number=2, error="the link is gone")
    assert (first.finished.text, last.finished.text) == ("ONE", "THREE")


def test_any_other_error_ends_the_run():
    def broken(prompt):
        yield TextDelta("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(run_prompts(one_by_one(broken), [request("one"), request("two")]))


@pytest.mark.parametrize("num_events", [2, 3, 5])
def test_stopping_early_closes_the_engine_at_once(num_events):
    """A session that is not closed would keep unverified tokens in its caches."""
    closed = []

    def watched(prompt):
        try:
            yield from echo(prompt)
        finally:
            closed.append(prompt.id)

    run = run_prompts(one_by_one(watched), [request("one"), request("two")])
    for _ in range(num_events):
        next(run)
    run.close()
    assert closed == ["one"]


def test_the_engine_is_run_to_its_end():
    """Closing it at its last event would look like a cancelled answer."""
    ended = []

    def watched(prompt):
        yield from echo(prompt)
        ended.append(prompt.id)

    list(run_prompts(one_by_one(watched), [request("one")]))
    assert ended == ["one"]


def test_pending_lines_are_the_unanswered_and_the_bad_ones():
    items = [request("one"), BAD, request("three")]
    assert pending_items(items, {"one", "2"}) == [BAD, items[2]]


def test_every_result_has_the_same_keys():
    own = {"repetition_penalty": 1.05}
    answer = Finished("stop", "hi", STATISTICS, verification="coupled", generation="auto", own_settings=own)
    good = PromptResult(id="a", line_number=1, finished=answer).to_record()
    bad = PromptResult(id="b", line_number=2, error="no").to_record()
    assert list(good) == list(bad)
    assert good == {
        "id": "a",
        "line": 1,
        "text": "hi",
        "reasoning": None,
        "tool_calls": None,
        "finish_reason": "stop",
        "verification": "coupled",
        "generation": "auto",
        "own_settings": {"repetition_penalty": 1.05},
        "prompt_tokens": 5,
        "new_tokens": 8,
        "usage": STATISTICS.usage,
        "rounds": 4,
        "tokens_per_round": 2.0,
        "prefill_seconds": 0.5,
        "seconds_per_token": 0.5,
        "bytes_streamed": 4_000_000,
        "link_utilization": 2.4 / 3.0,
        "logprobs": None,
        "error": None,
    }
    assert {key: value for key, value in bad.items() if value is not None} == {"id": "b", "line": 2, "error": "no"}


def test_thinking_and_calls_stand_beside_the_text():
    parts = AnswerParts("Hi.", "well", (ToolCall("c1", "look", "{}"),))
    answer = Finished("stop", "<think>well</think>Hi. <call>look", STATISTICS, parts=parts)
    record = PromptResult(id="a", line_number=1, finished=answer).to_record()
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert (record["text"], record["reasoning"], record["tool_calls"]) == ("Hi.", "well", [call])


def test_conversations_are_answered_in_parts_and_nothing_else_is():
    raw, bad = PromptRequest(id="a", prompt="x"), BadLine(2, "b", "no")
    talk = PromptRequest(id="c", messages=(Message("user", "x"),))
    assert in_parts([raw, bad, talk]) == [raw, bad, replace(talk, wants_parts=True)]


def test_a_result_has_what_was_asked_of_its_tokens():
    logprobs = (TokenLogprobs(TokenLogprob(5, -0.5, "hi", b"hi"), (TokenLogprob(5, -0.5, "hi", b"hi"),)),)
    record = PromptResult(id="a", line_number=1, finished=Finished("stop", "hi", STATISTICS, logprobs=logprobs))
    token = {"token": "hi", "logprob": -0.5, "bytes": [104, 105]}
    assert record.to_record()["logprobs"] == [{**token, "top_logprobs": [token]}]


def test_a_text_is_fixed_where_no_draft_can_change_it():
    names = ("greedy", "coupled", "top-k", "sequoia", "specinfer")
    fixed = [name for name in names if Finished("stop", "", STATISTICS, verification=name).is_text_fixed]
    assert fixed == ["greedy", "coupled", "top-k"]
