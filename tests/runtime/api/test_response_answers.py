"""Answers in the shape of OpenAI's Responses API: items, whole or as events that build the same items."""

from dataclasses import replace
from typing import Any

from runtime.api.response_answers import ResponseEvents, response_body
from runtime.api.responses import parse_response_question
from runtime.config import SamplingParams
from runtime.events import AnswerParts, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import LineDefaults, ToolCall
from tests.support.answer_fakes import STATISTICS

CALL = ToolCall("c1", "look", '{"at": "cat"}')
FINISHED = Finished("stop", "raw", STATISTICS, parts=AnswerParts("I look.", "well", (CALL,)))
COMMON = LineDefaults(params=SamplingParams())
ASKED = parse_response_question({"input": "Hi"}, COMMON, request_id="a", usual_seed=1, model="ours")


def without_ids(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key != "id"} for item in output]


def test_a_whole_answer_has_an_item_for_each_part() -> None:
    body = response_body(ASKED, FINISHED)
    assert (body["object"], body["status"], body["incomplete_details"], body["model"]) == (
        "response",
        "completed",
        None,
        "ours",
    )
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "well"}]}
    text = {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}
    called = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": CALL.arguments}
    assert without_ids(body["output"]) == [
        {**thought, "status": "completed"},
        {"type": "message", "role": "assistant", "content": [text], "status": "completed"},
        {**called, "status": "completed"},
    ]
    assert body["usage"]["total_tokens"] == STATISTICS.prompt_tokens + STATISTICS.new_tokens
    answer = replace(FINISHED, statistics=replace(STATISTICS, cached_tokens=4, reasoning_tokens=2))
    counts = response_body(ASKED, answer)["usage"]
    assert counts["input_tokens_details"] == {"cached_tokens": 4}
    assert counts["output_tokens_details"] == {"reasoning_tokens": 2}


def test_an_answer_that_was_cut_is_incomplete() -> None:
    body = response_body(ASKED, Finished("length", "raw", STATISTICS, parts=AnswerParts("I")))
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"


def test_events_come_in_order_and_build_the_same_items() -> None:
    told = ResponseEvents(ASKED)
    parts = [ReasoningDelta("we"), ReasoningDelta("ll"), TextDelta("I "), TextDelta("look."), ToolCallDelta(0, CALL)]
    events = [*told.begin(), *(event for part in parts for event in told.more(part)), *told.end(FINISHED)]
    assert [body["sequence_number"] for _, body in events] == list(range(len(events)))
    assert all(body["type"] == name for name, body in events)
    text = ["delta"] * 2 + ["done"]
    assert [name.removeprefix("response.") for name, _ in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *(f"reasoning_text.{each}" for each in text),
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        *(f"output_text.{each}" for each in text),
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    done = [body["item"] for name, body in events if name == "response.output_item.done"]
    assert events[-1][1]["response"]["output"] == done
    assert without_ids(done) == without_ids(response_body(ASKED, FINISHED)["output"])
    deltas = [body["delta"] for name, body in events if name == "response.output_text.delta"]
    assert "".join(deltas) == "I look."
    added = [body for name, body in events if name == "response.output_item.added"]
    assert [body["output_index"] for body in added] == [0, 1, 2]
    assert added[0]["item"]["content"] == [] and added[0]["item"]["status"] == "in_progress"
