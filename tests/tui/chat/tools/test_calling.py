"""Calls in a dialogue: nothing runs before a person's word, and what comes of it is kept, told, and sent again."""

import asyncio

import pytest

from profiles.errors import BadInputError
from runtime.config import EngineConfig
from runtime.events import ToolCallDelta
from runtime.prompts.prompt_file import Message, ToolCall
from tests.support.chat_fakes import FINISHED, FakeEngine
from tests.support.dialogues import answered, take
from tests.support.tool_fakes import CALL, CALLING, FakeHost
from tui.chat.dialogue import Dialogue
from tui.chat.store.store import ConversationStore
from tui.chat.tools.calling import MAX_CALLS_IN_A_ROW, REFUSED
from tui.chat.tools.results import ToolResult
from tui.chat.tools.servers import CallEnded


@pytest.fixture
def store():
    with ConversationStore(None) as opened:
        yield opened


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def dialogue(store, host):
    engine = FakeEngine(lambda request: ())
    asyncio.run(engine.start())
    ready = Dialogue(store, engine, tools=host)
    ready.load(EngineConfig(target="tiny"))
    ready.take(CALLING)
    return ready


def calls(dialogue, call=CALL):
    """Let the answer that is being written end with a call; returns its message."""
    answer_id = dialogue.answer.answer_id
    take(dialogue, answer_id, ToolCallDelta(0, call))
    take(dialogue, answer_id, FINISHED)
    return dialogue.messages()[-1]


def ends(dialogue, answer, text="the text", outcome="done"):
    return dialogue.take_result(CallEnded(answer.id, ToolResult(text, outcome, 0.5)))


def roles(dialogue):
    return [each.role for each in dialogue.messages()]


def test_tools_go_along_and_a_call_waits_for_a_word(dialogue, host):
    dialogue.ask("What is in it?")
    assert dialogue.answer.prompt.tools == "[]" and dialogue.answer.prompt.has_one_call
    answer = calls(dialogue)
    assert host.calls == [] and dialogue.answer is None and not dialogue.is_answering
    assert dialogue.tool_calls.waiting(dialogue.messages()) == answer and answer.call == CALL


def test_a_call_that_is_allowed_runs_and_the_model_goes_on(dialogue, host):
    dialogue.ask("What is in it?")
    answer = calls(dialogue)
    dialogue.allow()
    assert host.calls == [(answer.id, CALL)] and dialogue.is_answering
    result, begun = ends(dialogue, answer)
    assert (result.role, result.content, result.outcome) == ("tool", "the text", "done")
    assert begun.state == "streaming"
    assert dialogue.answer.prompt.messages == (
        Message("user", "What is in it?"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "the text", tool_call_id=CALL.id, name=CALL.name),
    )
    answered(dialogue, "Text.")
    dialogue.ask("And then?")
    assert [each.role for each in dialogue.answer.prompt.messages] == ["user", "assistant", "tool", "assistant", "user"]


@pytest.mark.parametrize("way", ["command", "prompt"])
def test_a_call_that_is_refused_never_runs_and_the_model_is_told(dialogue, host, way):
    dialogue.ask("What is in it?")
    calls(dialogue)
    changes = dialogue.refuse("ask me") if way == "command" else dialogue.ask("ask me")
    assert [each.role for each in changes] == ["tool", "assistant"]
    assert host.calls == [] and dialogue.answer.prompt.messages[-1].content == f"{REFUSED} They say: ask me"
    assert dialogue.messages()[-2].outcome == "refused"


