"""Back and forth between answers, whatever was dropped where: nothing is out of reach."""

import random

import pytest

from tui.chat.store.alternatives import Place
from tui.chat.store.store import ConversationStore


@pytest.fixture
def store():
    with ConversationStore(None) as opened:
        yield opened


def contents(store, conversation):
    return [each.content for each in store.messages(conversation.id)]


def answer(store, conversation, text):
    message = store.begin_answer(conversation.id, model="m")
    store.append_text(message.id, text)
    return store.finish_answer(message.id)


def test_every_answer_is_reached_in_the_order_in_which_they_were_begun(store):
    conversation = store.create_conversation()
    store.append_prompt(conversation.id, "question")
    for text in "ABCD":
        message = answer(store, conversation, text)
        if text != "D":
            store.drop_messages_from(message.id)
    places = [store.step_back(conversation.id) for _ in range(4)]
    assert places == [Place(3, 4, True), Place(2, 4, True), Place(1, 4, True), None]
    assert contents(store, conversation) == ["question", "A"]
    assert [store.step_forth(conversation.id) is not None for _ in range(4)] == [True, True, True, False]
    assert contents(store, conversation) == ["question", "D"]


def test_what_was_cleared_last_comes_back_first_whichever_is_older(store):
    conversation = store.create_conversation()
    first = store.append_prompt(conversation.id, "older")
    store.drop_messages_from(first.id)
    second = store.append_prompt(conversation.id, "newer")
    store.step_back(conversation.id)
    store.drop_messages_from(first.id)
    assert contents(store, conversation) == []
    store.step_back(conversation.id)
    assert contents(store, conversation) == ["older"]
    store.step_forth(conversation.id)
    assert contents(store, conversation) == [second.content]


def test_no_message_is_ever_out_of_reach(store):
    """Whatever was asked, written anew, edited and undone: going back to the end and forth shows every message."""
    for seed in range(20):
        choose = random.Random(seed)
        conversation = store.create_conversation()
        written = set()
        for number in range(12):
            shown = store.messages(conversation.id)
            act = choose.choice(("ask", "again", "edit", "back", "back", "forth"))
            if act == "back":
                store.step_back(conversation.id)
                continue
            if act == "forth":
                store.step_forth(conversation.id)
                continue
            wanted = "assistant" if act == "again" else "user"
            if act != "ask" and (same := [each.id for each in shown if each.role == wanted]):
                store.drop_messages_from(same[-1])
            if act != "again" or not shown:
                store.append_prompt(conversation.id, f"prompt {number}")
                written.add(f"prompt {number}")
            answer(store, conversation, f"answer {number}")
            written.add(f"answer {number}")
        seen = set()
        for step in (store.step_back, store.step_forth):
            for _ in range(200):
                seen.update(contents(store, conversation))
                if step(conversation.id) is None:
                    break
        assert seen == written, seed
