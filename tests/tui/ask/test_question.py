"""What was typed, named and piped becomes one prompt; what cannot be taken is told in a sentence."""

import io
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from profiles.errors import BadInputError
from tui.ask import question as module
from tui.ask.question import build_question, read_piped
from tui.attachments import MAX_ATTACHMENT_BYTES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    (tmp_path / "my code.py").write_text("x = '```'\n")
    (tmp_path / "data.bin").write_bytes(b"a\0b")
    monkeypatch.chdir(tmp_path)
    return tmp_path


NOTES = "Attached file notes.txt (2 lines):\n```\none\ntwo\n```"


def test_words_are_the_question() -> None:
    assert build_question(["What", "is new?"], None) == "What is new?"
    assert build_question(["a@b.c and @@home, @@"], "") == "a@b.c and @home, @"


def test_files_stand_before_the_words_that_name_them() -> None:
    assert build_question(["Sum up @notes.txt, twice: @notes.txt?"], None) == (
        f"{NOTES}\n\nSum up notes.txt, twice: notes.txt?"
    )
    assert build_question(["@my code.py", "why?"], " \n") == (
        "Attached file my code.py (1 line):\n````\nx = '```'\n````\n\nmy code.py why?"
    )


def test_what_is_piped_goes_along_or_is_the_question_itself() -> None:
    assert build_question([], "What is new?\n") == "What is new?"
    assert build_question(["Why?"], "a log\n") == "Attached file standard input (1 line):\n```\na log\n```\n\nWhy?"
    both = build_question(["@notes.txt"], "a log\n")
    assert both == f"{NOTES}\n\nAttached file standard input (1 line):\n```\na log\n```\n\nnotes.txt"


@pytest.mark.parametrize(
    ("words", "piped", "message"),
    [
        ([], None, "nothing is asked; write the question, as in overstory ask"),
        ([" "], "\n", "nothing is asked"),
        (["see @missing.txt."], None, "there is no file 'missing.txt' to attach; mend its name, or write @@"),
        (["@/"], None, "/ cannot be attached: .*; choose a text file"),
        (["@data.bin"], None, "data.bin holds binary data"),
    ],
)
def test_what_cannot_be_asked_is_told(words: list[str], piped: str | None, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        build_question(words, piped)


def piping(monkeypatch: pytest.MonkeyPatch, content: bytes, *, is_terminal: bool = False) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: is_terminal, closed=False)
    monkeypatch.setattr(sys, "stdin", stdin)


def test_standard_input_is_read_unless_it_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    piping(monkeypatch, "\ufeffcafé\n".encode())
    assert read_piped() == "café\n"
    piping(monkeypatch, b"typed later", is_terminal=True)
    assert read_piped() is None
    monkeypatch.setattr(sys, "stdin", None)
    assert read_piped() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "standard input is no text in UTF-8; send text, or < /dev/null for none"),
        (b"a\0b", "standard input holds binary data"),
        (b"x" * (MAX_ATTACHMENT_BYTES + 1), "standard input has more than 524,288 bytes"),
    ],
)
def test_what_is_no_text_or_too_much_is_refused(content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    piping(monkeypatch, content)
    with pytest.raises(BadInputError, match=message):
        read_piped()


def test_whoever_waits_is_told_for_what(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe that nobody writes to and nobody closes, as a service manager may leave it."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    told = threading.Event()
    monkeypatch.setattr(module, "_tell_wait", lambda tell=module._tell_wait: (tell(), told.set()))
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream, isatty=lambda: False, closed=False))
        reader = threading.Thread(target=read_piped)
        reader.start()
        assert told.wait(10)
        os.close(writing)
        reader.join()
    assert "waiting for standard input to end" in capsys.readouterr().err
