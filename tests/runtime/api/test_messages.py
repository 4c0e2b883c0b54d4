"""A body of Anthropic's API becomes one request of ours, or a sentence says what cannot be done."""

from typing import Any

import pytest

from runtime.api.messages import MessageTerms, parse_message_question
from runtime.config import UNLIMITED_THINKING, SamplingParams, options_of
from runtime.errors import PromptFileError
from runtime.prompts.prompt_file import LineDefaults, Message, PromptRequest, ToolCall, parse_tools
from tests.support.calling_models import OPENAI_TOOLS, TOOLS

UNCHOSEN = frozenset(options_of(SamplingParams))
ANTHROPIC_TOOLS = [
    {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]} for tool in TOOLS
]


def asked(*, unchosen: frozenset[str] = UNCHOSEN, is_counted: bool = False, **body: Any) -> PromptRequest:
    common = LineDefaults(params=SamplingParams(), unchosen=unchosen)
    terms = MessageTerms(common=common, request_id="a", usual_seed=7, model="ours", is_counted=is_counted)
    body = {"model": "any", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, **body}
    question = parse_message_question({key: value for key, value in body.items() if value is not ...}, terms)
    assert question.model == "ours"
    (request,) = question.requests
    return request


def test_what_a_body_chooses_reaches_the_request() -> None:
    request = asked(temperature=0.5, top_p=0.9, top_k=4, stop_sequences=["END"], metadata={"user_id": "me"})
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.stop) == (0.5, 0.9, 4, ("END",))
    assert params.max_new_tokens == 9 and request.wants_parts and request.messages == (Message("user", "Hi"),)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"temperature": 1.01}, "temperature is 1.01; it must be from 0 to 1"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"temperature": True}, "temperature is true; it must be a number"),
        ({"stop_sequences": [1]}, "stop_sequences is 1; it must be text"),
        ({"stop_sequences": ["END", ""]}, "stop_sequences holds an empty text; leave it out"),
        (
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": 5}},
            "effort of output_config is 5; it must be text",
        ),
    ],
)
def test_what_is_wrong_is_told_by_the_name_that_it_has_in_this_api(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(PromptFileError) as told:
        asked(**wrong)
    assert str(told.value) == expected


def test_a_conversation_with_tools_becomes_turns() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "where"}, {"type": "text", "text": "is it"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "well", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "cat"}},
                {"type": "tool_use", "id": "c2", "name": "go", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "here", "cache_control": {"type": "ephemeral"}},
                {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "gone"}]},
                {"type": "text", "text": "so?"},
            ],
        },
        {"role": "user", "content": "and?"},
    ]
    request = asked(messages=messages, tools=ANTHROPIC_TOOLS, system=[{"type": "text", "text": "Be brief."}])
    calls = (ToolCall("c1", "look", '{"at": "cat"}'), ToolCall("c2", "go", "{}"))
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", "where\nis it"),
        Message("assistant", "I look.", calls, reasoning_content="well"),
        Message("tool", "here", tool_call_id="c1", name="look"),
        Message("tool", "gone", tool_call_id="c2", name="go"),
        Message("user", "so?\nand?"),
    )
    assert request.tools == parse_tools(OPENAI_TOOLS)


def test_an_answer_may_be_begun() -> None:
    request = asked(messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}])
    assert request.is_continued and request.messages == (Message("user", "Hi"), Message("assistant", "Well, "))


BILLING = "x-anthropic-billing-header: cc_version=2.1; cch=5d3;"


@pytest.mark.parametrize(
    "system",
    [
        f"{BILLING}\nBe brief.",
        [{"type": "text", "text": BILLING}, {"type": "text", "text": "Be brief."}],
        [{"type": "text", "text": f"{BILLING.title()}\nBe brief."}],
    ],
)
def test_the_line_that_differs_each_time_is_no_part_of_the_system_prompt(system: Any) -> None:
    """With it, nothing that was computed of an agent's long prompt could be used again."""
    assert asked(system=system).messages == (Message("system", "Be brief."), Message("user", "Hi"))


def test_a_system_prompt_that_speaks_of_such_a_line_is_kept() -> None:
    system = f"Be brief.\n{BILLING}"
    assert asked(system=system).messages == (Message("system", system), Message("user", "Hi"))


@pytest.mark.parametrize(
    ("thinking", "budget"),
    [
        (None, 0),
        ({"type": "disabled"}, 0),
        ({"type": "enabled", "budget_tokens": 2000}, 2000),
        ({"type": "adaptive"}, UNLIMITED_THINKING),
    ],
)
def test_an_answer_thinks_where_it_is_asked_to(thinking: Any, budget: int) -> None:
    assert asked(thinking=thinking).params.thinking_budget == budget


def test_what_the_server_was_started_with_holds_where_a_body_says_nothing() -> None:
    assert asked(unchosen=UNCHOSEN - {"thinking_budget"}).params.thinking_budget is None


@pytest.mark.parametrize(
    ("choice", "is_demanded", "has_one_call"),
    [
        ({"type": "auto"}, False, False),
        ({"type": "auto", "disable_parallel_tool_use": True}, False, True),
        ({"type": "any"}, True, False),
        ({"type": "tool", "name": "go"}, True, True),
    ],
)
def test_a_choice_of_tools_is_kept(choice: Any, is_demanded: bool, has_one_call: bool) -> None:
    request = asked(tools=ANTHROPIC_TOOLS, tool_choice=choice)
    assert (request.is_all_calls, request.has_one_call) == (is_demanded, has_one_call)
    assert asked(tools=ANTHROPIC_TOOLS, tool_choice={"type": "none"}).tools is None


def test_a_schema_and_an_effort_may_be_wanted() -> None:
    shape = {"type": "json_schema", "schema": {"type": "object"}}
    request = asked(output_config={"effort": "low", "format": shape}, thinking={"type": "adaptive"})
    assert request.response_schema == '{"type": "object"}' and request.reasoning_effort == "low"
    assert asked(output_config={"effort": "low"}).reasoning_effort is None


def test_tokens_are_counted_without_a_limit() -> None:
    assert asked(max_tokens=..., is_counted=True).messages == (Message("user", "Hi"),)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": ...}, "max_tokens is missing"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be 1 or more"),
        ({"messages": []}, "messages is []; it must be a list of turns"),
        (
            {"messages": [{"role": "system", "content": "a"}]},
            "turn 1 of messages must be an object with content and the",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "the content of turn 1 of messages is 5"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "holds a block of type 'image'; only text is answered"),
        ({"system": 5}, "the content of system is 5"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "of type 'web_search_20250305' is not done",
        ),
        ({"tools": {}}, "tools is {}; it must be a list of tools"),
        ({"tool_choice": "any"}, "tool_choice is 'any'; it must be an object of type auto, any, none or tool"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens of thinking is null"),
        ({"thinking": "on"}, "thinking is 'on'; it must be an object of type enabled, adaptive or disabled"),
        ({"output_config": {"format": {"type": "xml"}}}, "of type json_schema"),
        ({"output_config": {"task_budget": 1}}, "it must be an object with effort or format"),
        ({"mcp_servers": []}, "body has the key 'mcp_servers', which is not done here"),
    ],
)
def test_what_cannot_be_done_is_refused(body: dict[str, Any], expected: str) -> None:
    with pytest.raises(PromptFileError) as caught:
        asked(**body)
    assert expected in str(caught.value)


def test_an_answer_held_to_a_schema_cannot_be_begun() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{"}]
    with pytest.raises(PromptFileError, match="cannot be continued as JSON"):
        asked(messages=messages, tools=ANTHROPIC_TOOLS, tool_choice={"type": "any"})
