"""What is asked, saved and shown, with an engine that says what a test scripts and a store in memory."""

import pytest

from profiles.errors import BadInputError
from runtime.config import EngineConfig, SamplingParams
from runtime.events import ReasoningDelta, TextDelta
from runtime.prompts.prompt_file import Message
from tests.support.chat_fakes import FINISHED, LOADED, ROUND, STOPPED
from tests.support.dialogues import answered, contents, kinds, take
from tui.chat.changes import ConversationLeft, EditBegun, PromptReturned, TextCame, ThoughtCame, Trouble, TurnsChanged
from tui.chat.dialogue import Dialogue
from tui.chat.engine.client import EngineDied
from tui.chat.engine.messages import Answer, ContextFull, Failed, LoadModel, SessionNote, StopAnswer
from tui.chat.store.records import StoredMessage, Thinking


def test_what_is_thought_is_saved_as_it_comes_and_left_to_the_template_later(dialogue, store, engine):
    dialogue.ask("Hello?")
    answer_id = engine.requests[-1].answer_id
    seconds = iter((1.0, 3.5))
    dialogue._writer._clock = lambda: next(seconds)
    take(dialogue, answer_id, ROUND)
    (came,) = take(dialogue, answer_id, ReasoningDelta("They "))
    assert came == ThoughtCame(Thinking(text="They ", num_tokens=3, seconds=0.0))
    assert dialogue.state.is_thinking
    take(dialogue, answer_id, ROUND)
    take(dialogue, answer_id, ReasoningDelta("greet."))
    expected = Thinking(text="They greet.", num_tokens=6, seconds=2.5)
    assert dialogue.messages()[-1].thinking == expected, "an engine that is killed leaves it there"
    take(dialogue, answer_id, TextDelta("Hi"))
    assert not dialogue.state.is_thinking
    (ended,) = take(dialogue, answer_id, FINISHED)
    assert (ended.content, ended.thinking) == ("Hi", expected)
    dialogue.ask("And?")
    answer = Message("assistant", "Hi", reasoning_content="They greet.")
    assert engine.requests[-1].prompt.messages == (Message("user", "Hello?"), answer, Message("user", "And?"))
    answered(dialogue)
    assert dialogue.messages()[-1].thinking is None
    assert dialogue.messages()[1].thinking == expected


def test_an_answer_that_is_written_on_keeps_what_it_thought(dialogue, engine):
    dialogue.ask("Hello?")
    take(dialogue, engine.requests[-1].answer_id, ReasoningDelta("Hm."))
    answered(dialogue, "One", finish_reason="length")
    dialogue.continue_answer()
    assert engine.requests[-1].prompt.is_continued
    assert engine.requests[-1].prompt.messages[-1] == Message("assistant", "One", reasoning_content="Hm.")
    answered(dialogue, " two")
    assert dialogue.messages()[-1].content == "One two" and dialogue.messages()[-1].thinking.text == "Hm."


def test_a_prompt_is_saved_and_its_answer_is_saved_as_it_comes(dialogue, store, engine):
    assert kinds(dialogue.ask("Hello?")) == [StoredMessage, StoredMessage]
    request = engine.requests[-1]
    assert request.prompt.messages == (Message("user", "Hello?"),)
    assert request.prompt.params == SamplingParams(seed=5, temperature=0.5)
    assert request.prompt.unchosen == {"top_k"}
    assert take(dialogue, request.answer_id, TextDelta("Hi")) == (TextCame("Hi"),)
    assert [(each.content, each.state) for each in dialogue.messages()] == [("Hello?", "complete"), ("Hi", "streaming")]
    (ended,) = take(dialogue, request.answer_id, FINISHED)
    assert ended.state == "complete"
    assert ended.statistics == {
        "finish_reason": "stop",
        "num_prompt_tokens": 12,
        "num_new_tokens": 6,
        "num_guessed_tokens": None,
        "num_rounds": 2,
        "prefill_seconds": 0.8,
        "expected_prefill_seconds": None,
        "seconds_per_token": 0.2,
        "link_utilization": 0.8,
        "seed": 5,
    }
    assert store.list_conversations()[0].title == "Hello?"


