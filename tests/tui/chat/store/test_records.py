"""What a model is shown of a conversation, and what a conversation is called."""

from dataclasses import asdict

import pytest
from hypothesis import given, strategies

from runtime.prompts.prompt_file import Message, ToolCall
from runtime.tokenizer.formatting import encode_conversation
from tests.support.calling_models import ALTERNATING, calling_tokenizer
from tests.support.conversation_factory import message
from tui.attachments import Attachment, pasted, with_attachments
from tui.chat.store.records import (
    MAX_TITLE_LENGTH,
    Thinking,
    chat_turns,
    first_kept_after_trim,
    raw_text,
    storable,
    title_of_prompt,
    turns_with_ids,
)

NOTES = Attachment("Foxes sleep.", "notes.txt")


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("What is a ring?", "What is a ring?"),
        ("\n \n  What\tis\n a ring?", "What is"),
        ("", ""),
        (" \n\t", ""),
        ("x" * MAX_TITLE_LENGTH, "x" * MAX_TITLE_LENGTH),
        ("x" * (MAX_TITLE_LENGTH + 1), "x" * (MAX_TITLE_LENGTH - 1) + "…"),
        ("word " * 40, "word " * 11 + "word…"),
        ("averylongword " * 5, "averylongword averylongword averylongword averylongword…"),
        ("Hi there,\n\n## 1. What is a **ring**?", "What is a ring?"),
        ("Hello", "Hello"),
        ("Explain how rings work. " * 4, "Explain how rings work"),
        ("Is it so? Then say it again, " * 3, "Is it so?"),
        ("```python\nx = 1\n```\nWhy does this fail?", "Why does this fail?"),
        ("```\nx = 1\n```", "x = 1"),
        ("- `_name_` is what?", "name is what?"),
        ("???", "???"),
        (with_attachments("Who sleeps?", [NOTES]), "Who sleeps?"),
        (with_attachments("", [NOTES, pasted("x")]), "notes.txt"),
        (pasted("x").block, "pasted text, 1 line"),
    ],
)
def test_a_title_is_the_first_line_that_says_something(prompt, title):
    assert title_of_prompt(prompt) == title and len(title) <= MAX_TITLE_LENGTH


