"""Answers in the shape of Anthropic's API: blocks, whole or as events that build the same blocks."""

import json
from dataclasses import replace
from typing import Any

from runtime.api.message_answers import MessageEvents, message_body
from runtime.events import AnswerParts, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import ToolCall
from tests.support.answer_fakes import STATISTICS

CALLS = (ToolCall("c1", "look", '{"at": "cat"}'), ToolCall("c2", "go", "{}"))
FINISHED = Finished("stop", "raw", STATISTICS, parts=AnswerParts("I look.", "well", CALLS))


def test_a_whole_answer_has_a_block_for_each_part() -> None:
    body = message_body(FINISHED, model="ours")
    assert body["content"] == [
        {"type": "thinking", "thinking": "well", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "cat"}},
        {"type": "tool_use", "id": "c2", "name": "go", "input": {}},
    ]
    assert (body["type"], body["role"], body["model"], body["stop_reason"]) == (
        "message",
        "assistant",
        "ours",
        "tool_use",
    )
    counts = body["usage"]
    assert counts["input_tokens"] + counts["cache_read_input_tokens"] == STATISTICS.prompt_tokens
    assert counts["output_tokens"] == STATISTICS.new_tokens
    assert message_body(Finished("stop", "", STATISTICS, parts=AnswerParts("")), model="ours")["content"] == []


def test_what_was_cached_is_counted_apart() -> None:
    answer = replace(FINISHED, statistics=replace(STATISTICS, prompt_tokens=9, cached_tokens=4))
    expected = {
        "input_tokens": 5,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "output_tokens": STATISTICS.new_tokens,
    }
    assert message_body(answer, model="ours")["usage"] == expected
    told = MessageEvents(model="ours")
    assert told.begin(9, 4)[1]["message"]["usage"] == {**expected, "output_tokens": 0}
    assert [body["usage"] for name, body in told.end(answer) if name == "message_delta"] == [expected]


def reason(**how: Any) -> tuple[str, str | None]:
    body = message_body(
        Finished(**{"finish_reason": "stop", "text": "raw", "statistics": STATISTICS, **how}), model="m"
    )
    return body["stop_reason"], body["stop_sequence"]


def test_ends_have_the_names_of_the_api() -> None:
    assert reason() == ("end_turn", None)
    assert reason(finish_reason="length") == reason(finish_reason="context") == ("max_tokens", None)
    assert reason(stop_string="END") == ("stop_sequence", "END")
    assert reason(finish_reason="length", parts=AnswerParts("", None, CALLS)) == ("max_tokens", None)


def rebuilt(events: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The blocks that a client makes of a stream."""
    blocks: list[dict[str, Any]] = []
    for name, body in events:
        assert body["type"] == name
        if name == "content_block_start":
            assert body["index"] == len(blocks)
            blocks.append({**body["content_block"], "json": ""})
        elif name == "content_block_delta":
            assert body["index"] == len(blocks) - 1
            for key, target in (("text", "text"), ("thinking", "thinking"), ("partial_json", "json")):
                if key in body["delta"]:
                    blocks[-1][target] += body["delta"][key]
    for block in blocks:
        given = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(given)
    return blocks


def test_events_build_the_same_blocks_in_their_order() -> None:
    told = MessageEvents(model="ours")
    parts = [
        ReasoningDelta("we"),
        ReasoningDelta("ll"),
        TextDelta("I "),
        TextDelta("look."),
        *(ToolCallDelta(index, call) for index, call in enumerate(CALLS)),
    ]
    events = [told.begin(5), *(event for part in parts for event in told.more(part)), *told.end(FINISHED)]
    names = [name for name, _ in events]
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") == 4
    assert events[0][1]["message"]["usage"]["input_tokens"] == 5
    assert rebuilt(events) == message_body(FINISHED, model="ours")["content"]
    assert events[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2][1]["usage"]["output_tokens"] == STATISTICS.new_tokens