def test_the_second_turn_sends_the_first_one_unchanged(dialogue, engine):
    """The engine can reuse what it has computed of a prefix only if it is the same."""
    dialogue.ask("One?")
    answered(dialogue, "1")
    dialogue.ask("Two?")
    assert [each.content for each in engine.requests[-1].prompt.messages] == ["One?", "1", "Two?"]


def waiting(dialogue):
    return [each.text for each in dialogue.waiting]


def test_prompts_wait_for_the_answer_before_and_are_sent_in_order(dialogue):
    dialogue.ask("One?")
    assert dialogue.ask("Two?") == dialogue.ask("Three?") == ()
    assert waiting(dialogue) == ["Two?", "Three?"]
    changes = answered(dialogue, "1")
    assert kinds(changes) == [TextCame, StoredMessage, StoredMessage, StoredMessage]
    assert contents(dialogue) == ["One?", "1", "Two?", ""] and waiting(dialogue) == ["Three?"]
    answered(dialogue, "2")
    assert contents(dialogue) == ["One?", "1", "Two?", "2", "Three?", ""] and not dialogue.waiting


def test_a_prompt_that_waits_is_taken_back_without_stopping_the_answer(dialogue, engine):
    dialogue.ask("One?")
    dialogue.ask("Two?")
    dialogue.ask("Three?")
    assert dialogue.take_back() == (PromptReturned("Three?"),)
    assert dialogue.take_back() == (PromptReturned("Two?"),)
    assert dialogue.is_answering and not isinstance(engine.requests[-1], StopAnswer)


def test_a_prompt_waits_for_the_model_that_is_loading(store, engine):
    dialogue = Dialogue(store, engine)
    dialogue.load({})
    assert (dialogue.ask("Early?"), waiting(dialogue)) == ((), ["Early?"])
    assert contents(dialogue) == []
    assert kinds(dialogue.take(LOADED)) == [StoredMessage, StoredMessage]


def test_stopping_keeps_what_came_and_gives_the_waiting_prompt_back(dialogue, engine):
    dialogue.ask("One?")
    dialogue.ask("Two?")
    take(dialogue, 1, TextDelta("Once "))
    assert dialogue.stop() == (PromptReturned("Two?"),)
    assert engine.requests[-1] == StopAnswer(1)
    (ended,) = take(dialogue, 1, STOPPED)
    assert (ended.content, ended.state) == ("Once ", "stopped")
    assert dialogue.stop() == ()


def test_without_a_model_a_prompt_comes_back(store, engine):
    returned, trouble = Dialogue(store, engine).ask("Hello?")
    assert returned == PromptReturned("Hello?")
    assert trouble.kind == "no model"


def test_another_answer_takes_the_place_of_the_last_and_has_another_seed(dialogue, engine, store):
    dialogue.ask("One?")
    answered(dialogue, "1")
    assert kinds(dialogue.regenerate()) == [TurnsChanged]
    assert engine.requests[-1].prompt.params.seed == 6
    assert [each.content for each in engine.requests[-1].prompt.messages] == ["One?"]
    answered(dialogue, "uno")
    assert contents(dialogue) == ["One?", "uno"]
    assert kinds(dialogue.undo()) == [TurnsChanged, str]
    assert contents(dialogue) == ["One?", "1"]


def test_the_last_prompt_can_be_changed_and_sent_again(dialogue, engine):
    dialogue.ask("One?")
    answered(dialogue, "1")
    assert dialogue.edit_last()[0] == EditBegun("One?")
    assert kinds(dialogue.ask("Won?")) == [TurnsChanged]
    assert contents(dialogue) == ["Won?", ""]
    answered(dialogue, "yes")
    dialogue.ask("Next?")
    assert contents(dialogue)[0] == "Won?"


