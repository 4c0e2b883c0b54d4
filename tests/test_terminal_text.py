import time

import pytest

from tui.terminal_text import one_line, show_escapes, strip_terminal_escapes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain äöü 日本 😀\n\ttab", "plain äöü 日本 😀\n\ttab"),
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("a\x1b[2J\x1b[1;1Hb", "ab"),
        ("a\x1b[?1049hb", "ab"),
        ("a\x9b31mb", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"),
        ("a\x9d8;;http://x\x9cb", "ab"),
        ("a\x1bP1$rq\x1b\\b", "ab"),
        ("a\x1b_apc\x1b\\b\x1b^pm\x1b\\c\x1bXsos\x1b\\d", "abcd"),
        ("a\x1b(0b\x1bcc\x1b7d", "abcd"),
        ("over\rwrite\b\x07\x00\x7f", "overwrite"),
        ("a\x85b\x80c", "abc"),
        ("a\x1b", "a"),
        ("a\x1b\x1b[31mb", "ab"),
    ],
)
def test_only_text_newlines_and_tabs_remain(text, expected):
    assert strip_terminal_escapes(text) == expected


@pytest.mark.parametrize("start", ["\x1b[31", "\x1b]0;title", "\x1bP", "\x9b", "\x9d0;t", "\x1b"])
def test_an_unterminated_sequence_is_harmless(start):
    """A model's text comes in pieces, so a sequence may be cut in two."""
    remaining = strip_terminal_escapes(start)
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in remaining)


def test_stripping_twice_changes_nothing_more():
    text = "\x1b\x1b[[31mx\x1b]\x1b]0;t\x07\x9b\x9b1m"
    assert strip_terminal_escapes(strip_terminal_escapes(text)) == strip_terminal_escapes(text)


@pytest.mark.parametrize("piece", ["\x1b]", "\x9d", "\x1b[", "\x1b(", "\x1bP\x1b", "\x9b0;"])
def test_hostile_text_takes_linear_time(piece):
    begun = time.perf_counter()
    strip_terminal_escapes(piece * 200_000)
    assert time.perf_counter() - begun < 5  # quadratic time would be minutes


def test_one_line_is_one_line():
    assert one_line("  a\n\x1b[1mb\x1b[0m\r\n\tc ") == "a b c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü 日本 😀\n\ttab", "plain äöü 日本 😀\n\ttab"),
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x1b]52;c;ZXZpbA==\x07", "␛]52;c;ZXZpbA==␇"),
        ("over\r\b\x00\x7f", "over␍␈␀␡"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("a\u202eb\u2066c\u2028", "a\\u202eb\\u2066c\\u2028"),
    ],
)
def test_controls_are_shown_and_not_executed(text, shown):
    assert show_escapes(text) == shown
    assert show_escapes(shown) == shown
