"""Branches as a person uses them: what is changed, gone to and written on, in the dialogue and key by key."""

import pytest

from profiles.errors import BadInputError
from runtime.events import TextDelta
from tests.support.chat_fakes import FINISHED
from tests.support.dialogues import answered, contents, exchange, kinds, take
from tui.chat.changes import EditBegun, PromptReturned, TurnsChanged
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


def test_an_answer_can_be_changed_and_the_model_writes_on_from_it(dialogue, engine):
    _, answer_id, *_ = exchange(dialogue, "Tell.", "Once upon a time", "More.", "No.")
    changes = dialogue.edit(answer_id)
    assert changes == (EditBegun("Once upon a time"), changes[1]) and "lets the model write on" in changes[1]
    assert dialogue.ask("Once upon a fox") == (TurnsChanged(),)
    request = engine.requests[-1]
    assert request.prompt.is_continued
    assert [each.content for each in request.prompt.messages] == ["Tell.", "Once upon a fox"]
    answered(dialogue, " there was.")
    assert contents(dialogue) == ["Tell.", "Once upon a fox there was."]
    dialogue.undo()
    assert contents(dialogue) == ["Tell.", "Once upon a time", "More.", "No."]


def test_any_answer_can_be_written_anew(dialogue, engine):
    _, answer_id, *_ = exchange(dialogue, "One?", "1", "Two?", "2")
    assert kinds(dialogue.regenerate(answer_id)) == [TurnsChanged]
    assert engine.requests[-1].prompt.params.seed == 6
    answered(dialogue, "uno")
    assert contents(dialogue) == ["One?", "uno"]


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