def test_always_holds_for_one_tool_in_one_conversation_and_not_for_ever(dialogue, host):
    dialogue.ask("One?")
    answer = calls(dialogue)
    dialogue.allow(is_always=True)
    for _ in range(MAX_CALLS_IN_A_ROW - 1):
        ends(dialogue, answer)
        answer = calls(dialogue)
    assert len(host.calls) == MAX_CALLS_IN_A_ROW
    ends(dialogue, answer)
    calls(dialogue)
    assert len(host.calls) == MAX_CALLS_IN_A_ROW  # too many in a row: a person is asked again
    dialogue.refuse()
    calls(dialogue, ToolCall("2", "files__write", "{}"))
    assert len(host.calls) == MAX_CALLS_IN_A_ROW  # another tool
    dialogue.open(None)
    dialogue.ask("Elsewhere?")
    calls(dialogue)
    assert len(host.calls) == MAX_CALLS_IN_A_ROW  # another conversation


def test_esc_stops_a_tool_and_the_model_does_not_go_on(dialogue, host):
    dialogue.ask("One?")
    answer = calls(dialogue)
    dialogue.allow()
    dialogue.ask("Later")  # which waits
    assert dialogue.stop()[0].text == "Later"
    assert host.stopped == [answer.id]
    (result,) = ends(dialogue, answer, "stopped", "stopped")
    assert result.outcome == "stopped" and dialogue.answer is None
    assert ends(dialogue, answer) == ()  # what comes later is nobody's


def test_a_call_that_waits_waits_after_a_restart_too(dialogue, store, host):
    dialogue.ask("One?")
    answer = calls(dialogue)
    again = Dialogue(store, dialogue._engine, tools=host)
    again.load(EngineConfig(target="tiny"))
    again.take(CALLING)
    again.open(answer.conversation_id)
    again.allow()
    assert host.calls == [(answer.id, CALL)]
    with pytest.raises(BadInputError, match="an answer is being written"):
        again.allow()
    assert again.delete(answer.conversation_id) and host.stopped == [answer.id]


def test_what_a_tool_says_in_a_conversation_that_is_left_is_kept_there(dialogue, host):
    dialogue.ask("One?")
    answer = calls(dialogue)
    dialogue.allow()
    dialogue.open(None)
    (sentence,) = ends(dialogue, answer)
    assert sentence.startswith("a tool has ended in One?") and dialogue.answer is None
    dialogue.open(answer.conversation_id)
    assert roles(dialogue) == ["user", "assistant", "tool"]
    dialogue.continue_answer()
    assert dialogue.answer.prompt.messages[-1].role == "tool"


def test_without_a_call_there_is_nothing_to_allow_and_with_one_nothing_to_continue(dialogue):
    dialogue.ask("One?")
    answered(dialogue, "Two.")
    for act in (dialogue.allow, dialogue.refuse):
        with pytest.raises(BadInputError, match="no tool waits"):
            act()
    dialogue.ask("Three?")
    calls(dialogue)
    with pytest.raises(BadInputError, match="/allow, or /refuse"):
        dialogue.continue_answer()
    dialogue.regenerate()
    assert roles(dialogue)[-1] == "assistant" and dialogue.is_answering


def test_what_a_tool_said_cannot_be_edited(dialogue):
    dialogue.ask("One?")
    answer = calls(dialogue)
    dialogue.allow()
    result, _ = ends(dialogue, answer)
    answered(dialogue, "So.")
    with pytest.raises(BadInputError, match="what a tool said cannot be changed"):
        dialogue.edit(result.id)


def test_a_model_without_tools_is_told_of_none_and_reads_calls_as_words(dialogue):
    dialogue.ask("One?")
    answer = calls(dialogue)
    dialogue.allow()
    ends(dialogue, answer)
    answered(dialogue, "So.")
    dialogue.load(EngineConfig(target="other"))
    dialogue.take(CALLING.__class__(**{**_fields(CALLING), "knows_tools": False}))
    dialogue.ask("Two?")
    prompt = dialogue.answer.prompt
    assert prompt.tools is None and [each.role for each in prompt.messages] == ["user", "assistant"] * 2 + ["user"]


def _fields(record):
    return {name: getattr(record, name) for name in record.__dataclass_fields__}