def test_a_model_is_shown_every_turn_in_order():
    messages = [message(content="a"), message("assistant", "b", state="stopped"), message(content="c")]
    assert chat_turns("Be brief.", messages) == (
        Message("system", "Be brief."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
    )
    assert chat_turns(" \n", []) == ()


def test_what_was_thought_goes_along_for_the_template_to_leave_out():
    thought = Thinking(text="Hm.", num_tokens=3, seconds=1.5)
    messages = [
        message(content="a"),
        message("assistant", "b", statistics={"thinking": thought.to_record()}),
        message("assistant", "c", statistics={"thinking": Thinking(text="So.").to_record()}),
        message("assistant", "", statistics={"thinking": thought.to_record()}),
        message(content="d"),
    ]
    assert messages[1].thinking == thought
    assert chat_turns("", messages)[1] == Message("assistant", "b\n\nc", reasoning_content="Hm.\n\nSo.")


@pytest.mark.parametrize("found", [None, "text", {"text": 1}, {"text": "a", "num_tokens": -1}, {}])
def test_what_somebody_wrote_into_a_file_is_no_thinking(found):
    assert message("assistant", statistics={"thinking": found}).thinking is None


def test_roles_alternate_even_after_answers_without_text():
    """An answer that was stopped, or failed, before its first token; many templates refuse two turns of one role."""
    messages = [
        message(content="a"),
        message("assistant", "", state="stopped"),
        message(content="b"),
        message("assistant", "", state="failed"),
    ]
    assert chat_turns("", messages) == (Message("user", "a\n\nb"),)
    answers = [message("assistant", "c"), message("assistant", "d")]
    assert chat_turns("", answers) == (Message("assistant", "c\n\nd"),)


CALL = ToolCall("1", "files__read", '{"path": "a"}')


def called(content="", *, call=CALL, **fields):
    return message("assistant", content, statistics={"call": asdict(call)}, **fields)


def said(content, *, call=CALL, **fields):
    return message("tool", content, statistics={"call": asdict(call)}, **fields)


def test_a_call_and_what_the_tool_said_are_turns_of_their_own():
    messages = [message(content="a", id=1), called(id=2), said("one", id=3), called("so", id=4), said("", id=5)]
    messages += [message("assistant", "done", id=6)]
    assert chat_turns("", messages, knows_tools=True) == (
        Message("user", "a"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "one", tool_call_id="1", name="files__read"),
        Message("assistant", "so", tool_calls=(CALL,)),
        Message("tool", "", tool_call_id="1", name="files__read"),
        Message("assistant", "done"),
    )
    assert [each for each, _ in turns_with_ids(messages, knows_tools=True)] == [1, 2, 3, 4, 5, 6]


def test_a_model_without_tools_reads_calls_and_results_as_words():
    messages = [message(content="a", id=1), called("b", id=2), said("one", id=3), message(content="c", id=4)]
    called_words = 'b\n\n[called files__read with {"path": "a"}]'
    assert chat_turns("", messages) == (
        Message("user", "a"),
        Message("assistant", called_words),
        Message("user", "[what files__read said]\none\n\nc"),
    )
    assert [each for each, _ in turns_with_ids(messages)] == [1, 2, 3]


def test_a_call_without_a_result_and_a_result_without_its_call_are_no_turns_of_a_tool():
    """Templates refuse them; the call was never run, and the turns before the result may be left out."""
    other = ToolCall("2", "else", "{}")
    assert chat_turns("", [message(content="a"), called(), message(content="b")], knows_tools=True) == (
        Message("user", "a\n\nb"),
    )
    (turn,) = chat_turns("", [said("one"), said("two", call=other)], knows_tools=True)
    assert turn == Message("user", "[what files__read said]\none\n\n[what else said]\ntwo")


@given(
    strategies.lists(strategies.sampled_from(["asks", "says", "says nothing", "calls", "calls and says"]), max_size=9)
)
def test_any_history_of_calls_keeps_to_mistrals_rules(happened):
    """Whatever was stopped or refused, and wherever the person went on: calls aside, user and assistant alternate."""
    messages = [message(content="a")]
    for each in happened:
        if each == "asks":
            messages.append(message(content="a"))
        elif each.startswith("says"):
            messages.append(message("assistant", "b" if each == "says" else "", state="stopped"))
        else:
            messages += [called("c" if each == "calls and says" else ""), said("The person did not allow this call.")]
    messages.append(message(content="d"))
    tokenizer = calling_tokenizer()
    tokenizer.chat_template = ALTERNATING
    turns = chat_turns("", messages, knows_tools=True)
    assert tokenizer.decode(encode_conversation(tokenizer, turns, is_continued=False)).endswith("d>")


@pytest.mark.parametrize("found", [None, 1, {}, {"id": "1", "name": "a"}, {"id": "1", "name": "a", "arguments": "["}])
def test_what_somebody_wrote_into_a_file_is_no_call(found):
    assert message("assistant", statistics={"call": found}).call is None
    assert message("tool", statistics={"call": found, "outcome": found}).outcome == "done"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ü 日本 😀\n\x1b", "plain ü 日本 😀\n\x1b"),
        ("half \ud83d, other half \ude00", "half \ufffd, other half \ufffd"),
        ("whole \ud83d\ude00", "whole 😀"),
        ("a\0b", "a\ufffdb"),
    ],
)
def test_what_utf_8_cannot_hold_is_replaced(text, expected):
    assert storable(text) == expected
    assert storable(text).encode().decode() == expected


def prompt(message_id, content):
    return message(id=message_id, content=content)


def answer(message_id, content):
    return message("assistant", content, id=message_id)


def test_half_of_the_characters_or_less_are_left():
    messages = [prompt(1, "a" * 40), answer(2, "b" * 40), prompt(3, "c" * 20), answer(4, "d" * 20), prompt(5, "e" * 20)]
    assert first_kept_after_trim(messages) == 3


def test_what_is_kept_begins_with_a_prompt():
    messages = [prompt(1, "a"), answer(2, "b" * 100), answer(3, "c"), prompt(4, "d")]
    assert first_kept_after_trim(messages) == 4


def test_the_last_prompt_stays_however_long_it_is():
    messages = [prompt(1, "a"), answer(2, "b"), prompt(3, "c" * 100)]
    assert first_kept_after_trim(messages) == 3


def test_one_prompt_cannot_be_left_out():
    assert first_kept_after_trim([prompt(1, "a" * 100), answer(2, "b")]) is None
    assert first_kept_after_trim([]) is None


def test_a_raw_text_is_what_was_said_in_order():
    """Answers follow their prompts at once, prompts begin a line."""
    said = [
        ("user", "Once upon"),
        ("assistant", " a time"),
        ("user", "the fox"),
        ("assistant", " slept.\n"),
        ("user", "It"),
    ]
    assert raw_text([Message(*each) for each in said]) == "Once upon a time\nthe fox slept.\nIt"
    assert raw_text(()) == ""
