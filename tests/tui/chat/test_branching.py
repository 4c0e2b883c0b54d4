"""Branches as a person uses them: what is changed, gone to and written on, in the dialogue and key by key."""

import pytest

from profiles.errors import BadInputError
from runtime.events import TextDelta
from tests.support.chat_fakes import FINISHED
from tests.support.dialogues import answered, contents, exchange, kinds, take
from tui.chat.changes import EditBegun, PromptReturned, Trouble, TurnsChanged
from tui.chat.engine.client import EngineDied
from tui.chat.engine.messages import StopAnswer


def test_any_prompt_can_be_changed_which_begins_a_branch(dialogue, engine):
    first, _, second, _ = exchange(dialogue, "One?", "1", "Two?", "2")
    assert dialogue.edit(first)[0] == EditBegun("One?")
    dialogue.ask("Won?")
    assert [each.content for each in engine.requests[-1].prompt.messages] == ["Won?"]
    answered(dialogue, "yes")
    assert contents(dialogue) == ["Won?", "yes"]
    assert dialogue.versions() == {dialogue.messages()[0].id: (first, dialogue.messages()[0].id)}
    assert dialogue.show_version(dialogue.messages()[0].id, step=-1) == (TurnsChanged(first),)
    assert contents(dialogue) == ["One?", "1", "Two?", "2"]
    dialogue.edit(second)
    exchange(dialogue, "Too?", "2!")
    assert contents(dialogue) == ["One?", "1", "Too?", "2!"]
    assert dialogue.show_version(first, step=-1) == ("this is the first version",)
    dialogue.show_version(first, step=1)
    assert dialogue.show_version(dialogue.messages()[0].id, step=1) == ("this is the last version",)
    dialogue.show_version(dialogue.messages()[0].id, step=-1)
    assert contents(dialogue) == ["One?", "1", "Too?", "2!"]  # as it was left


def test_an_answer_that_is_put_otherwise_is_another_version_from_which_the_model_can_write_on(dialogue, engine):
    _, answer_id, *_ = exchange(dialogue, "Tell.", "Once upon a time", "More.", "No.")
    num_requests = len(engine.requests)
    changes = dialogue.edit(answer_id)
    assert changes == (EditBegun("Once upon a time"), "Enter keeps it, as another version; Esc leaves it as it was")
    *changes, word = dialogue.ask("Once upon a fox")
    assert changes == [TurnsChanged(dialogue.messages()[-1].id)] and "Ctrl+G lets the model write on" in word
    assert len(engine.requests) == num_requests and not dialogue.is_answering
    kept = dialogue.messages()[-1]
    assert (kept.content, kept.state, kept.model) == ("Once upon a fox", "complete", "tiny")
    assert contents(dialogue) == ["Tell.", "Once upon a fox"]
    dialogue.continue_answer()
    request = engine.requests[-1]
    assert request.prompt.is_continued
    assert [each.content for each in request.prompt.messages] == ["Tell.", "Once upon a fox"]
    answered(dialogue, " there was.")
    assert contents(dialogue) == ["Tell.", "Once upon a fox there was."]
    dialogue.undo()
    assert contents(dialogue) == ["Tell.", "Once upon a time", "More.", "No."]


def test_an_answer_that_is_still_written_is_edited_once_its_last_words_have_come(dialogue, engine):
    """What was put in the prompt at once lacked what came before the answer had ended."""
    dialogue.ask("Tell.")
    asked_id = dialogue.answer.answer_id
    take(dialogue, asked_id, TextDelta("Once upon"))
    answer_id = dialogue.messages()[-1].id
    assert dialogue.edit(answer_id) == () and isinstance(engine.requests[-1], StopAnswer)
    take(dialogue, asked_id, TextDelta(" a time"))
    assert EditBegun("Once upon a time") in take(dialogue, asked_id, FINISHED)
    assert dialogue.editing_id == answer_id and contents(dialogue)[-1] == "Once upon a time"


def test_an_edited_answer_is_counted_as_the_answer_that_it_is(dialogue, engine):
    _, answer_id, *_ = exchange(dialogue, "Tell.", "Once", "More.", "No.")
    dialogue.edit(answer_id)
    counted = dialogue.request_with("Once upon a fox")
    assert [(each.role, each.content) for each in counted.messages] == [
        ("user", "Tell."),
        ("assistant", "Once upon a fox"),
    ]
    assert counted.is_continued
    dialogue.editing_id = None
    counted = dialogue.request_with("And?")
    assert counted.messages[-1].role == "user" and not counted.is_continued
    assert not dialogue.request_with("").is_continued


def test_an_answer_can_be_put_otherwise_while_no_model_is_open_or_another_answer_is_written(dialogue, engine):
    _, answer_id, *_ = exchange(dialogue, "One?", "1", "Two?", "2")
    dialogue.ask("Three?")
    dialogue.ask("Four?")
    dialogue.edit(answer_id)
    assert dialogue.ask("uno")[0] == PromptReturned("Four?")
    assert contents(dialogue) == ["One?", "uno"] and dialogue.is_answering
    answered(dialogue, "3")
    dialogue.take(EngineDied("the engine was killed"))
    dialogue.edit(answer_id := dialogue.messages()[-1].id)
    assert dialogue.ask("une")[:1] == (TurnsChanged(dialogue.messages()[-1].id),)
    assert contents(dialogue) == ["One?", "une"]
    assert dialogue.versions()[dialogue.messages()[-1].id][-2] == answer_id