def test_an_answer_is_interrupted_to_change_its_prompt_and_what_came_of_it_is_kept(dialogue, engine, store):
    dialogue.ask("One?")
    take(dialogue, 1, TextDelta("Once "))
    assert dialogue.edit_last()[0] == EditBegun("One?")
    assert engine.requests[-1] == StopAnswer(1)
    assert dialogue.ask("Won?") == ()  # which waits for the end of the interrupted answer
    assert kinds(take(dialogue, 1, STOPPED)) == [StoredMessage, TurnsChanged]
    assert contents(dialogue) == ["Won?", ""]
    answered(dialogue, "1")
    dialogue.undo()
    assert contents(dialogue) == ["One?", "Once "]


def test_an_answer_is_interrupted_to_write_it_anew_and_what_came_of_it_is_kept(dialogue, engine):
    dialogue.ask("One?")
    take(dialogue, 1, TextDelta("Once "))
    assert dialogue.regenerate() == dialogue.regenerate() == ()
    assert engine.requests[-1] == StopAnswer(1)
    assert kinds(take(dialogue, 1, STOPPED)) == [StoredMessage, TurnsChanged]
    answered(dialogue, "1")
    assert contents(dialogue) == ["One?", "1"]
    dialogue.undo()
    assert contents(dialogue) == ["One?", "Once "]


def test_the_answer_of_another_conversation_is_not_interrupted(dialogue, engine, store):
    dialogue.ask("One?")
    other = store.create_conversation(title="Owls")
    store.append_prompt(other.id, "Owls?")
    dialogue.open(other.id)
    with pytest.raises(BadInputError, match="an answer is being written in One"):
        dialogue.regenerate()
    assert dialogue.edit_last()[0] == EditBegun("Owls?")
    assert not isinstance(engine.requests[-1], StopAnswer)


def test_sentences_name_the_keys_that_hold(store, engine):
    keys = {"back": "F12", "send": "Ctrl+S", "list_undo": "U"}
    dialogue = Dialogue(store, engine, key=keys.__getitem__)
    dialogue.load({})
    dialogue.take(LOADED)
    dialogue.ask("One?")
    with pytest.raises(BadInputError, match="being written; press F12 to stop it first"):
        dialogue.clear()
    answered(dialogue, "1")
    assert dialogue.edit_last()[-1] == "Ctrl+S sends it, as another version; F12 leaves it as it was"
    assert dialogue.delete(dialogue.conversation_id)[-1] == "deleted: One?; /undo or U in the list brings it back"


def test_undo_reaches_every_answer_in_order_and_redo_comes_back(dialogue, store, engine):
    dialogue.ask("One?")
    for text in "ABCD":
        answered(dialogue, text)
        if text != "D":
            dialogue.regenerate()

    def shown_after(step):
        *_, word = step()
        return contents(dialogue)[-1], word

    assert shown_after(dialogue.undo) == ("C", "answer 3 of 4; /undo goes back, /redo forth")
    assert [shown_after(step)[0] for step in (dialogue.undo, dialogue.undo)] == ["B", "A"]
    assert dialogue.undo() == ("there is nothing to undo in this conversation",)
    later = Dialogue(store, engine)  # after a restart
    later.open(dialogue.conversation_id)
    assert [shown_after(step)[0] for step in (later.redo, later.redo, later.redo)] == ["B", "C", "D"]
    assert later.redo() == ("there is nothing to bring back",)
    dialogue.undo()
    dialogue.undo()
    dialogue.regenerate()  # from B
    answered(dialogue, "E")
    assert [shown_after(dialogue.undo)[0] for _ in range(4)] == ["D", "C", "B", "A"]


def test_undo_opens_no_other_conversation_than_one_that_was_deleted_just_now(dialogue, store):
    other = store.create_conversation(title="Owls")
    store.delete_conversation(other.id)
    dialogue.ask("One?")
    answered(dialogue, "1")
    assert dialogue.undo() == ("there is nothing to undo in this conversation; /deleted brings back Owls",)
    dialogue.delete(dialogue.conversation_id)
    dialogue.undo()
    assert contents(dialogue) == ["One?", "1"]


