"""Anthropic's own client talks to a tiny model, which is made to say what such a model would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.support.calling_models import CALL, TOOLS, save_calling_folder, saying
from tests.support.served import MODEL, Served, post, served, tiny_load

ANTHROPIC_TOOLS: Any = [
    {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]} for tool in TOOLS
]
SAID = f"<think>\nwell\n</think>\n\nI look. {CALL}"
ASKED: Any = [{"role": "user", "content": "where"}]
THINKING: Any = {"type": "adaptive"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_calling_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with served(tiny_load(folder, context_tokens=512), params=saying(SAID)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0, timeout=60) as found:
        yield found


def ask(client: anthropic.Anthropic, **how: Any) -> Any:
    options = {"messages": ASKED, "max_tokens": 300, "tools": ANTHROPIC_TOOLS, "thinking": THINKING, **how}
    return client.messages.create(model="any", **{key: value for key, value in options.items() if value})


def num_prompt_tokens(message: Any) -> int:
    """Return how many tokens the prompt had, held already or not."""
    return int(message.usage.input_tokens + message.usage.cache_read_input_tokens)


def test_a_message_has_thinking_text_and_calls(client: anthropic.Anthropic) -> None:
    message = ask(client)
    kinds = [block.type for block in message.content]
    assert kinds == ["thinking", "text", "tool_use"]
    thought, text, call = message.content
    assert (thought.thinking, text.text, call.name, call.input) == ("well", "I look.", "look", {"at": "cat"})
    assert (message.stop_reason, message.model, message.role) == ("tool_use", MODEL, "assistant")
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0
    again = ask(client)
    assert (again.usage.input_tokens, num_prompt_tokens(again)) == (1, num_prompt_tokens(message)), "it is held now"


def test_a_stream_builds_the_same_message(client: anthropic.Anthropic) -> None:
    whole = ask(client)
    with client.messages.stream(
        model="any", messages=ASKED, max_tokens=300, tools=ANTHROPIC_TOOLS, thinking=THINKING
    ) as stream:
        events = [event.type for event in stream]
        message: Any = stream.get_final_message()
    assert events[0] == "message_start" and events[-1] == "message_stop"
    for streamed, expected in zip(message.content, whole.content, strict=True):
        ours, theirs = streamed.model_dump(exclude={"id"}), expected.model_dump(exclude={"id"})
        assert {key: ours[key] for key in theirs} == theirs
    assert (message.stop_reason, num_prompt_tokens(message)) == (whole.stop_reason, num_prompt_tokens(whole))
    assert message.usage.output_tokens == whole.usage.output_tokens


def test_results_of_tools_are_answered(client: anthropic.Anthropic) -> None:
    message = ask(client)
    call = message.content[-1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "here"}
    turns = [*ASKED, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    answered = ask(client, messages=turns)
    assert num_prompt_tokens(answered) > num_prompt_tokens(message)


def test_an_answer_ends_at_a_stop_sequence_or_its_limit(client: anthropic.Anthropic) -> None:
    stopped = ask(client, stop_sequences=["look."], tools=None)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "look.")
    cut = ask(client, max_tokens=3)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)


def test_tokens_of_a_prompt_are_counted(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="any", messages=ASKED, tools=ANTHROPIC_TOOLS)
    assert counted.input_tokens == num_prompt_tokens(ask(client, thinking=None))
    longer: Any = [{"role": "user", "content": "where is it"}]
    assert client.messages.count_tokens(model="any", messages=longer).input_tokens > 0


def test_a_line_that_differs_each_time_costs_nothing(client: anthropic.Anthropic) -> None:
    systems = [f"x-anthropic-billing-header: cch={word};\nBe brief." for word in ("a", "abcdef")]
    first, second = (client.messages.count_tokens(model="any", messages=ASKED, system=system) for system in systems)
    assert first.input_tokens == second.input_tokens


def test_errors_have_the_shape_of_the_api(server: Served, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="only text is answered") as caught:
        ask(client, messages=[{"role": "user", "content": [{"type": "image"}]}])
    assert caught.value.body == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "turn 1 of messages holds a block of type 'image'; only text is answered, so leave it out",
        },
    }
    refused = post(server, "/v1/messages", content=b"{")
    assert refused.status_code == 400 and refused.json()["type"] == "error"


def test_a_prompt_that_is_too_long_is_an_error_also_of_a_stream(client: anthropic.Anthropic) -> None:
    long: Any = [{"role": "user", "content": "where " * 300}]
    with pytest.raises(anthropic.BadRequestError, match="the context holds 512"):
        ask(client, messages=long)
    with (
        pytest.raises(anthropic.APIStatusError, match="the context holds 512"),
        client.messages.stream(model="any", messages=long, max_tokens=9) as stream,
    ):
        list(stream)
