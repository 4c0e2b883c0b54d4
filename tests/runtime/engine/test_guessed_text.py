"""Each character of an answer is told as guessed or not, by the token that completes it, however the text is cut."""

from itertools import pairwise
from types import SimpleNamespace

from hypothesis import given, strategies

from runtime.engine.guessed_text import GuessedText

rounds = strategies.lists(
    strategies.tuples(strategies.lists(strategies.integers(0, 3), min_size=1, max_size=4), strategies.integers(0, 4)),
    max_size=6,
)
"""Of each token how many characters it completes, and how many of a round's tokens were accepted."""


def guessed_characters(text: GuessedText, start: int, end: int) -> list[bool]:
    inside = {place for begin, stop in text.spans(start, end) for place in range(begin, stop)}
    return [place in inside for place in range(end - start)]


@given(rounds, strategies.lists(strategies.integers(0, 60), max_size=5))
def test_each_character_is_its_last_tokens(rounds, cuts):
    boxed = SimpleNamespace(token_ends=[])
    text = GuessedText(boxed)
    expected: list[bool] = []
    for lengths, num_accepted in rounds:
        text.add(len(lengths), num_new=len(lengths), num_accepted=num_accepted)
        for index, length in enumerate(lengths):
            expected += [index < num_accepted] * length
            boxed.token_ends.append(len(expected))
    places = sorted({0, len(expected), *(cut for cut in cuts if cut < len(expected))})
    found = [each for start, end in pairwise(places) for each in guessed_characters(text, start, end)]
    assert found == expected
    spans = text.spans(0, len(expected))
    assert all(one[1] < other[0] for one, other in pairwise(spans)), "stretches are joined"


def test_what_follows_the_last_token_is_its_own():
    """The rest of a character that never became whole is shown at the answer's end."""
    text = GuessedText(SimpleNamespace(token_ends=[2, 2]))
    text.add(2, num_new=2, num_accepted=1)
    assert text.spans(0, 3) == ((0, 2),)
    text = GuessedText(SimpleNamespace(token_ends=[2, 2]))
    text.add(2, num_new=2, num_accepted=2)
    assert text.spans(0, 3) == ((0, 3),)


def test_an_end_token_counts_where_it_was_guessed():
    text = GuessedText(SimpleNamespace(token_ends=[]))
    text.add(2, num_new=3, num_accepted=4)  # the end inside of an accepted path
    text.add(2, num_new=3, num_accepted=2)  # the end chosen behind it
    assert text.num_guessed == 3 + 2


def test_nothing_is_guessed_where_there_is_no_token():
    assert GuessedText(SimpleNamespace(token_ends=[])).spans(0, 5) == ()
