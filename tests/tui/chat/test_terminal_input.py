"""What is pasted is text, whatever it holds; keys stay keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual import events
from textual.drivers import linux_driver

from tui.chat.terminal_input import PasteParser, repair_terminal_input

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


def test_bytes_that_are_no_utf_8_do_not_end_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux_driver, "XTermParser", linux_driver.XTermParser)
    monkeypatch.setattr(linux_driver, "getincrementaldecoder", linux_driver.getincrementaldecoder)
    repair_terminal_input()
    assert linux_driver.XTermParser is PasteParser
    assert linux_driver.getincrementaldecoder("utf-8")().decode(b"caf\xe9 ") == "caf\ufffd "