def test_an_answer_that_is_left_as_it_is_gets_no_version(dialogue):
    _, answer_id = exchange(dialogue, "One?", "1")
    dialogue.edit(answer_id)
    assert dialogue.ask("1") == ("the answer stays as it was",)
    assert dialogue.editing_id is None and dialogue.versions() == {}


def test_a_change_that_cannot_be_kept_comes_back(dialogue, store):
    _, answer_id = exchange(dialogue, "One?", "1")
    dialogue.edit(answer_id)
    store.delete_conversation(dialogue.conversation_id)
    returned, trouble = dialogue.ask("uno")
    assert (returned, trouble.kind, dialogue.editing_id) == (PromptReturned("uno"), "store", answer_id)


def test_a_change_comes_back_from_a_store_that_fails(dialogue, store):
    _, answer_id = exchange(dialogue, "One?", "1")
    dialogue.edit(answer_id)
    store.close()
    assert kinds(dialogue.ask("uno")) == [PromptReturned, Trouble]
    assert dialogue.editing_id == answer_id


def test_any_answer_can_be_written_anew_also_by_its_prompt(dialogue, engine):
    first, answer_id, *_ = exchange(dialogue, "One?", "1", "Two?", "2")
    for message_id in (answer_id, first):
        assert kinds(dialogue.regenerate(message_id)) == [TurnsChanged]
        answered(dialogue, "uno")
        assert contents(dialogue) == ["One?", "uno"]
    assert engine.requests[-1].prompt.params.seed == 7
    with pytest.raises(BadInputError, match="not shown any more"):
        dialogue.regenerate(answer_id)


def test_no_answer_is_interrupted_for_one_that_is_not_shown(dialogue, engine):
    exchange(dialogue, "One?", "1")
    dialogue.ask("Two?")
    with pytest.raises(BadInputError, match="not shown any more"):
        dialogue.regenerate(99)
    assert not isinstance(engine.requests[-1], StopAnswer)


def test_a_message_that_is_not_shown_is_not_changed(dialogue, store):
    first, *_ = exchange(dialogue, "One?", "1")
    other = store.append_prompt(store.create_conversation().id, "elsewhere")
    dialogue.edit(first)
    exchange(dialogue, "Won?", "1")
    for message_id in (first, other.id, 99):
        with pytest.raises(BadInputError, match="not shown any more"):
            dialogue.edit(message_id)


def test_what_is_changed_goes_to_its_own_branch_whichever_is_shown(dialogue):
    """The change was begun on one branch and sent from another, or sent after a restart."""
    first, _, second, _ = exchange(dialogue, "One?", "1", "Two?", "2")
    dialogue.edit(first)
    exchange(dialogue, "Won?", "yes")
    dialogue.show_branch(second)
    dialogue.edit(second)
    dialogue.show_version(first, step=1)
    exchange(dialogue, "Too?", "2!")
    assert contents(dialogue) == ["One?", "1", "Too?", "2!"]


def test_an_answer_goes_on_on_its_branch_while_another_one_is_shown(dialogue, engine):
    first, *_ = exchange(dialogue, "One?", "1")
    dialogue.edit(first)
    dialogue.ask("Won?")
    answer_id = dialogue.answer.answer_id
    assert dialogue.ask("And?") == ()
    changed = dialogue.messages()[0].id
    assert dialogue.show_version(changed, step=-1) == (PromptReturned("And?"), TurnsChanged(first))
    take(dialogue, answer_id, TextDelta("yes"))
    with pytest.raises(BadInputError, match="written on another branch; press Esc"):
        dialogue.regenerate()
    assert not isinstance(engine.requests[-1], StopAnswer)
    take(dialogue, answer_id, FINISHED)
    assert contents(dialogue) == ["One?", "1"]
    dialogue.show_branch(changed)
    assert contents(dialogue) == ["Won?", "yes"]


def test_a_prompt_after_a_cleared_conversation_shows_that_there_is_another_version(dialogue):
    exchange(dialogue, "One?", "1")
    dialogue.clear()
    assert kinds(dialogue.ask("Two?")) == [TurnsChanged]
    assert len(dialogue.versions()) == 1


def test_what_was_searched_for_is_shown_on_its_branch(dialogue, store):
    first, *_ = exchange(dialogue, "One?", "needle")
    dialogue.edit(first)
    exchange(dialogue, "Won?", "hay")
    conversation_id = dialogue.conversation_id
    dialogue.open(None)
    (hit,) = store.search("needle")
    assert dialogue.open(hit.conversation_id, message_id=hit.message_id)[-1] == TurnsChanged(hit.message_id)
    assert (dialogue.conversation_id, contents(dialogue)) == (conversation_id, ["One?", "needle"])
