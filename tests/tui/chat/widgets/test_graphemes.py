"""Every cut keeps what a reader sees as one character whole."""

import pytest

from tui.chat.widgets.graphemes import last_whole, next_boundary

WHOLE = [
    "a",
    "e\u0301",
    "e\u0301\u0323",
    "\u2764\ufe0f",
    "\U0001f44d\U0001f3fd",
    "\U0001f469\u200d\U0001f680",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1eb\U0001f1f7",
    "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    "1\ufe0f\u20e3",
    "\u1112\u1161\u11ab",
    "\uac00\u11a8",
    "\u0915\u093f",
    "\r\n",
    "\u65e5",
]


@pytest.mark.parametrize("character", WHOLE, ids=ascii)
def test_one_character_is_cut_only_at_its_ends(character):
    text = "x" + character + "y"
    starts = {next_boundary(text, index) for index in range(1, len(text))}
    assert starts == {1, 1 + len(character)}


def test_two_flags_are_cut_between_them():
    flags = "\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea"
    assert [next_boundary(flags, index) for index in range(5)] == [0, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("text", "num_whole"),
    [
        ("", 0),
        ("abc", 3),
        ("ab\U0001f469\u200d", 2),
        ("\U0001f469\u200d", 0),
        ("ab\U0001f1eb", 2),
        ("ab\U0001f1eb\U0001f1f7", 4),
        ("\u200d", 0),
    ],
    ids=ascii,
)
def test_what_the_next_piece_may_join_is_not_whole(text, num_whole):
    assert last_whole(text) == num_whole