def test_an_answer_goes_on_where_it_ended(dialogue, engine):
    dialogue.ask("Tell.")
    answered(dialogue, "Once upon", finish_reason="length")
    assert kinds(dialogue.continue_answer()) == [TurnsChanged]
    request = engine.requests[-1]
    assert request.prompt.is_continued
    assert request.prompt.messages[-1] == Message("assistant", "Once upon")
    answered(dialogue, " a time.")
    assert contents(dialogue) == ["Tell.", "Once upon a time."]


def test_an_answer_without_text_is_written_anew(dialogue, engine):
    dialogue.ask("Tell.")
    take(dialogue, 1, STOPPED)
    assert kinds(dialogue.continue_answer()) == [TurnsChanged]
    assert not engine.requests[-1].prompt.is_continued


def test_nothing_can_be_written_anew_before_anything_was_asked(dialogue):
    for act in (dialogue.regenerate, dialogue.continue_answer, dialogue.trim):
        with pytest.raises(BadInputError, match="nothing was asked yet"):
            act()


def test_a_killed_engine_leaves_the_conversation_as_it_was(dialogue, engine):
    dialogue.ask("One?")
    take(dialogue, 1, TextDelta("Half"))
    ended, trouble = dialogue.take(EngineDied("the engine was killed"))
    assert (ended.content, ended.state) == ("Half", "failed")
    assert trouble == Trouble("dead", "the engine was killed")
    assert dialogue.ask("Two?") == (PromptReturned("Two?"), trouble)
    dialogue.load({})
    dialogue.take(LOADED)
    dialogue.ask("Two?")
    assert contents(dialogue) == ["One?", "Half", "Two?", ""]


def test_a_prompt_that_does_not_fit_is_offered_a_trim(dialogue, engine):
    dialogue.ask("One " * 50)
    answered(dialogue, "1 " * 50)
    dialogue.ask("Two?")
    answer_id = dialogue.answer.answer_id
    ended, trouble = take(dialogue, answer_id, Failed("9000 tokens do not fit 4096", "context"))
    assert (ended.state, trouble.kind) == ("failed", "context")
    assert kinds(dialogue.trim()) == [TurnsChanged, str]
    assert [each.content for each in engine.requests[-1].prompt.messages] == ["Two?"]
    assert [each.is_left_out for each in dialogue.messages()] == [True, True, False, False]
    answered(dialogue, "2")
    assert contents(dialogue) == ["One " * 50, "1 " * 50, "Two?", "2"]


def test_an_answer_that_filled_the_context_goes_on_after_a_trim(dialogue, engine):
    dialogue.ask("One " * 50)
    answered(dialogue, "1")
    dialogue.ask("Two?")
    *_, trouble = answered(dialogue, "2 and", finish_reason="context")
    assert trouble.kind == "context"
    assert kinds(dialogue.trim()) == [TurnsChanged, str]
    assert engine.requests[-1].prompt.is_continued


def test_what_is_left_out_stays_so_until_all_is_wanted_again(dialogue, store, engine):
    for prompt in ("One " * 50, "Two?"):
        dialogue.ask(prompt)
        answered(dialogue, "1")
    assert kinds(dialogue.trim()) == [TurnsChanged, str]
    later = Dialogue(store, engine)
    later.open(dialogue.conversation_id)
    assert [each.is_left_out for each in later.messages()] == [True, True, False, False]
    assert kinds(later.read_all()) == [TurnsChanged]
    assert not any(each.is_left_out for each in dialogue.messages())
    with pytest.raises(BadInputError, match="no turn of this conversation is left out"):
        later.read_all()


def full(**changes):
    values = {
        "num_tokens": 9000,
        "context_tokens": 4096,
        "largest_context_tokens": 8192,
        "wanted_context_tokens": 16384,
        "num_left_out": 0,
        "fits_alone": True,
    }
    return ContextFull(**(values | changes))


