import sys
import time
import unicodedata

import pytest

from tui.terminal_text import (
    clock_text,
    one_line,
    seconds_text,
    show_terminal_escapes,
    shown_text,
    strip_terminal_escapes,
)


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
    ("text", "expected"),
    [
        ("plain äöü 日本 😀 שלום\n\ttab", "plain äöü 日本 😀 שלום\n\ttab"),
        ("\x1b]52;c;ZXZpbA==\x07", "␛]52;c;ZXZpbA==␇"),  # would set the clipboard
        ("\x1b]52;c;ZXZpbA==\x1b\\", "␛]52;c;ZXZpbA==␛\\"),
        ("\x9d52;c;ZXZpbA==\x9c", "␛]52;c;ZXZpbA==␛\\"),
        ("\x1b]0;title\x07", "␛]0;title␇"),  # would rename the window
        ("\x1b]2;title\x1b\\", "␛]2;title␛\\"),
        ("\x1b[2J\x1b[1;1H", "␛[2J␛[1;1H"),  # would clear the screen and move the cursor
        ("\x1b[10A\x1b[?1049h\x1b7\x1b8", "␛[10A␛[?1049h␛7␛8"),
        ("\x9b2J\x84\x85", "␛[2J␛D␛E"),
        ("\x1bP$q\x1b\\\x1b_x\x1b^y\x1bXz", "␛P$q␛\\␛_x␛^y␛Xz"),
        ("over\rwrite\b\x07\x00\x7f\x0e", "over␍write␈␇␀␡␎"),
        ("if \u202e admin \u2066", "if ⟨U+202E⟩ admin ⟨U+2066⟩"),
        ("half \ud83d", "half ⟨U+D83D⟩"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, expected):
    assert show_terminal_escapes(text) == expected


BIDIRECTIONAL_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_nothing_that_a_terminal_obeys_is_left():
    """Over every character there is; all others stay as they are."""
    shown = {code: show_terminal_escapes(chr(code)) for code in range(sys.maxunicode + 1)}
    changed = {code for code, text in shown.items() if text != chr(code)}
    controls = {code for code in range(0xA0) if (code < 0x20 or code >= 0x7F) and chr(code) not in "\n\t"}
    bidirectional = {code for code in shown if unicodedata.bidirectional(chr(code)) in BIDIRECTIONAL_CONTROLS}
    surrogates = set(range(0xD800, 0xE000))
    assert changed == controls | bidirectional | surrogates
    assert all(text.isprintable() for code, text in shown.items() if code in changed)


def test_a_sequence_that_was_cut_anywhere_is_shown_the_same():
    """A model's text comes in pieces, and each is shown when it comes."""
    text = "a\x1b]52;c;ZXZpbA==\x1b\\b\r\n\x9b2J\u202e\ud83d\x1b[31mred\x1b[0m"
    whole = show_terminal_escapes(text)
    for place in range(len(text) + 1):
        assert show_terminal_escapes(text[:place]) + show_terminal_escapes(text[place:]) == whole


def test_what_is_shown_has_nothing_to_strip():
    text = "\x1b]0;t\x07\x9b2J\x00 and text\n"
    assert strip_terminal_escapes(show_terminal_escapes(text)) == show_terminal_escapes(text)
    assert show_terminal_escapes(show_terminal_escapes(text)) == show_terminal_escapes(text)


def test_times_are_told_in_words():
    assert [seconds_text(each) for each in (1.234, 0.01, 0.0042)] == ["1.23 s", "0.01 s", "4.2 ms"]
    assert (clock_text(61.4), clock_text(90_000)) == ("0:01:01", "1 day, 1:00:00")


def test_line_ends_of_all_kinds_are_one():
    assert shown_text("a\r\nb\u2028c\u2029d") == "a\nb\nc\nd"
    assert shown_text("over\rwrite") == "over␍write"
