"""One answer at a time: asked for with its turns, kept as it comes, and never lost to a store that fails."""

from dataclasses import replace

import pytest

from profiles.errors import BadInputError
from runtime.config import SamplingParams
from runtime.prompts.prompt_file import Message
from tui.chat.answering import AnswerWriter
from tui.chat.changes import TextCame, ThoughtCame, Trouble
from tui.chat.engine.messages import StopAnswer
from tui.chat.reading import Reading
from tui.chat.store.database import ConversationStoreError
from tui.chat.store.guesses import Guesses, guesses_of
from tui.chat.store.records import Thinking

READING = Reading((Message("user", "One?"),))


@pytest.fixture
def seconds():
    return iter((1.0, 3.5, 9.0))


@pytest.fixture
def writer(store, engine, seconds):
    return AnswerWriter(
        store,
        engine,
        params=lambda: SamplingParams(seed=5),
        unchosen=lambda: frozenset({"top_k"}),
        clock=lambda: next(seconds),
    )


@pytest.fixture
def begin(store, writer):
    """Begin an answer in a conversation of its own, or another version of one."""

    def begin(*, version_of=None, is_text=False):
        if version_of is None:
            conversation_id = store.create_conversation().id
            store.append_prompt(conversation_id, "One?")
        else:
            store.branch_off(version_of.id)
            conversation_id = version_of.conversation_id
        message = store.begin_answer(conversation_id, model="m")
        writer.send(message, replace(READING, is_text=is_text), is_continued=False)
        return message

    return begin


def test_each_request_has_an_id_of_its_own_and_each_version_another_seed(writer, engine, begin):
    first = begin()
    begin(version_of=first)
    begin()
    requests = engine.requests[-3:]
    assert [each.answer_id for each in requests] == [1, 2, 3]
    assert [each.prompt.params.seed for each in requests] == [5, 6, 5]
    assert requests[0].prompt.messages == (Message("user", "One?"),) and requests[0].prompt.unchosen == {"top_k"}
    assert writer.request == requests[-1]


def test_without_a_chat_template_the_turns_are_a_text(writer, engine, begin):
    begin(is_text=True)
    prompt = engine.requests[-1].prompt
    assert (prompt.messages, prompt.prompt, prompt.wants_parts) == (None, "One?", False)


def test_what_comes_is_kept_before_it_is_shown(writer, store, begin):
    message = begin()
    writer.count_tokens(3)
    assert writer.think("Hm") == (ThoughtCame(Thinking(text="Hm", num_tokens=3, seconds=0.0)),)
    writer.count_tokens(2)
    assert writer.think(".") == (ThoughtCame(Thinking(text="Hm.", num_tokens=5, seconds=2.5)),)
    assert writer.write("On") == (TextCame("On"),)
    assert (store.message(message.id).content, store.message(message.id).thinking.text) == ("On", "Hm.")
    (ended,) = writer.end("complete", {"finish_reason": "stop"})
    assert (ended.content, ended.state, ended.thinking.seconds) == ("On", "complete", 2.5)
    assert ended.statistics["seed"] == 5 and writer.request is None
    assert writer.end("complete", {}) == ()


def test_nothing_is_stopped_that_is_not_written(writer, engine, begin):
    writer.stop()
    assert engine.requests == []
    begin()
    writer.stop()
    assert engine.requests[-1] == StopAnswer(1)


@pytest.mark.parametrize(
    ("error", "troubles"),
    [(ConversationStoreError("full"), ()), (BadInputError("gone"), (Trouble("store", "gone"),))],
)
def test_what_cannot_be_kept_is_shown_all_the_same(writer, store, begin, monkeypatch, error, troubles):
    """A full disk is told by whoever watches what is unsaved, once; a conversation that was purged is told here."""
    message = begin()

    def fail(*_, **__):
        raise error

    for name in ("append_text", "keep_thinking", "finish_answer"):
        monkeypatch.setattr(store, name, fail)
    assert writer.write("On") == (TextCame("On"), *troubles)
    assert writer.think("Hm")[1:] == troubles
    expected = troubles or (store.message(message.id),)
    assert writer.end("complete", {}) == expected
    assert writer.request is None


def test_what_was_guessed_is_kept_at_the_end_and_goes_on_in_an_answer_that_does(writer, store, begin):
    message = begin()
    assert writer.write("Once ", ((0, 3),)) == (TextCame("Once ", Guesses(lengths=(3, 2))),)
    assert writer.write("upon", ((1, 4),))[0].guesses == Guesses(lengths=(3, 3, 3))
    (ended,) = writer.end("stopped", {"num_rounds": 2})
    assert guesses_of(ended.statistics) == Guesses(lengths=(3, 3, 3)) and ended.statistics["num_rounds"] == 2
    writer.send(store.continue_answer(message.id), READING, is_continued=True)
    assert writer.write(" a", ())[0].guesses == Guesses(lengths=(3, 3, 3, 2))
    writer.end("complete", {})
    store.append_text(message.id, " by hand")  # what an engine did that tells nothing
    writer.send(store.message(message.id), READING, is_continued=True)
    assert writer.write(" time", ((0, 5),))[0].guesses == Guesses(start=len("Once upon a by hand"), lengths=(5,))
