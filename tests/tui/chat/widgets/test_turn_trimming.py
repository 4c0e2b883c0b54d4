"""Trimming leaves out the oldest turns, at a prompt, until at most half is left."""

from tests.support.conversation_factory import message
from tui.chat.widgets.turn_trimming import first_kept_after_trim


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
