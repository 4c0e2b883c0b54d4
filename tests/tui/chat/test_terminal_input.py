"""What is pasted is text, whatever it holds; keys stay keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual import events
from textual.drivers import linux_driver
from textual.message import Message

from tui.chat import terminal_input
from tui.chat.terminal_input import PasteParser, TerminalBackground, repair_terminal_input, tells_background

START, END = "\x1b[200~", "\x1b[201~"


def read(terminal_input: str, *, at_once: int) -> list[tuple[str, str]]:
    """What the app hears of characters that arrive `at_once` at a time."""
    parser = PasteParser()
    messages = [
        message
        for begin in range(0, len(terminal_input), at_once)
        for message in parser.feed(terminal_input[begin : begin + at_once])
    ]
    return [
        ("paste", message.text) if isinstance(message, events.Paste) else ("key", message.key)
        for message in messages
        if isinstance(message, events.Paste | events.Key)
    ]


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 7, 1000])
def test_escapes_and_controls_within_a_paste_are_text(at_once: int) -> None:
    """Ctrl+Q in a coloured log quit the app, and a carriage return sent its first line."""
    log = "log: \x1b[31mERROR \x1b[0m one\r\x07second \x11quit\x1b"
    typed = "a" + START + log + END + "b\x1b[A" + START + END + START + "\x1b[200~x" + END + "\r"
    assert read(typed, at_once=at_once) == [
        ("key", "a"),
        ("paste", log),
        ("key", "b"),
        ("key", "up"),
        ("paste", ""),
        ("paste", "\x1b[200~x"),
        ("key", "enter"),
    ]


PASTED = st.text(st.sampled_from(list("ab~[0211\x1b\r\n\x11\x07é")), max_size=40).filter(
    lambda text: END not in text + END[:-1]
)


@given(pasted=st.lists(PASTED, min_size=1, max_size=4), at_once=st.integers(1, 12))
def test_every_paste_arrives_as_it_was(pasted: list[str], at_once: int) -> None:
    typed = "x".join(START + text + END for text in pasted)
    heard = read(typed, at_once=at_once)
    assert [text for kind, text in heard if kind == "paste"] == pasted
    assert [key for kind, key in heard if kind == "key"] == ["x"] * (len(pasted) - 1)


WHITE = "\x1b]11;rgb:ffff/ffff/f0f0\x1b\\"
ANSWERS = (WHITE, "\x1b]11;rgb:ff/ff/f0\x07", "\x1b]11;rgba:FFFF/FFFF/F0F0/FFFF\x1b\\")


def all_of(terminal_input: str, *, at_once: int) -> list[Message]:
    parser = PasteParser()
    pieces = (terminal_input[begin : begin + at_once] for begin in range(0, len(terminal_input), at_once))
    return [message for piece in pieces for message in parser.feed(piece)]


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 7, 1000])
def test_what_the_terminal_says_of_its_background_is_heard_and_not_typed(at_once: int) -> None:
    for answer in ANSWERS:
        heard = all_of(f"ab{answer}c\x1b[A{START}x\x1b]11;y{END}", at_once=at_once)
        (background,) = (message for message in heard if isinstance(message, TerminalBackground))
        assert background.luminance == pytest.approx(0.993, abs=0.001)
        assert [each.key for each in heard if isinstance(each, events.Key)] == ["a", "b", "c", "up"]
        assert [each.text for each in heard if isinstance(each, events.Paste)] == ["x\x1b]11;y"]


def test_an_answer_within_a_paste_is_text() -> None:
    (pasted,) = (each for each in all_of(f"{START}{WHITE}{END}", at_once=1000) if isinstance(each, events.Paste))
    assert pasted.text == WHITE


def test_what_only_begins_like_an_answer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alt+] and Escape are keys; a half answer is none."""
    now = [100.0]
    monkeypatch.setattr(terminal_input.time, "monotonic", lambda: now[0])

    for typed, is_kept in (("\x1b]11;rgb:ff", False), ("\x1b]", True), ("\x1b", True)):
        parser = PasteParser()
        fed: list[str] = []
        monkeypatch.setattr(parser, "_keys_and_pastes", lambda data, fed=fed: fed.append(data) or ())
        assert [*parser.feed(f"a{typed}"), *parser.tick()] == []
        assert "".join(fed) == "a", "held back for a moment"
        now[0] += 1.0
        assert [*parser.tick()] == []
        assert "".join(fed) == (f"a{typed}" if is_kept else "a")


@pytest.mark.parametrize(
    ("terminal", "is_asked"),
    [
        ("xterm-256color", True),
        ("tmux-256color", True),
        ("linux", False),
        ("vt100", False),
        ("dumb", False),
        ("", False),
    ],
)
def test_terminals_that_would_draw_the_question_are_not_asked(terminal: str, is_asked: bool) -> None:
    assert tells_background({"TERM": terminal}) is is_asked


def test_bytes_that_are_no_utf_8_do_not_end_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = linux_driver.LinuxDriver
    monkeypatch.setattr(driver, "_sigcont_application", driver._sigcont_application)
    monkeypatch.setattr(linux_driver, "XTermParser", linux_driver.XTermParser)
    monkeypatch.setattr(linux_driver, "getincrementaldecoder", linux_driver.getincrementaldecoder)
    repair_terminal_input()
    assert linux_driver.XTermParser is PasteParser
    assert linux_driver.getincrementaldecoder("utf-8")().decode(b"caf\xe9 ") == "caf\ufffd "