def test_as_many_turns_are_left_out_in_one_step_as_the_engine_counted(dialogue, engine):
    for number in range(5):
        dialogue.ask(f"prompt {number}")
        answered(dialogue, f"answer {number}")
    dialogue.ask("last")
    answer_id = dialogue.answer.answer_id
    assert take(dialogue, answer_id, full(num_left_out=6)) == ()
    *_, trouble = take(dialogue, answer_id, Failed("9000 tokens", "context"))
    assert trouble.full == full(num_left_out=6)
    changes = dialogue.trim()
    assert changes[-1] == "6 turns are left out of what the model reads; /untrim brings them back"
    assert [each.content for each in engine.requests[-1].prompt.messages] == [
        *("prompt 3", "answer 3", "prompt 4", "answer 4"),
        "last",
    ]


def test_a_prompt_that_is_too_long_does_not_spoil_the_later_ones(dialogue, engine):
    dialogue.ask("One?")
    answered(dialogue, "1")
    dialogue.ask("long " * 999)
    take(dialogue, dialogue.answer.answer_id, Failed("too long", "context"))
    dialogue.ask("Two?")
    assert [each.content for each in engine.requests[-1].prompt.messages] == ["One?", "1", "Two?"]
    answered(dialogue, "2")
    dialogue.ask("Three?")
    assert [each.content for each in engine.requests[-1].prompt.messages] == ["One?", "1", "Two?", "2", "Three?"]


def test_a_prompt_that_is_too_long_comes_back_to_be_changed_or_is_asked_anew(dialogue, engine):
    dialogue.ask("One?")
    answered(dialogue, "1")
    dialogue.ask("long")
    take(dialogue, dialogue.answer.answer_id, Failed("too long", "context"))
    assert dialogue.edit_last()[0] == EditBegun("long")
    dialogue.editing_id = None
    before = dialogue.conversation_id
    assert kinds(dialogue.ask_anew()) == [ConversationLeft, TurnsChanged, StoredMessage, StoredMessage]
    assert [each.content for each in engine.requests[-1].prompt.messages] == ["long"]
    assert dialogue.conversation_id != before


def test_what_had_no_room_is_asked_again_once_there_is_a_larger_context(dialogue, engine):
    dialogue.ask("One?")
    take(dialogue, dialogue.answer.answer_id, Failed("too long", "context"))
    dialogue.load(EngineConfig(context_tokens=8192))
    dialogue.try_again_after_load()
    assert kinds(dialogue.take(LOADED)) == [TurnsChanged]
    assert [each.content for each in engine.requests[-1].prompt.messages] == ["One?"]


def test_one_turn_alone_cannot_be_trimmed(dialogue):
    dialogue.ask("One?")
    answered(dialogue, "1")
    with pytest.raises(BadInputError, match="nothing before the last prompt can be left out"):
        dialogue.trim()


def test_what_turns_out_while_the_session_answers_is_said(dialogue):
    dialogue.ask("One?")
    answered(dialogue, "1")
    assert dialogue.take(SessionNote(("this is slow", "and that"))) == ("this is slow; and that",)


@pytest.mark.parametrize(("kind", "shown"), [("memory", "memory"), ("fault", "fault"), ("input", "input")])
def test_a_failure_is_told_with_its_kind(dialogue, kind, shown):
    dialogue.ask("One?")
    ended, trouble = take(dialogue, 1, Failed("it did not work", kind))
    assert trouble == Trouble(shown, "it did not work")
    assert ended.statistics["error"] == "it did not work"
    assert kinds(dialogue.ask("Two?")) == [StoredMessage, StoredMessage]


def test_a_load_that_fails_gives_the_waiting_prompt_back(store, engine):
    dialogue = Dialogue(store, engine)
    dialogue.load({})
    dialogue.ask("Early?")
    assert kinds(dialogue.take(Failed("no such folder", "input"))) == [PromptReturned, Trouble]


