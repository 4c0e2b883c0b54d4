"""Tools and thinking in bodies of the chat endpoint, asked and answered."""

from typing import Any

import pytest

from runtime.api.answers import AnswerPieces, answer_body
from runtime.api.questions import CHAT, LiveTerms, Question, parse_question
from runtime.config import SamplingParams, options_of
from runtime.errors import OptionError, PromptFileError
from runtime.events import AnswerParts, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from runtime.prompts.prompt_file import LineDefaults, Message, PromptRequest, ToolCall, parse_tools
from tests.support.answer_fakes import STATISTICS
from tests.support.calling_models import OPENAI_TOOLS

COMMON = LineDefaults(params=SamplingParams(), unchosen=frozenset(options_of(SamplingParams)))
CALL = ToolCall("c1", "look", '{"at": "cat"}')
PARTS = AnswerParts("I look.", "well", (CALL,))


def ask(**body: Any) -> Question:
    body = {"messages": [{"role": "user", "content": "Hi"}], **body}
    live = LiveTerms(model="ours", max_tokens=9)
    return parse_question(body, CHAT, COMMON, request_id="a", usual_seed=7, live=live)


def asked(**body: Any) -> PromptRequest:
    (request,) = ask(**body).requests
    return request


def test_tools_and_their_choice_reach_the_request() -> None:
    request = asked(tools=OPENAI_TOOLS)
    assert request.tools == parse_tools(OPENAI_TOOLS) and request.wants_parts and request.response_schema is None
    demanded = asked(tools=OPENAI_TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert demanded.is_all_calls and demanded.has_one_call and "look" in (demanded.response_schema or "")


def test_choices_of_thinking_reach_the_request() -> None:
    request = asked(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}, thinking_budget=5)
    assert (request.reasoning_effort, request.thinking, request.params.thinking_budget) == ("low", False, 5)
    assert asked(chat_template_kwargs={"thinking": True}).thinking is True
    assert asked().thinking is None


def test_what_openais_client_was_told_may_be_given_back() -> None:
    """Its objects hold every key, most of them null."""
    turns = [
        {"role": "user", "content": "where"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "audio": None,
            "annotations": [],
            "function_call": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": CALL.arguments}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "here"}]},
    ]
    expected = (
        Message("user", "where"),
        Message("assistant", "", (CALL,)),
        Message("tool", "here", tool_call_id="c1", name="look"),
    )
    assert asked(messages=turns).messages == expected
    del turns[1]["content"]
    assert asked(messages=turns).messages == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"chat_template_kwargs": {"custom": 1}}, "it must be an object with enable_thinking or thinking"),
        ({"chat_template_kwargs": {"thinking": "on"}}, "thinking is 'on'; it must be true or false"),
        ({"reasoning_effort": 3}, "reasoning_effort is 3; it must be text"),
        (
            {"tools": OPENAI_TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice demands a call and response_format a text",
        ),
    ],
)
def test_what_cannot_be_is_refused(body: dict[str, Any], expected: str) -> None:
    with pytest.raises(PromptFileError) as caught:
        asked(**body)
    assert expected in str(caught.value)


def test_a_demanded_call_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OptionError("response_format needs llguidance")

    monkeypatch.setattr("runtime.api.questions.json_library", missing)
    assert asked(tools=OPENAI_TOOLS).tools
    with pytest.raises(OptionError, match=r"tool_choice that demands a call needs llguidance; .*overstory\[json\]"):
        asked(tools=OPENAI_TOOLS, tool_choice="required")
    with pytest.raises(OptionError, match="response_format needs"):
        asked(response_format={"type": "json_object"})


def choice_of(finished: Finished) -> dict[str, Any]:
    (choice,) = answer_body(ask(), [finished])["choices"]
    return dict(choice)


def test_an_answer_has_its_parts_and_says_that_it_called() -> None:
    choice = choice_of(Finished("stop", "raw", STATISTICS, parts=PARTS))
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "I look.",
        "refusal": None,
        "reasoning_content": "well",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": CALL.arguments}}],
    }
    cut = choice_of(Finished("length", "raw", STATISTICS, parts=PARTS))
    assert cut["finish_reason"] == "length"
    silent = choice_of(Finished("stop", "raw", STATISTICS, parts=AnswerParts("", None, (CALL,))))
    assert silent["message"]["content"] is None and "reasoning_content" not in silent["message"]
    plain = choice_of(Finished("stop", "raw", STATISTICS, parts=AnswerParts("raw")))
    assert plain["message"] == {"role": "assistant", "content": "raw", "refusal": None}


def test_pieces_of_an_answer_have_its_parts() -> None:
    pieces = AnswerPieces(ask(stream=True))
    events = [ReasoningDelta("well"), TextDelta("I look."), ToolCallDelta(0, CALL)]
    deltas = [pieces.part(0, event)["choices"][0]["delta"] for event in events]
    function = {"name": "look", "arguments": CALL.arguments}
    assert deltas == [
        {"reasoning_content": "well"},
        {"content": "I look."},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]},
    ]
    end = pieces.end(0, Finished("stop", "raw", STATISTICS, parts=PARTS))
    assert end["choices"][0]["finish_reason"] == "tool_calls"
