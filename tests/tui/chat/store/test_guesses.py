"""Where each character of an answer comes from: added piece by piece, kept in its statistics, never lost or moved."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, strategies

from tui.chat.store.guesses import Guesses, guesses_of

marks = strategies.lists(strategies.booleans(), max_size=8)
SIGNS = {"guessed": "g", "chosen": "c", "unknown": "?"}


def stretches(marks):
    """Those of the characters that are marked, as the engine tells them."""
    found = []
    for place, is_guessed in enumerate(marks):
        if is_guessed and found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        elif is_guessed:
            found.append((place, place + 1))
    return tuple(found)


def origins(guesses, text):
    return "".join(SIGNS[origin] * len(piece) for piece, origin in guesses.pieces(text))


@given(strategies.integers(0, 3), strategies.lists(marks, max_size=6), strategies.integers(0, 3))
def test_each_character_keeps_its_origin_however_it_came(start, rounds, num_more):
    guesses = Guesses(start=start)
    for each in rounds:
        guesses = guesses.with_text(len(each), stretches(each))
    expected = "?" * start + "".join("g" if mark else "c" for each in rounds for mark in each)
    assert guesses.end == len(expected)
    text = "abcdefghij"[:1] * (guesses.end + num_more)
    assert origins(guesses, text) == expected + "?" * num_more
    assert guesses_of(json.loads(json.dumps({"guesses": guesses.to_record()}))) == guesses
    for length in range(len(text)):  # what is drawn so far is a beginning of it
        assert origins(guesses, text[:length]) == (expected + "?" * num_more)[:length]


@given(
    strategies.text(strategies.sampled_from("\r\na"), max_size=12),
    strategies.integers(0, 3),
    strategies.lists(strategies.integers(0, 4), max_size=6),
)
def test_pieces_join_to_the_text_and_cut_no_line_end(text, start, lengths):
    pieces = [piece for piece, _ in Guesses(start=start, lengths=tuple(lengths)).pieces(text)]
    assert "".join(pieces) == text and all(pieces)
    assert not any(one.endswith("\r") and other.startswith("\n") for one, other in pairwise(pieces))


def test_a_thousand_words_take_two_numbers_a_round():
    guesses = Guesses()
    for _ in range(250):
        guesses = guesses.with_text(20, ((0, 15),))
    assert len(json.dumps(guesses.to_record())) < 2500


@pytest.mark.parametrize(
    "kept",
    [None, 5, "a", {"start": -1}, {"lengths": [1, -2]}, {"lengths": "ab"}, {"start": 1.5}, [], {"lengths": None}],
)
def test_what_a_file_says_wrongly_is_as_if_it_said_nothing(kept):
    assert guesses_of({"guesses": kept}) is None
    assert guesses_of({}) is None
