"""A body of OpenAI's Responses API becomes one request of ours, or a sentence says what cannot be done."""

from typing import Any

import pytest

from runtime.api.responses import ResponseQuestion, parse_response_question
from runtime.config import SamplingParams, options_of
from runtime.errors import PromptFileError
from runtime.prompts.prompt_file import LineDefaults, Message, PromptRequest, ToolCall, parse_tools
from tests.support.calling_models import OPENAI_TOOLS, TOOLS

COMMON = LineDefaults(params=SamplingParams(), unchosen=frozenset(options_of(SamplingParams)))
FLAT_TOOLS = [{"type": "function", "strict": True, **tool} for tool in TOOLS]


def ask(**body: Any) -> ResponseQuestion:
    body = {"model": "any", "input": "Hi", **body}
    return parse_response_question(body, COMMON, request_id="a", usual_seed=7, model="ours")


def asked(**body: Any) -> PromptRequest:
    (request,) = ask(**body).question.requests
    return request


def test_text_and_instructions_become_turns() -> None:
    assert asked().messages == (Message("user", "Hi"),)
    assert asked(instructions="Be brief.").messages == (Message("system", "Be brief."), Message("user", "Hi"))


def test_what_a_body_chooses_reaches_the_request() -> None:
    request = asked(temperature=0.5, top_p=0.9, max_output_tokens=5, reasoning={"effort": "low"}, store=True, user="me")
    assert (request.params.temperature, request.params.top_p, request.params.max_new_tokens) == (0.5, 0.9, 5)
    assert request.reasoning_effort == "low" and request.wants_parts
    assert ask(stream=True).question.is_streamed


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens is 0; it must be 1 or more"),
        ({"reasoning": {"effort": 5}}, "effort of reasoning is 5; it must be text"),
        ({"text": {"format": 5}}, "format of text is 5; it must be an object of type text, json_object or json_schema"),
    ],
)
def test_what_is_wrong_is_told_by_the_name_that_it_has_in_this_api(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(PromptFileError) as told:
        ask(**wrong)
    assert str(told.value) == expected


def test_items_become_turns_and_what_the_assistant_did_is_one() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "where"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "well"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "cat"}', "id": "f"},
        {"type": "function_call", "call_id": "c2", "name": "go", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "here"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "gone"}]},
    ]
    request = asked(input=items, instructions="Be brief.", tools=FLAT_TOOLS)
    calls = (ToolCall("c1", "look", '{"at": "cat"}'), ToolCall("c2", "go", "{}"))
    assert request.messages == (
        Message("system", "Be brief.\n\nBe kind."),
        Message("user", "where"),
        Message("assistant", "I look.", calls, reasoning_content="well"),
        Message("tool", "here", tool_call_id="c1", name="look"),
        Message("tool", "gone", tool_call_id="c2", name="go"),
    )
    assert request.tools == parse_tools(OPENAI_TOOLS)


def test_a_choice_of_tools_is_kept() -> None:
    named = asked(tools=FLAT_TOOLS, tool_choice={"type": "function", "name": "go"})
    assert named.is_all_calls and named.has_one_call
    assert asked(tools=FLAT_TOOLS, tool_choice="none").tools is None
    assert asked(tools=FLAT_TOOLS, parallel_tool_calls=False).has_one_call


def test_a_schema_may_be_wanted() -> None:
    shape = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
    assert asked(text={"format": shape}).response_schema == '{"type": "object"}'
    assert asked(text={"format": {"type": "text"}, "verbosity": "low"}).response_schema is None


def test_the_answer_repeats_what_was_asked() -> None:
    echoed = ask(instructions="Be brief.", tools=FLAT_TOOLS, metadata={"a": "b"}, temperature=0.5).echoed
    assert (echoed["instructions"], echoed["tools"], echoed["metadata"]) == ("Be brief.", FLAT_TOOLS, {"a": "b"})
    assert (echoed["model"], echoed["temperature"], echoed["store"]) == ("ours", 0.5, False)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id names what was stored, and nothing is stored here"),
        ({"conversation": "c"}, "conversation names what was stored"),
        ({"input": []}, "input is []; it must be text or a list of items"),
        ({"input": ["Hi"]}, "item 1 of input is 'Hi'; it must be an object"),
        ({"input": [{"role": "critic", "content": "a"}]}, "item 1 of input has the role 'critic'"),
        ({"input": [{"role": "user", "content": 5}]}, "the content of item 1 of input is 5"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "a part of type 'input_image'; only text",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item 1 of input is of type 'item_reference'"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "a"}]}, "which no turn before it made"),
        ({"tools": [{"type": "web_search"}]}, "tool 1 is of type 'web_search', which is not done here"),
        ({"tools": {}}, "tools is {}; it must be a list of functions"),
        ({"text": {"format": {"type": "xml"}}}, "format of text is {'type': 'xml'}"),
        ({"text": "json"}, "text is 'json'; it must be an object with format"),
        ({"reasoning": "low"}, "reasoning is 'low'; it must be an object"),
        ({"truncation": "auto"}, "truncation is 'auto'; it must be 'disabled'"),
        ({"background": True}, "background is true; it must be false"),
        ({"modalities": []}, "body has the key 'modalities', which is not done here"),
    ],
)
def test_what_cannot_be_done_is_refused(body: dict[str, Any], expected: str) -> None:
    with pytest.raises(PromptFileError) as caught:
        asked(**body)
    assert expected in str(caught.value)
