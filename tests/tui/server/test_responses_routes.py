"""OpenAI's own client talks to a tiny model over /v1/responses and with tools, which is made to say what it would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from runtime.config import SamplingParams
from tests.support.calling_models import CALL, OPENAI_TOOLS, TOOLS, save_calling_folder, saying
from tests.support.json_models import blank_tokens
from tests.support.served import Served, served, tiny_load

SAID = f"<think>\nwell\n</think>\n\nI look. {CALL}"
FLAT_TOOLS: Any = [{"type": "function", **tool} for tool in TOOLS]
ASKED: Any = [{"role": "user", "content": "where"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_calling_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with served(tiny_load(folder, context_tokens=512), params=saying(SAID)) as found:
        yield found


def test_a_response_has_thinking_text_and_calls(server: Served) -> None:
    response = server.client().responses.create(model="any", input="where", tools=FLAT_TOOLS)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert (response.output_text, response.status) == ("I look.", "completed")
    call: Any = response.output[-1]
    assert (call.name, call.arguments) == ("look", '{"at": "cat"}')
    assert response.usage is not None and response.usage.input_tokens > 0


def test_a_stream_builds_the_same_response(server: Served) -> None:
    client = server.client()
    whole = client.responses.create(model="any", input="where", tools=FLAT_TOOLS)
    with client.responses.stream(model="any", input="where", tools=FLAT_TOOLS) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]
    assert streamed.output_text == whole.output_text
    assert streamed.usage is not None and whole.usage is not None
    assert streamed.usage.total_tokens == whole.usage.total_tokens
    assert 0 < streamed.usage.output_tokens_details.reasoning_tokens < streamed.usage.output_tokens


def test_a_call_and_its_result_are_given_back_as_items(server: Served) -> None:
    client = server.client()
    first = client.responses.create(model="any", input="where", tools=FLAT_TOOLS)
    call: Any = first.output[-1]
    items: Any = [*ASKED, *first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "here"}]
    second = client.responses.create(model="any", input=items, tools=FLAT_TOOLS)
    assert first.usage is not None and second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens


def test_what_was_stored_elsewhere_is_refused(server: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is stored here"):
        server.client().responses.create(model="any", input="where", previous_response_id="resp_1")


def test_a_stream_that_fails_says_so(server: Served) -> None:
    with pytest.raises(openai.APIError, match="the context holds 512"):
        list(server.client().responses.create(model="any", input="where " * 300, stream=True))


def test_a_chat_has_the_same_parts_whole_and_streamed(server: Served) -> None:
    client, tools = server.client(), OPENAI_TOOLS
    asked: Any = {"model": "any", "messages": ASKED, "tools": tools}
    choice = client.chat.completions.create(**asked).choices[0]
    message: Any = choice.message
    assert choice.finish_reason == "tool_calls"
    assert (message.content, message.reasoning_content) == ("I look.", "well")
    assert message.tool_calls[0].function.arguments == '{"at": "cat"}'
    chunks = list(client.chat.completions.create(stream=True, **asked))
    deltas: list[Any] = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "I look."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "well"
    (called,) = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert (called.index, called.function.name, called.function.arguments) == (0, "look", '{"at": "cat"}')
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "here"}
    again = client.chat.completions.create(**{**asked, "messages": [*ASKED, message, answer]})
    assert again.choices[0].message.content == "I look."


def test_a_demanded_call_is_held_to_the_tools(folder: Path) -> None:
    """A random model would never call of itself: here every token is its own, within the schema."""
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    params = SamplingParams(banned_tokens=blank_tokens())
    with served(tiny_load(folder, context_tokens=512), params=params) as found:
        message = (
            found.client()
            .chat.completions.create(
                model="any",
                messages=ASKED,
                tools=[{"type": "function", "function": {"name": "go", "parameters": nothing}}],
                tool_choice={"type": "function", "function": {"name": "go"}},
                max_tokens=300,
            )
            .choices[0]
            .message
        )
    calls: Any = message.tool_calls
    assert calls is not None and [call.function.name for call in calls] == ["go"]


@pytest.mark.parametrize("is_call", [True, False])
def test_a_fence_is_a_call_only_of_a_tool_that_was_given(folder: Path, is_call: bool) -> None:
    """Qwen2.5-Coder writes calls so, which clients saw as text, and no tool ran."""
    said = f'I look.\n```json\n{{"name": "{"look" if is_call else "fly"}", "arguments": {{"at": "cat"}}}}\n```'
    asked: Any = {"model": "any", "messages": ASKED, "tools": OPENAI_TOOLS}
    with served(tiny_load(folder, context_tokens=512), params=saying(said)) as server:
        client = server.client()
        choice = client.chat.completions.create(**asked).choices[0]
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(stream=True, **asked)]
        without = client.chat.completions.create(**{**asked, "tools": []}).choices[0]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    content = "".join(chunk.delta.content or "" for chunk in chunks)
    assert choice.message.content == content == ("I look." if is_call else said)
    assert choice.finish_reason == chunks[-1].finish_reason == ("tool_calls" if is_call else "stop")
    assert len(choice.message.tool_calls or ()) == len(calls) == is_call
    assert all((call.function.name, call.function.arguments) == ("look", '{"at": "cat"}') for call in calls)
    assert without.message.content == said and not without.message.tool_calls