def test_an_answer_goes_on_while_another_conversation_is_open(dialogue, store):
    dialogue.ask("One?")
    first = dialogue.conversation_id
    dialogue.open(None)
    assert take(dialogue, 1, TextDelta("1")) == ()
    assert dialogue.messages() == []
    (ended,) = take(dialogue, 1, FINISHED)
    assert ended.conversation_id == first
    assert store.messages(first)[-1].content == "1"


def test_reports_of_an_answer_that_is_over_are_ignored(dialogue):
    dialogue.ask("One?")
    answered(dialogue, "1")
    assert take(dialogue, 1, TextDelta("late")) == ()
    assert take(dialogue, 1, FINISHED) == ()
    dialogue.ask("Two?")
    assert take(dialogue, 1, TextDelta("very late")) == take(dialogue, 1, FINISHED) == ()
    answered(dialogue, "2")
    assert contents(dialogue) == ["One?", "1", "Two?", "2"]


def test_a_system_prompt_comes_first_and_is_kept_with_the_conversation(store, engine):
    dialogue = Dialogue(store, engine, new_system_prompt=lambda: "Be kind.")
    dialogue.load({})
    dialogue.take(LOADED)
    assert dialogue.system_prompt() == "Be kind."
    dialogue.set_system_prompt("Be brief.")
    dialogue.ask("One?")
    assert engine.requests[-1].prompt.messages[0] == Message("system", "Be brief.")
    dialogue.set_system_prompt("")
    assert store.conversation(dialogue.conversation_id).system_prompt == ""
    dialogue.open(None)
    assert dialogue.system_prompt() == "Be kind."


def test_a_store_that_fails_is_told_and_the_prompt_comes_back(dialogue, store):
    store.close()
    changes = dialogue.ask("One?")
    assert kinds(changes) == [PromptReturned, Trouble]
    assert changes[-1].kind == "store"


def test_a_load_is_asked_for_with_the_given_fields(dialogue, engine):
    assert engine.requests[0] == LoadModel(EngineConfig(target="tiny"))
    dialogue.ask("One?")
    assert isinstance(engine.requests[-1], Answer)
    assert dialogue.is_answering


def test_a_deleted_conversation_stops_its_answer_and_comes_back(dialogue, engine, store):
    dialogue.ask("About foxes")
    foxes = dialogue.conversation_id
    changes = dialogue.delete(foxes)
    assert kinds(changes) == [ConversationLeft, TurnsChanged, str]
    assert "deleted: About foxes" in changes[-1]
    assert engine.requests[-1] == StopAnswer(1) and dialogue.conversation_id is None
    with pytest.raises(BadInputError):  # it is still being stopped
        dialogue.undo()
    take(dialogue, 1, STOPPED)
    assert dialogue.undo()[1:] == (TurnsChanged(), "About foxes is back")
    assert dialogue.conversation_id == foxes
    dialogue.open(None)
    assert dialogue.undo() == ("no conversation is deleted",)


def test_another_conversation_than_the_open_one_is_deleted(dialogue, store):
    dialogue.ask("About foxes")
    answered(dialogue, "1")
    other = store.create_conversation(title="Owls")
    assert kinds(dialogue.delete(other.id)) == [str]
    assert contents(dialogue) == ["About foxes", "1"]


def test_turns_that_were_cleared_come_back_one_step_at_a_time(dialogue):
    assert dialogue.clear() == ("there is nothing to clear",)
    dialogue.ask("One?")
    with pytest.raises(BadInputError):
        dialogue.clear()
    answered(dialogue, "1")
    dialogue.regenerate()
    answered(dialogue, "uno")
    assert kinds(dialogue.clear()) == [TurnsChanged, str]
    assert contents(dialogue) == []
    dialogue.undo()
    assert contents(dialogue) == ["One?", "uno"]
    dialogue.undo()
    assert contents(dialogue) == ["One?", "1"]
