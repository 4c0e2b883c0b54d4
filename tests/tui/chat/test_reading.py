"""What a request says of a conversation: messages for a template, or one text; what is left out is not in it."""

import pytest

from runtime.config import SamplingParams
from runtime.prompts.prompt_file import Message, ToolCall
from tui.chat.reading import Reading
from tui.chat.store.records import StoredMessage

PARAMS, UNCHOSEN = SamplingParams(seed=3), frozenset({"top_k"})


def said(message_id, role, content, **more):
    return StoredMessage(id=message_id, role=role, content=content, state="complete", created_at=0, **more)


SAID = [said(1, "user", "old", is_left_out=True), said(2, "user", "One?"), said(3, "assistant", "1")]


def test_turns_are_messages_with_their_ids_and_without_what_is_left_out():
    reading = Reading.of("Be brief.", SAID)
    assert reading.turns == (Message("system", "Be brief."), Message("user", "One?"), Message("assistant", "1"))
    assert reading.ids == (2, 3)
    request = reading.request(PARAMS, UNCHOSEN, request_id="7", is_continued=True)
    assert (request.id, request.messages, request.prompt) == ("7", reading.turns, None)
    assert (request.params, request.unchosen, request.is_continued) == (PARAMS, UNCHOSEN, True)
    assert request.wants_parts and request.wants_guesses and not request.has_one_call and request.tools is None


def test_a_text_is_one_prompt_that_is_written_on():
    request = Reading.of("", SAID, is_text=True).request(PARAMS, UNCHOSEN, is_continued=True)
    assert (request.prompt, request.messages, request.is_continued, request.wants_parts) == (
        "One?1",
        None,
        False,
        False,
    )


@pytest.mark.parametrize("tools", [None, "[]"])
def test_calls_are_words_where_no_tools_are_known(tools):
    call = ToolCall(id="a", name="hours", arguments="{}")
    told = [
        *SAID,
        said(4, "user", "Two?"),
        said(5, "assistant", "", statistics={"call": {"id": "a", "name": "hours", "arguments": "{}"}}),
    ]
    told.append(said(6, "tool", "10", statistics={"call": {"id": "a", "name": "hours", "arguments": "{}"}}))
    reading = Reading.of("", told, tools=tools)
    request = reading.request(PARAMS, UNCHOSEN)
    assert (request.tools, request.has_one_call) == (tools, tools is not None)
    if tools is None:
        assert reading.turns[-2].content == "[called hours with {}]" and reading.turns[-1].role == "user"
    else:
        assert reading.turns[-2].tool_calls == (call,) and reading.turns[-1].role == "tool"
